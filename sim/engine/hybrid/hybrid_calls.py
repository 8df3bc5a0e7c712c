"""Running calls where the KV cache has several groups: each step gives back what fell out of windows, call by call."""

from __future__ import annotations

from collections.abc import Sequence

from ....traces.apps import CallId
from ...machine.engine_versions import CHUNKS_END_WHERE_A_PROMPT_RESUMES
from ...machine.kv_groups import MAMBA
from ...machine.machine import Machine
from ..memory.copies import Copies
from ..requests import EngineCall, State
from ..scheduling.batch import DecodeBatch
from ..scheduling.prefills import Prefills
from ..scheduling.running_calls import RunningCalls
from ..scheduling.step import Step
from ..scheduling.waiting_queue import WaitingQueue
from .hybrid_pool import HybridHold, HybridPool


class HybridRunningCalls(RunningCalls):
    """As vLLM's loop over `running`: a call that was admitted earlier may take the tokens of a later one.

    With one group that cannot be. Here a chunk may end early, where a state is kept, and leave room for calls that then
    have to wait for their next token.
    """

    def __init__(
        self,
        machine: Machine,
        pool: HybridPool,
        copies: Copies,
        batch: DecodeBatch,
        prefills: Prefills,
        waiting: WaitingQueue,
    ) -> None:
        super().__init__(machine, pool, copies, batch, prefills, waiting)
        self._pool = pool
        self._keeps_states = any(group.kind == MAMBA for group in machine.kv_groups)
        self._repeated_tokens = 1 if machine.has(CHUNKS_END_WHERE_A_PROMPT_RESUMES) else 0
        self._long_prompt_tokens = machine.long_prefill_token_threshold
        self._waiting_for_tokens: list[EngineCall] = []

    def growth(self) -> int:
        pool, batch = self._pool, self._batch
        growth = 0
        for call in (*self.calls.values(), *self._waiting.loaded.values()):
            tokens = batch.num_computed_tokens(call)
            final_tokens = call.prompt_tokens + call.trace_call.max_output_tokens
            for group in pool.groups:
                growth += max(0, group.held_blocks(final_tokens) - group.held_blocks(tokens))
        return growth

    def resume(self) -> None:
        for call in self._waiting_for_tokens:
            call.last_iteration += 1
            self._batch.join(call, call.num_computed_tokens)
        self._waiting_for_tokens.clear()

    def schedule(self, step: Step, now_ps: int, preempt: Sequence[CallId]) -> bool:
        pool, batch = self._pool, self._batch
        pool.begin_step()
        wanted = iter(preempt)
        left_tokens = self._budget_tokens
        preempted = False
        for call in list(self.calls.values()):
            if call.state is not State.RUNNING:
                continue  # it gave way to one before it
            if not call.decoding and call not in self._prefills.calls:
                continue  # its last token is on its way
            if not left_tokens:
                self._wait_for_tokens(call)
                continue
            hold = call.hold
            assert isinstance(hold, HybridHold)
            computed_tokens = batch.num_computed_tokens(call)
            if call.decoding and computed_tokens < hold.change_tokens and call.joined_at_iteration < batch.iteration:
                left_tokens -= 1
                continue
            tokens = 1
            if not call.decoding:
                tokens = self.chunk_tokens(call, computed_tokens, hold.shared_blocks * self._block_tokens, left_tokens)
            if not tokens:
                continue
            in_flight_tokens = self._in_flight_tokens(call, hold)
            pool.slide(hold, call.path, computed_tokens - in_flight_tokens, call.agent.owner)
            new_blocks = pool.new_blocks(hold, computed_tokens + tokens)
            while new_blocks > pool.num_free_blocks:
                victim = self._victim(wanted, call)
                self._preempt(victim, now_ps)
                preempted = True
                if victim is call:
                    break
            else:
                left_tokens -= tokens
                if call.decoding:
                    self._decode(call, hold, computed_tokens + 1, in_flight=in_flight_tokens > 0)
                else:
                    self.compute(step, call, hold, tokens)
        return preempted

    def _decode(self, call: EngineCall, hold: HybridHold, tokens: int, *, in_flight: bool) -> None:
        """A call that decodes comes to so many tokens with KV."""
        self._pool.grow(hold, tokens)
        known_blocks = (tokens - in_flight) // self._block_tokens  # the running step samples the last of these tokens
        self._pool.note_states(hold, call.path, known_blocks)
        if self.lag and not in_flight:
            self._pool.cache_up_to(hold, call.path, known_blocks)
        hold.change_tokens = self._pool.next_change_tokens(hold, self.lag)

    def chunk_tokens(self, call: EngineCall, start: int, shared_tokens: int, budget_tokens: int) -> int:
        """How many tokens of a call's prompt are computed next, behind `start` ones; 0: it has to wait.

        `shared_tokens`: where others with the same prefix may go on. A state is kept at the end of a page only, and
        only that of a chunk's last token. So a chunk ends there: vLLM's `_mamba_block_aligned_split`.
        """
        tokens = min(call.num_prefill_tokens - start, self._prefills.max_chunk_tokens, budget_tokens)
        prefill_end = max(call.prompt_tokens, call.num_prefill_tokens - 1)
        if not self._keeps_states or start >= prefill_end:
            return tokens
        size = self._block_tokens
        end = start + tokens
        if end < prefill_end:
            aligned = end // size * size
            limit = self._long_prompt_tokens
            if aligned > start or size <= (min(self._budget_tokens, limit) if limit else self._budget_tokens):
                end = aligned
        stops = [(call.num_prefill_tokens - self._repeated_tokens) // size * size]
        if start % size:
            stops.append((start // size + 1) * size)
        if start < shared_tokens < end:
            stops.append(start + (shared_tokens - start) // size * size)
        for stop in stops:
            if start < stop < end:
                end = stop
        return max(0, end - start)

    def until_change(self, most: int) -> int:
        """How many iterations, at most `most`, follow each other without one that takes or gives back a page."""
        if self._waiting_for_tokens:
            return 1
        for call in self.calls.values():
            if call.decoding:
                assert isinstance(call.hold, HybridHold)
                most = min(most, max(1, call.hold.change_tokens - self._batch.num_computed_tokens(call)))
        return most

    def compute(self, step: Step, call: EngineCall, hold: HybridHold, tokens: int) -> None:
        """Compute the next tokens of a running call's prompt. Its full pages can be hit from this moment on."""
        computed_tokens = call.num_computed_tokens + tokens
        full_blocks = computed_tokens // self._block_tokens
        self._pool.grow(hold, computed_tokens)
        self._pool.note_states(hold, call.path, full_blocks)
        self._pool.cache_up_to(hold, call.path, full_blocks)
        hold.step, hold.step_tokens = self._batch.iteration, tokens
        self._prefills.book(step, call, tokens)

    def free(self, call: EngineCall, known_blocks: int) -> None:
        hold = call.hold
        assert isinstance(hold, HybridHold)
        self._pool.release(hold, call.path, known_blocks, call.agent.owner)
        if call.store_sources:
            self._copies.stops(call)
        call.hold = None

    def _wait_for_tokens(self, call: EngineCall) -> None:
        """Those before it have taken all tokens of the step."""
        if not call.decoding:
            return
        self._batch.leave(call)
        self._waiting_for_tokens.append(call)
        assert isinstance(call.hold, HybridHold)
        call.hold.step = -1

    def _in_flight_tokens(self, call: EngineCall, hold: HybridHold) -> int:
        """Tokens of a call that the running step computes: what they attend to must stay."""
        if not self.lag or not self.step_in_flight:
            return 0
        if call.decoding and call.joined_at_iteration < self._batch.iteration:
            return 1
        return hold.step_tokens if hold.step == self._batch.iteration - 1 else 0
