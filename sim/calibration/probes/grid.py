"""The sizes that an engine can be measured with, and the probes of each kind of steps in them."""

from __future__ import annotations

from ....traces.arithmetic import div_ceil
from ..engine_info import MachineLimits
from ..step_mix import Shape
from .chain import JOINING_TOKENS, Probe
from .effort import Effort

SHARE_OF_CACHE = 0.8  # of the GPU's blocks that contexts may take, so that they stay cached


class ProbeGrid:
    """The sizes that an engine can be measured with."""

    def __init__(self, limits: MachineLimits, effort: Effort) -> None:
        self.effort = effort
        self.budget_tokens = limits.step_budget_tokens
        self._block_tokens = limits.block_tokens
        self._max_running = limits.max_running
        self._room_tokens = int(SHARE_OF_CACHE * limits.gpu_blocks) * limits.block_tokens
        self.longest_tokens = min(limits.max_context_tokens, self._room_tokens)
        self._added_tokens = JOINING_TOKENS + effort.decode_steps + 1  # by a call that decodes behind a context
        self.contexts = [
            context for context in effort.context_tokens if self._held(context) <= self.longest_tokens
        ] or [limits.block_tokens]
        self.prefills = [tokens for tokens in effort.prefill_tokens if tokens + 1 <= self.longest_tokens]

    def batches(self, context_tokens: int) -> list[int]:
        """Numbers of calls that can decode behind contexts of this length: 1, 2, 4, …"""
        most = min(
            self._max_running,
            self.effort.largest_batch,
            self.effort.cached_tokens // context_tokens,
            self._room_tokens // self._held(context_tokens),
        )
        return [1 << power for power in range(max(1, most).bit_length())]

    def probe_of(self, shape: Shape) -> Probe | None:
        """What measures steps of this shape, or of what the engine can hold of it."""
        block = self._block_tokens
        context = max(0, min(shape.context_tokens, self.longest_tokens - self._held(0))) // block * block
        prefill = min(shape.prefill_tokens, max(1, self.budget_tokens - shape.decode_calls), self.longest_tokens // 2)
        before = min(shape.before_tokens, self.longest_tokens - prefill - 1) // block * block
        room_tokens = self._room_tokens - (self._held(before + prefill) if prefill else 0)
        calls = max(
            0,
            min(shape.decode_calls, self._max_running - bool(prefill), self._side_by_side(shape, context, room_tokens)),
        )
        asked = shape.decode_calls + bool(prefill)
        contexts = div_ceil(min(shape.contexts, asked) * (calls + bool(prefill)), max(1, asked))
        if not prefill:
            return Probe(context, calls, self.effort.decode_steps, (), contexts=contexts) if calls else None
        if calls:  # they decode once a first prompt has joined them
            return Probe(context, calls, 4, (JOINING_TOKENS, prefill), before, contexts)
        return Probe(0, 0, 0, (prefill,), before)

    def _side_by_side(self, shape: Shape, context_tokens: int, room_tokens: int) -> int:
        """How many calls have room behind contexts of a length, as many of them shared as the shape has it."""
        alone = room_tokens // self._held(context_tokens)
        if shape.contexts >= shape.decode_calls or not alone:
            return alone
        share = shape.contexts / shape.decode_calls
        return max(alone, int((room_tokens - context_tokens) / (share * context_tokens + self._held(0))))

    def _held(self, context_tokens: int) -> int:
        """Tokens that a context and a call behind it take room for: whole blocks."""
        blocks = div_ceil(context_tokens, self._block_tokens) + div_ceil(self._added_tokens, self._block_tokens) + 1
        return blocks * self._block_tokens


def prefills(grid: ProbeGrid) -> list[Probe]:
    """Cold ones, and some of at most a step behind cached contexts."""
    cold = [Probe(0, 0, 0, (tokens,)) for tokens in grid.prefills]
    behind = [
        Probe(0, 0, 0, (tokens,), context)
        for context in grid.contexts
        for tokens in grid.prefills[::2]
        if tokens <= grid.budget_tokens and context + tokens + 1 <= grid.longest_tokens
    ]
    return cold + behind


def decoding(grid: ProbeGrid) -> list[Probe]:
    return [
        Probe(context, calls, grid.effort.decode_steps, ())
        for context in grid.contexts
        for calls in grid.batches(context)
    ]


def mixed(grid: ProbeGrid) -> list[Probe]:
    context = grid.contexts[0]
    beside = tuple(tokens for tokens in grid.prefills if 4 * tokens <= grid.budget_tokens)
    return [Probe(context, calls, len(beside) + 2, beside) for calls in grid.batches(context)[1::2]]
