"""The calls that run: each gets the blocks for its next tokens, and where there are none, one gives way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ....traces import events as e
from ....traces.apps import CallId
from ....traces.arithmetic import div_ceil
from ....traces.events import Fact
from ...machine.machine import Machine
from ...machine.timing import seconds
from ..memory.block_pool import BlockPool
from ..memory.copies import Copies
from ..requests import EngineCall, State
from .batch import DecodeBatch
from .prefills import Prefills
from .step import Step
from .waiting_queue import WaitingQueue


class RunningCalls:
    """`calls` are in order of admission: those in the middle of their prompts, and those that decode."""

    def __init__(
        self,
        machine: Machine,
        gpu: BlockPool,
        copies: Copies,
        batch: DecodeBatch,
        prefills: Prefills,
        waiting: WaitingQueue,
    ) -> None:
        self._block_tokens = machine.block_tokens
        self._budget_tokens = machine.step_budget_tokens
        self._gpu = gpu
        self._copies = copies
        self._batch = batch
        self._prefills = prefills
        self._waiting = waiting
        self.lag = 1 if machine.asynchronous else 0  # steps whose outcome has not come when the next is scheduled
        self.step_in_flight = False  # whether a step runs while the next one is scheduled
        self.calls: dict[CallId, EngineCall] = {}
        self.growth_blocks = 0  # that running and loading calls will yet take until their declared budgets
        self.report: Callable[[Fact], None]

    def growth(self) -> int:
        """Blocks that running and loading calls will yet take until their declared budgets."""
        return self.growth_blocks

    def resume(self) -> None:
        """The step is on its way: who had to wait for tokens goes on with the next one."""

    def schedule(self, step: Step, now_ps: int, preempt: Sequence[CallId]) -> bool:
        """Give each call the blocks that it needs now. Whether any was preempted for them.

        `preempt`: who gives way first, as the policy wants it; then the call that was admitted last.
        """
        decode_blocks = needed_blocks = self._batch.needs()
        chunks = self._prefills.chunks() if self._prefills.calls else ()
        for _, _, blocks in chunks:
            needed_blocks += blocks
        if needed_blocks > self._gpu.num_free_blocks:
            return self._grow_one_by_one(step, now_ps, preempt)
        if decode_blocks:
            self._gpu.get_new_blocks(decode_blocks)
        for call, chunk_tokens, blocks in chunks:
            self._prefills.compute(step, call, chunk_tokens, blocks)
        self.growth_blocks -= needed_blocks
        return False

    def _grow_one_by_one(self, step: Step, now_ps: int, preempt: Sequence[CallId]) -> bool:
        """The same in the order of admission, preempting where there are none."""
        gpu, batch, prefills = self._gpu, self._batch, self._prefills
        wanted = iter(preempt)
        computed_tokens = 0
        grown = 0  # calls that get a block each, which is not handed out yet
        preempted = False
        for call in sorted((*batch.needing(), *prefills.calls), key=_by_admission):
            if call.state is not State.RUNNING:
                continue  # it gave way to one before it
            chunk_tokens, blocks = 0, 1
            if not call.decoding:
                left_tokens = self._budget_tokens - batch.num_calls - computed_tokens
                chunk_tokens, blocks = prefills.chunk(call, left_tokens)
            while blocks > gpu.num_free_blocks - grown:
                gpu.get_new_blocks(grown)
                grown = 0
                victim = self._victim(wanted, call)
                self._preempt(victim, now_ps)
                preempted = True
                if victim is call:
                    break
            else:
                self.growth_blocks -= blocks
                if call.decoding:
                    grown += 1
                    continue
                gpu.get_new_blocks(grown)
                grown = 0
                prefills.compute(step, call, chunk_tokens, blocks)
                computed_tokens += chunk_tokens
        gpu.get_new_blocks(grown)
        return preempted

    def _victim(self, wanted: Iterator[CallId], call: EngineCall) -> EngineCall:
        """Who gives way to a call, perhaps itself: no longer among the running ones. Who is not `wanted` stays so."""
        for name in wanted:
            victim = self.calls.get(name)
            if victim is not None and victim.admission > call.admission:
                del self.calls[name]
                return victim
        return self.calls.popitem()[1]

    def _preempt(self, call: EngineCall, now_ps: int) -> None:
        """A call that runs no longer loses its blocks and waits again, before all others."""
        known_tokens = call.num_computed_tokens
        if call in self._prefills.calls:
            del self._prefills.calls[call]
        else:
            if call.decoding:
                self._batch.leave(call)
            known_tokens = call.num_computed_tokens
            if known_tokens > call.num_prefill_tokens:
                known_tokens -= self.lag  # with a step in flight, the token of the last slot is not known yet
            call.set_prefill(call.num_computed_tokens + 1)
        self.free(call, known_tokens // self._block_tokens)
        call.state = State.WAITING
        call.num_computed_tokens = 0
        self._waiting.add(call)
        self._waiting.to_front(call)
        if self._gpu.kept_blocks:
            self._copies.refusing = True
        self.report(e.CallPreempted(seconds(now_ps), call.id, call.generated_tokens))

    def free(self, call: EngineCall, known_blocks: int) -> None:
        """A call gives up its blocks; `known_blocks` of them are full, and their content is known."""
        hold = call.hold
        assert hold is not None
        held_blocks = div_ceil(call.num_computed_tokens, self._block_tokens)
        hold.uncached_blocks = held_blocks - hold.cached_end_block
        self._gpu.cache(hold, call.path, known_blocks)
        self._gpu.free(hold, call.agent.owner)
        if call.store_sources:
            self._copies.stops(call)
        self.growth_blocks -= call.final_blocks - held_blocks
        call.hold = None


def _by_admission(call: EngineCall) -> int:
    return call.admission
