"""An engine that checks itself: does all that it keeps twice agree?"""

from __future__ import annotations

from collections.abc import Iterator

from ...traces.agreement import agree
from ...traces.arithmetic import div_ceil
from .engine import Engine
from .memory.blocks import BlockHold


class CheckedEngine(Engine):
    """Looks at everything at each `check_every`-th boundary, before it schedules. Raises `CheckError`."""

    check_every = 1
    _boundaries = 0

    def _schedule_at(self, now_ps: int) -> None:
        self._boundaries += 1
        if self._boundaries % self.check_every == 0:
            self.check()
        super()._schedule_at(now_ps)

    def check(self) -> None:
        """Pools, copies and the ledger, each by itself and with what the engine knows."""
        scheduler = self._scheduler
        idle = not self._link.under_way
        self._tree.check()
        self.gpu.check()
        self.host.check()
        self._copies.check(self._agents.values(), idle=idle)
        if idle:  # otherwise copies hold blocks, too
            self.gpu.check_holds(self._held_on_gpu())
            self.host.check_holds(
                (self._copies.held_on_host(agent.host), 0) for agent in self._agents.values() if agent.host is not None
            )
        if len(self._machine.kv_groups) == 1:  # with more it is added up whenever it is asked for
            agree("blocks that running and loading calls will yet take", scheduler.running.growth(), self._growth())
        for call in scheduler.waiting.calls.values():
            if call.hold is None:
                agree(f"what is cached of {call.id!r}", scheduler.hits(call.id), scheduler.look_up(call))
        self._controller.check(scheduler.waiting.calls, scheduler.running.calls)

    def _held_on_gpu(self) -> Iterator[tuple[BlockHold, int]]:
        """Who holds blocks on the GPU, and how many of them are not cached."""
        scheduler = self._scheduler
        for call in scheduler.running.calls.values():
            assert call.hold is not None
            held_blocks = div_ceil(scheduler.batch.num_computed_tokens(call), self._block_tokens)
            yield call.hold, held_blocks - call.hold.cached_end_block
        for call in scheduler.waiting.loaded.values():
            assert call.hold is not None
            yield call.hold, call.hold.uncached_blocks
        for agent in self._agents.values():
            for hold in (agent.pin, *(upload.held for upload in agent.uploads)):
                if hold is not None:
                    yield hold, hold.uncached_blocks

    def _growth(self) -> int:
        running, loaded = self._scheduler.running.calls.values(), self._scheduler.waiting.loaded.values()
        computed_tokens = self._scheduler.batch.num_computed_tokens
        growth = sum(call.final_blocks - div_ceil(computed_tokens(call), self._block_tokens) for call in running)
        return growth + sum(call.final_blocks - call.hold.num_blocks for call in loaded if call.hold is not None)
