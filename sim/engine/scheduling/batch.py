"""The decoding calls of a batch as a few sums: what a stretch of iterations costs, and when blocks are needed.

Between two changes of the batch every iteration adds one token to every decoding call. So a call stores only when it
joined; the iterations done, the sum of the contexts, and who needs its next block at which iteration (modulo the block
size) say the rest. No cost here depends on the number of calls or tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import cycle

from ...machine.timing import Timing
from ..requests import EngineCall
from .pace import Pace, paced
from .windowed_contexts import WindowedContexts


class DecodeBatch:
    """Decoding calls between iterations. `iteration` is the number of the next one to be scheduled."""

    def __init__(self, timing: Timing, block_tokens: int) -> None:
        self._timing = timing
        self._on_host = bool(timing.host_call_ps or timing.host_token_ps)
        self._is_plain = not (timing.experts_ps or timing.prefill_context_token_ps or timing.window)
        self._windowed = None if timing.window is None else WindowedContexts(timing.window)
        self._block_tokens = block_tokens
        self.iteration = 0
        self.num_calls = 0
        self.context_tokens = 0  # sum over the calls of the tokens that have KV
        # [i % block_tokens]: the calls that need a block at iteration i
        self._needing: list[dict[EngineCall, None]] = [{} for _ in range(block_tokens)]
        self.chunk: tuple[int, int] | None = (
            None  # of a stretch: tokens of a prompt before it, and those that an iteration adds
        )
        self._ends: list[
            tuple[int, int, EngineCall]
        ] = []  # (last iteration, order of admission, call); left ones are stale

    def join(self, call: EngineCall, computed_tokens: int) -> None:
        """A call whose prompt is computed decodes from the next iteration on, `call.last_iteration` the last."""
        call.decoding = True
        call.joined_at_iteration = self.iteration
        call.num_computed_tokens = computed_tokens
        self.num_calls += 1
        self.context_tokens += computed_tokens
        self._needing[(self.iteration - computed_tokens) % self._block_tokens][call] = None
        heappush(self._ends, (call.last_iteration, call.admission, call))
        if self._windowed is not None:
            self._windowed.join(call, self.iteration, computed_tokens)

    def leave(self, call: EngineCall) -> None:
        """A call stops decoding; its `computed` is what it has KV for."""
        del self._needing[(call.joined_at_iteration - call.num_computed_tokens) % self._block_tokens][call]
        call.num_computed_tokens += self.iteration - call.joined_at_iteration
        call.decoding = False
        self.num_calls -= 1
        self.context_tokens -= call.num_computed_tokens
        if self._windowed is not None:
            self._windowed.leave(call.num_computed_tokens)

    def num_computed_tokens(self, call: EngineCall) -> int:
        """Tokens of a call that have KV."""
        return (
            call.num_computed_tokens + self.iteration - call.joined_at_iteration
            if call.decoding
            else call.num_computed_tokens
        )

    def needs(self, ahead: int = 0) -> int:
        """How many calls need a block at the iteration that is `ahead` of the next."""
        return len(self._needing[(self.iteration + ahead) % self._block_tokens])

    def needing(self) -> Iterable[EngineCall]:
        """The calls that need a block at the next iteration."""
        return self._needing[self.iteration % self._block_tokens]

    def needs_between(self, first: int, end: int) -> list[tuple[int, int]]:
        """The blocks that the iterations `first` … `end − 1` ahead need, where any: (how far ahead, blocks)."""
        needing, size, at = self._needing, self._block_tokens, self.iteration
        if self.chunk is not None:
            before, chunk = self.chunk
            return [
                (
                    ahead,
                    len(needing[(at + ahead) % size])
                    - (-(before + (ahead + 1) * chunk) // size)
                    + (-(before + ahead * chunk) // size),
                )
                for ahead in range(first, end)
            ]
        turn = (at + first) % size
        coming = cycle(needing[turn:] + needing[:turn])
        return [(ahead, len(calls)) for ahead, calls in zip(range(first, end), coming, strict=False) if calls]

    def until_end(self) -> int | None:
        """Iterations up to and with the next last one of a call; None if nothing decodes."""
        ends = self._ends
        while ends:
            last, order, call = ends[0]
            if call.decoding and call.admission == order and call.last_iteration == last:
                return last - self.iteration + 1
            heappop(ends)
        return None

    def until_full(self, free_blocks: int, most: int) -> int:
        """How many iterations, at most `most`, can follow if the blocks of the first one are already taken."""
        if self.chunk is None and self.num_calls * (most // self._block_tokens + 1) <= free_blocks:
            return most
        for ahead, need in self.needs_between(1, most):
            free_blocks -= need
            if free_blocks < 0:
                return ahead
        return most

    def advance(self, iterations: int) -> list[EngineCall]:
        """These iterations are scheduled. The calls whose last one was among them stop decoding, and are returned."""
        self.iteration += iterations
        self.context_tokens += iterations * self.num_calls
        if self._windowed is not None:
            self._windowed.advance(self.iteration, iterations)
        done = []
        ends = self._ends
        while ends and ends[0][0] < self.iteration:
            last, order, call = heappop(ends)
            if call.decoding and call.admission == order and call.last_iteration == last:
                self.leave(call)
                done.append(call)
        return done

    def until_turn(self, most: int) -> int:
        """How many iterations, at most `most`, can follow that take evenly longer: no window fills among them."""
        window = self._timing.window
        if window is None or self._windowed is None:
            return most
        turn = self._windowed.until_turn(self.iteration)
        if turn:
            most = min(most, turn)
        if self.chunk is not None:
            before_tokens, tokens = self.chunk
            chunks = window.growth(before_tokens, tokens)[1]
            if chunks:
                most = min(most, chunks)
        return most

    def pace(self, prefills: dict[EngineCall, int], *, admitted: int = 0, completed: int = 0) -> Pace:
        """What the next iterations cost: the first one also computes so many tokens of these calls' prompts.

        In a stretch of chunks the others do as well. `admitted` and `completed` are as in `Timing.of_step`; where they
        cost anything, the stretch is one iteration.
        """
        t = self._timing
        tokens = attended = 0
        for call, chunk_tokens in prefills.items():
            tokens += chunk_tokens
            attended += chunk_tokens * call.num_computed_tokens + chunk_tokens * (chunk_tokens + 1) // 2
        num_tokens = self.num_calls + tokens
        weights_ps = t.floor_ps if self._is_plain else t.weights_ps(num_tokens)
        first = (
            t.step_ps
            + max(weights_ps, t.token_ps * num_tokens)
            + t.prefill_token_ps * tokens
            + t.attention_ps * attended
            + t.decode_call_ps * self.num_calls
            + t.context_token_ps * self.context_tokens
        )
        growth = t.context_token_ps * self.num_calls
        if self.chunk is not None:
            growth += t.attention_ps * tokens * tokens
        if not self._is_plain:
            more = self._beyond_plain(prefills)
            first, growth = first + more[0], growth + more[1]
        if not self._on_host:
            return Pace(first, growth)
        return paced(first, growth, t.of_host(admitted, self.num_calls + completed), asynchronous=t.asynchronous)

    def _beyond_plain(self, prefills: dict[EngineCall, int]) -> tuple[int, int]:
        """What windowed layers, and contexts that each chunk reads, add to the first iteration and to the growth."""
        t, window, windowed = self._timing, self._timing.window, self._windowed
        before_tokens = pairs = seen = more_pairs = num_growing = more_before = 0
        for call, chunk_tokens in prefills.items():
            before_tokens += call.num_computed_tokens
            if window is not None:
                pairs += window.pairs(call.num_computed_tokens, chunk_tokens)
        if windowed is not None:
            seen, num_growing = windowed.tokens, windowed.num_growing
        if self.chunk is not None:
            before, more_before = self.chunk
            if window is not None:
                more_pairs = window.growth(before, more_before)[0]
        first = (
            t.prefill_context_token_ps * before_tokens
            + t.window_attention_ps * pairs
            + t.window_context_token_ps * seen
        )
        growth = (
            t.prefill_context_token_ps * more_before
            + t.window_attention_ps * more_pairs
            + t.window_context_token_ps * num_growing
        )
        return first, growth
