"""What a token attends to in layers that do not look at the whole context, in closed form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window of so many tokens; or (`chunked`) the context is cut into chunks that do not see each other."""

    tokens: int
    chunked: bool

    def seen(self, context_tokens: int) -> int:
        """What a token attends to of the context before it."""
        return context_tokens % self.tokens if self.chunked else min(context_tokens, self.tokens)

    def until_turn(self, context_tokens: int) -> int:
        """How many more tokens grow what is `seen` by one each, or empty it with the last one; 0: it stays."""
        if self.chunked:
            return self.tokens - context_tokens % self.tokens
        return max(0, self.tokens - context_tokens)

    def pairs(self, before_tokens: int, tokens: int) -> int:
        """Pairs of one of `tokens` and a token that it attends to, itself included, behind `before_tokens`."""
        return self._pairs_of_first(before_tokens + tokens) - self._pairs_of_first(before_tokens)

    def growth(self, before_tokens: int, tokens: int) -> tuple[int, int]:
        """Of chunks of `tokens` behind each other: by how much the pairs of each exceed those of the one before it.

        And for how many chunks that holds; 0: for as many as there are.
        """
        if self.chunked:
            if tokens % self.tokens == 0:
                return 0, 0
            before_tokens %= self.tokens
        elif before_tokens >= self.tokens - 1:
            return 0, 0
        return tokens * tokens, max(1, (self.tokens - before_tokens) // tokens)

    def _pairs_of_first(self, tokens: int) -> int:
        whole = self.tokens * (self.tokens + 1) // 2
        if self.chunked:
            rest = tokens % self.tokens
            return tokens // self.tokens * whole + rest * (rest + 1) // 2
        if tokens <= self.tokens:
            return tokens * (tokens + 1) // 2
        return whole + (tokens - self.tokens) * self.tokens
