"""A machine's costs as the engine spends them: whole picoseconds, and the seconds that they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .window import Window

PS_PER_S = 1_000_000_000_000
_ONE_BITS = 80  # of a share in whole numbers
_ONE = 1 << _ONE_BITS
EXACT_IN_FLOAT = 2**53  # whole numbers up to here are floats without a loss


@dataclass(frozen=True, slots=True)
class Timing:
    """A machine's costs in whole picoseconds. Meanings as in `Machine`."""

    step_ps: int
    floor_ps: int
    experts_ps: tuple[int, ...]  # [n]: reading the experts that n tokens touch, the last for all above; or empty
    token_ps: int
    prefill_token_ps: int
    prefill_context_token_ps: int
    attention_ps: int
    decode_call_ps: int
    context_token_ps: int
    window: Window | None  # of the layers of the next two
    window_attention_ps: int
    window_context_token_ps: int
    host_call_ps: int
    host_token_ps: int
    asynchronous: bool
    copy_ps: int
    copy_block_ps: int  # a block on the link
    client_ps: int

    def of_step(
        self, chunks: Iterable[tuple[int, int]], contexts: Iterable[int], *, admitted: int = 0, completed: int = 0
    ) -> int:
        """Picoseconds of one step.

        `chunks` are (tokens computed now, tokens before them) of the prefilling calls; `contexts` are the tokens that
        each decoding call attends to. Of the calls, `admitted` were admitted to this step, and of `completed` it
        computes the last token of the prompt, so that they, too, get a token.
        """
        chunks, contexts = tuple(chunks), tuple(contexts)
        device_ps = self.of_device(chunks, contexts)
        host_ps = self.of_host(admitted, len(contexts) + completed)
        return max(device_ps, host_ps) if self.asynchronous else device_ps + host_ps

    def of_host(self, admitted: int, sampled: int) -> int:
        """Picoseconds of the engine's own work on the host, for so many calls admitted and tokens sampled."""
        return self.host_call_ps * admitted + self.host_token_ps * sampled

    def of_device(self, chunks: Sequence[tuple[int, int]], contexts: Sequence[int]) -> int:
        """Picoseconds of a step on the device."""
        prefill_tokens = sum(tokens for tokens, _ in chunks)
        attended = sum(tokens * before + tokens * (tokens + 1) // 2 for tokens, before in chunks)
        tokens = prefill_tokens + len(contexts)
        return (
            self.step_ps
            + max(self.weights_ps(tokens), self.token_ps * tokens)
            + self.prefill_token_ps * prefill_tokens
            + self.prefill_context_token_ps * sum(before for _, before in chunks)
            + self.attention_ps * attended
            + self.decode_call_ps * len(contexts)
            + self.context_token_ps * sum(contexts)
            + self._in_window(chunks, contexts)
        )

    def weights_ps(self, tokens: int) -> int:
        """Picoseconds of reading the weights that so many tokens touch."""
        experts_ps = self.experts_ps
        return self.floor_ps + experts_ps[min(tokens, len(experts_ps) - 1)] if experts_ps else self.floor_ps

    def _in_window(self, chunks: Sequence[tuple[int, int]], contexts: Sequence[int]) -> int:
        """Picoseconds of the attention of windowed layers."""
        window = self.window
        if window is None:
            return 0
        attended = sum(window.pairs(before, tokens) for tokens, before in chunks)
        seen = sum(window.seen(context) for context in contexts)
        return self.window_attention_ps * attended + self.window_context_token_ps * seen


def ps(seconds: float) -> int:
    """Whole picoseconds, the nearest."""
    return round(seconds * PS_PER_S)


def experts_ps(experts: int, experts_per_token: int, all_ps: int) -> tuple[int, ...]:
    """[n]: picoseconds of reading the experts that n tokens touch, of which each chooses so many at random.

    All would be 1 - (1 - experts_per_token / experts) ** n of the experts; in whole numbers, so that it is the same on
    every machine, until less than a picosecond is missing.
    """
    if not all_ps:
        return ()
    found, missed = [0], _ONE
    while found[-1] < all_ps:
        missed = missed * (experts - experts_per_token) // experts
        found.append(all_ps - (all_ps * missed >> _ONE_BITS))
    return tuple(found)


def seconds(ps: int) -> float:
    """So many picoseconds, at least 0, as the nearest float.

    Compiled code turns both whole numbers into floats before it divides: large ones are left to Python itself.
    """
    return ps / PS_PER_S if ps <= EXACT_IN_FLOAT else PS_PER_S.__rtruediv__(ps)
