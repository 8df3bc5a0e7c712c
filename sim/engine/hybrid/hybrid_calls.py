"""Running calls where the KV cache has several groups: each step gives back what fell out of windows, call by call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ....traces.apps import CallId
from ...machine.engine_versions import CHUNKS_END_WHERE_A_PROMPT_RESUMES
from ...machine.kv_groups import CHUNKED_LOCAL, MAMBA, SLIDING_WINDOW, KvGroup
from ...machine.machine import Machine
from ..memory.copies import Copies
from ..requests import EngineCall, State
from ..scheduling.batch import DecodeBatch
from ..scheduling.prefills import Prefills
from ..scheduling.running_calls import RunningCalls
from ..scheduling.step import Step
from ..scheduling.waiting_queue import WaitingQueue
from .hybrid_pool import HybridHold, HybridPool
from .page_changes import PageChanges

_SLIDING: Final = (SLIDING_WINDOW, MAMBA)


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
        self._num_groups = len(machine.kv_groups)
        self._changes = PageChanges()
        self._last_join = -1  # the iteration from which on the call decodes that joined last
        # A decoding call gives back a page of a group when so many tokens, and whole pages beside them, have KV; or all
        # those of a chunk at its end.
        self._slides = [_slide_tokens(group) + self.lag for group in machine.kv_groups if group.kind in _SLIDING]
        self._chunk_sizes = [group.window_tokens for group in machine.kv_groups if group.kind == CHUNKED_LOCAL]

    def growth(self) -> int:
        pool, batch = self._pool, self._batch
        growth = 0
        for call in (*self.calls.values(), *self._waiting.loaded.values()):
            tokens = batch.num_computed_tokens(call)
            final_tokens = call.prompt_tokens + call.trace_call.max_output_tokens
            for group in pool.groups:
                growth += max(0, group.held_blocks(final_tokens) - group.held_blocks(tokens))
        return growth

    def joins(self, call: EngineCall) -> None:
        """A call decodes from the next iteration on."""
        hold = call.hold
        assert isinstance(hold, HybridHold)
        hold.change_tokens = call.num_computed_tokens
        self._changes.add(call, hold)
        self._last_join = self._batch.iteration

    def resume(self) -> None:
        for call in self._waiting_for_tokens:
            call.last_iteration += 1
            self._batch.join(call, call.num_computed_tokens)
            self.joins(call)
        self._waiting_for_tokens.clear()

    def schedule(self, step: Step, now_ps: int, preempt: Sequence[CallId]) -> bool:
        """The calls that take or give back pages now, and those in the middle of their prompts; if need be, all."""
        pool = self._pool
        pool.begin_step()
        due = self._changes.due(self._batch.iteration)
        chunks = self._chunks()
        if chunks is None or not self._have_room(due, chunks):
            return self._schedule_one_by_one(step, now_ps, preempt)
        if chunks:
            due += chunks
            due.sort(key=_by_admission)
        for call in due:
            hold = call.hold
            assert isinstance(hold, HybridHold)
            computed_tokens = self._batch.num_computed_tokens(call)
            in_flight_tokens = self._in_flight_tokens(call, hold)
            pool.slide(hold, call.path, computed_tokens - in_flight_tokens, call.agent.owner)
            if call.decoding:
                self._decode(call, hold, computed_tokens + 1, in_flight=in_flight_tokens > 0)
            else:
                self.compute(step, call, hold, chunks[call])
        return False

    def _chunks(self) -> dict[EngineCall, int] | None:
        """The tokens that calls in the middle of their prompts compute next; None: somebody may lack tokens."""
        prefills, left_tokens = self._prefills.calls, self._budget_tokens - self._batch.num_calls
        chunks: dict[EngineCall, int] = {}
        if not prefills:
            return None if left_tokens < 0 else chunks
        behind: list[EngineCall] = []  # from the first of them on, the last call first
        missing = len(prefills)
        for call in reversed(self.calls.values()):
            if call.decoding:
                behind.append(call)
                left_tokens += 1
            elif call in prefills:
                behind.append(call)
                missing -= 1
                if not missing:
                    break
        for call in reversed(behind):
            if left_tokens <= 0:
                return None
            tokens = 1
            if not call.decoding:
                hold = call.hold
                assert isinstance(hold, HybridHold)
                shared_tokens = hold.shared_blocks * self._block_tokens
                tokens = self.chunk_tokens(call, call.num_computed_tokens, shared_tokens, left_tokens)
                if tokens:
                    chunks[call] = tokens
            left_tokens -= tokens
        return chunks

    def _have_room(self, due: Sequence[EngineCall], chunks: Mapping[EngineCall, int]) -> bool:
        """Whether all these get their pages without those that are given back."""
        free_blocks = self._pool.num_free_blocks - len(due) * self._num_groups
        for call, tokens in chunks.items():
            hold = call.hold
            assert isinstance(hold, HybridHold)
            free_blocks -= self._pool.new_blocks(hold, call.num_computed_tokens + tokens)
        return free_blocks >= 0

    def _schedule_one_by_one(self, step: Step, now_ps: int, preempt: Sequence[CallId]) -> bool:
        """The same in the order of admission, where somebody lacks tokens or has to give way."""
        pool, batch = self._pool, self._batch
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
            if call.decoding and computed_tokens < hold.change_tokens:
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
        hold.change_tokens = max(tokens, self._pool.next_change_tokens(hold, self.lag))
        self._changes.add(call, hold)

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

    # -- stretches

    @property
    def lack_tokens(self) -> bool:
        """Whether somebody waits for its next token until the step is on its way."""
        return bool(self._waiting_for_tokens)

    def next_change(self) -> int:
        """The iteration in which a decoding call next takes a page or gives one back; −1: there is none."""
        return self._changes.next_iteration()

    def change(self, iteration: int) -> None:
        """What decoding calls take and give back at this iteration of a stretch, not its first one."""
        for call in self._changes.due(iteration):
            hold = call.hold
            assert isinstance(hold, HybridHold)
            computed_tokens = call.num_computed_tokens + iteration - call.joined_at_iteration
            self._pool.slide(hold, call.path, computed_tokens - self.lag, call.agent.owner)
            self._decode(call, hold, computed_tokens + 1, in_flight=self.lag > 0)

    def until_given_back(self, blocks: int, most: int) -> int:
        """How many iterations, at most `most`, can follow each other until the next gives back the last of so many."""
        if blocks <= 0 or (self.lag and self._last_join == self._batch.iteration):  # what its chunk left goes next
            change = self._changes.next_iteration()
            return most if change < 0 else min(most, max(1, change - self._batch.iteration))
        for call in self.calls.values() if self._chunk_sizes else ():
            if call.decoding:
                tokens = self._batch.num_computed_tokens(call) - self.lag
                most = min([most, *[size - tokens % size for size in self._chunk_sizes]])
        in_a_turn = self._batch.num_calls * len(self._slides)
        if not in_a_turn:
            return most
        turns = (blocks - 1) // in_a_turn
        blocks -= turns * in_a_turn
        for ahead in range(turns * self._block_tokens + 1, most):
            for tokens in self._slides:
                blocks -= self._batch.needs(ahead - tokens)
            if blocks <= 0:
                return ahead
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


def _slide_tokens(group: KvGroup) -> int:
    return 1 if group.kind == MAMBA else group.window_tokens - 1


def _by_admission(call: EngineCall) -> int:
    return call.admission
