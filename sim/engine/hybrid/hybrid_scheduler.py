"""The scheduler where the KV cache has several groups (see `memory.hybrid_pool`)."""

from __future__ import annotations

from ....policies.interface import Hits
from ....traces.apps import CallId
from ...machine.machine import Machine
from ...machine.timing import Timing
from ..memory.copies import Copies
from ..requests import EngineCall
from ..scheduling.running_calls import RunningCalls
from ..scheduling.scheduler import Scheduler
from ..scheduling.step import Step, StepLog
from .hybrid_calls import HybridRunningCalls
from .hybrid_pool import HybridHold, HybridPool


class HybridScheduler(Scheduler):
    """What the scheduler asks its pool group by group: room for a prompt, its hits, its first chunk."""

    def __init__(
        self,
        machine: Machine,
        timing: Timing,
        gpu: HybridPool,
        host: HybridPool,
        copies: Copies,
        *,
        one_by_one: bool,
        step_log: StepLog | None,
    ) -> None:
        self._pool = gpu
        super().__init__(machine, timing, gpu, host, copies, one_by_one=one_by_one, step_log=step_log)
        self._shared_blocks = 0  # of the call that was looked up last: what a full group has
        self._passing = False  # whether a call could not start for a reason that lasts for a step only

    def _running_calls(self) -> RunningCalls:
        self._calls = HybridRunningCalls(
            self._machine, self._pool, self._copies, self.batch, self._prefills, self.waiting
        )
        return self._calls

    def look_up(self, call: EngineCall) -> Hits:
        hits, idle = self._gpu.cached_prefix(call.path, call.most_hit_blocks)
        return Hits(hits, idle, self._copies.host_hits(call, hits) - hits)

    def _stretch(self, step: Step) -> int:
        most = self.batch.until_end()
        if step.prefill_tokens or self._passing or most is None:
            return 1
        return self._calls.until_change(most)

    def _admit(self, step: Step, now_ps: int, budget_tokens: int) -> None:
        self._passing = False
        super()._admit(step, now_ps, budget_tokens)
        if self._passing:
            self.blocked = False
            self._refused = None

    def _fits(self, call: EngineCall, hits: int, idle: int, budget_tokens: int) -> bool:
        pool, tokens = self._pool, hits * self._block_tokens
        shared_blocks = self._shared(call, hits)
        if call.hold is None and pool.is_too_new(call.path, hits):
            self._passing = True
            return False
        chunk_tokens = self._calls.chunk_tokens(call, tokens, shared_blocks * self._block_tokens, budget_tokens)
        if not chunk_tokens:
            self._passing = True
            return False
        whole_blocks = pool.whole_blocks(hits, hits, call.num_prefill_tokens)
        chunk_blocks = pool.chunk_blocks(hits, tokens + chunk_tokens)
        return max(whole_blocks, chunk_blocks) + idle <= pool.num_free_blocks

    def _can_load(self, call: EngineCall, hits: int, idle: int, end: int) -> bool:
        pool = self._pool
        self._shared(call, hits)
        idle = pool.idle_blocks(call.path, hits, end)  # of the pages that the longer hit needs
        if pool.whole_blocks(hits, end, call.num_prefill_tokens) + idle > pool.num_free_blocks:
            return False
        loaded_blocks = sum([upto - first for first, upto in pool.needed(end, hits)])
        return loaded_blocks + idle <= pool.num_free_blocks - self._promised()

    def _shared(self, call: EngineCall, hits: int) -> int:
        """How many blocks of a call's prompt the full groups have, if that is more than its hit; else 0."""
        if isinstance(call.hold, HybridHold):
            return call.hold.shared_blocks
        _, longest = self._pool.longest_hit(call.path, call.most_hit_blocks)
        self._shared_blocks = longest if longest > hits else 0
        return self._shared_blocks

    def _promised(self) -> int:
        pool, promised = self._pool, 0
        for call in (*self.waiting.loaded.values(), *self._prefills.calls):
            hold = call.hold
            if hold is not None:
                promised += pool.whole_blocks(hold.num_blocks, hold.num_blocks, call.num_prefill_tokens)
        return promised

    def _load(self, call: EngineCall, first: int, end: int, now_ps: int) -> None:
        call.hold = self._pool.start(call.path, first, end, call.prompt_tokens, self._shared_blocks)
        super()._load(call, first, end, now_ps)

    def _hold_hits(self, call: EngineCall, hits: int) -> None:
        call.hold = self._pool.start(call.path, hits, hits, call.prompt_tokens, self._shared_blocks)

    def _compute_first(self, step: Step, call: EngineCall, budget_tokens: int) -> int:
        hold = call.hold
        assert isinstance(hold, HybridHold)
        shared_tokens = hold.shared_blocks * self._block_tokens
        self._pool.slide(hold, call.path, call.num_computed_tokens, call.agent.owner)
        chunk_tokens = self._calls.chunk_tokens(call, call.num_computed_tokens, shared_tokens, budget_tokens)
        self._calls.compute(step, call, hold, chunk_tokens)
        return chunk_tokens

    def shared_blocks(self, name: CallId) -> int:
        call = self.waiting.calls[name]
        hits, idle = self._gpu.cached_prefix(call.path, call.most_hit_blocks)
        return sum([end - first for first, end in self._pool.needed(hits)]) - idle
