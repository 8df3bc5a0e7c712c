"""The calls that run: each gets the blocks for its next tokens, and where there are none, one gives way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....traces import events as e
from ....traces.apps import CallId
from ....traces.arithmetic import div_ceil
from ....traces.events import Fact
from ...machine.machine import Machine, seconds
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
        self.calls: dict[CallId, EngineCall] = {}
        self.growth_blocks = 0  # that running and loading calls will yet take until their declared budgets
        self.report: Callable[[Fact], None]

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
        prefills = self._prefills
        running = list(self.calls.values())
        budget_tokens = self._budget_tokens
        preempted = False
        at = 0
        while at < len(running):
            call = running[at]
            if call in prefills.calls:
                tokens, blocks = prefills.chunk(call, budget_tokens)
            elif call.decoding:
                tokens, blocks = 1, 0 if self._batch.num_computed_tokens(call) % self._block_tokens else 1
            else:
                tokens = blocks = 0  # its last token is on its way
            while blocks > self._gpu.num_free_blocks:
                victim = _victim(running[min(at + 1, len(running) - 1) :], preempt)
                running.remove(victim)
                self._preempt(victim, now_ps)
                preempted = True
                if victim is call:
                    break
            else:
                at += 1
                budget_tokens -= tokens
                if call in prefills.calls:
                    prefills.compute(step, call, tokens, blocks)
                else:
                    self._gpu.get_new_blocks(blocks)
                self.growth_blocks -= blocks
        return preempted

    def _preempt(self, call: EngineCall, now_ps: int) -> None:
        """A call loses its blocks and waits again, before all others."""
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
        del self.calls[call.id]
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


def _victim(calls: Sequence[EngineCall], preempt: Sequence[CallId]) -> EngineCall:
    """Which of the calls gives way."""
    if preempt:
        by_id = {call.id: call for call in calls}
        for name in preempt:
            if name in by_id:
                return by_id[name]
    return calls[-1]
