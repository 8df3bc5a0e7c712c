"""Write-through: what calls compute is copied to the host as it comes, and what is left of it when they end."""

from __future__ import annotations

from collections.abc import Mapping

from ....policies.execution.copy_rules import tokens_left_behind, tokens_to_store
from ....policies.interface import Extent
from ..memory.copies import Copies
from ..requests import EngineCall


class HostWriter:
    """Decides how many blocks of which call are written. The extent is the current plan's."""

    def __init__(self, copies: Copies, block_tokens: int) -> None:
        self._copies = copies
        self._block_tokens = block_tokens
        self.ended: list[EngineCall] = []  # calls whose contexts are still to be stored

    def computed(self, prefill_tokens: Mapping[EngineCall, int], extent: Extent, now_ps: int, end_ps: int) -> None:
        """When the step ends that computes these prompts' next tokens, their full blocks are copied to the host."""
        for call, chunk_tokens in prefill_tokens.items():
            tokens = tokens_to_store(extent, call.num_computed_tokens + chunk_tokens, call.prompt_tokens)
            if tokens // self._block_tokens > call.stored_blocks:
                self._copies.store(call, tokens // self._block_tokens, now_ps, end_ps)

    def finished(self, call: EngineCall, extent: Extent) -> None:
        """A call has ended: what it leaves is stored before the next schedule."""
        self.ended.append(call)
        self._copies.used(call, self._blocks(call, extent))

    def store_ended(self, extent: Extent | None, now_ps: int, from_ps: int) -> None:
        """Store what the calls leave that have `ended` since this was last asked."""
        ended, self.ended = self.ended, []
        if extent is None:
            return
        for call in ended:
            self._copies.store_rest(call, self._blocks(call, extent), now_ps, from_ps)

    def _blocks(self, call: EngineCall, extent: Extent) -> int:
        """How many blocks of a call that has ended are stored."""
        return tokens_left_behind(extent, call.prompt_tokens, call.output_tokens) // self._block_tokens
