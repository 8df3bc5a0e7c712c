"""What decoding calls attend to in windowed layers: a sum that grows evenly until a window is full or a chunk ends."""

from __future__ import annotations

from heapq import heappop, heappush

from ...machine.window import Window
from ..requests import EngineCall


class WindowedContexts:
    """`tokens`: the sum over the decoding calls of what the next iteration of each attends to."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self.tokens = 0
        self.num_growing = 0  # calls that attend to one more with each iteration
        self._turns: list[
            tuple[int, int, EngineCall]
        ] = []  # (iteration, order of admission, call); left ones are stale

    def join(self, call: EngineCall, iteration: int, context_tokens: int) -> None:
        """A call decodes from `iteration` on."""
        self.tokens += self._window.seen(context_tokens)
        self._turns_at(call, iteration, context_tokens)

    def leave(self, context_tokens: int) -> None:
        """A call of so many tokens stops decoding."""
        self.tokens -= self._window.seen(context_tokens)
        if self._window.until_turn(context_tokens):
            self.num_growing -= 1

    def until_turn(self, iteration: int) -> int:
        """From `iteration` on, in how many iterations the sum grows evenly; 0: in all."""
        turns = self._turns
        while turns:
            at, order, call = turns[0]
            if call.decoding and call.admission == order:
                return at - iteration
            heappop(turns)
        return 0

    def advance(self, iteration: int, iterations: int) -> None:
        """`iteration` is the next after so many, at most `until_turn`."""
        self.tokens += self.num_growing * iterations
        turns = self._turns
        while turns and turns[0][0] <= iteration:
            at, order, call = heappop(turns)
            if call.decoding and call.admission == order:
                self.num_growing -= 1
                context_tokens = call.num_computed_tokens + at - call.joined_at_iteration
                self.tokens += self._window.seen(context_tokens) - self._window.seen(context_tokens - 1) - 1
                self._turns_at(call, at, context_tokens)

    def _turns_at(self, call: EngineCall, iteration: int, context_tokens: int) -> None:
        left = self._window.until_turn(context_tokens)
        if left:
            self.num_growing += 1
            heappush(self._turns, (iteration + left, call.admission, call))
