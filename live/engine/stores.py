"""What is written through: blocks of a run's calls that are stored on the host as they are computed."""

from __future__ import annotations

from collections.abc import Mapping

from ...policies.execution.copy_rules import tokens_left_behind, tokens_to_store
from ...policies.interface import Extent
from .memory.copies import Copies
from .requests import EngineCall


class Stores:
    """Calls whose blocks are to be stored: of prompts, or of whole contexts. All of it is of one run.

    `extent` is that of the plan that holds; None if nothing is written through.
    """

    def __init__(self, copies: Copies, block_tokens: int) -> None:
        self._copies = copies
        self._block_tokens = block_tokens
        self.extent: Extent | None = None
        self.ended: list[EngineCall] = []  # whose contexts are to be stored at the next boundary
        self._prefilling: dict[str, EngineCall] = {}  # by request, those that have not computed their prompts

    def call_started(self, call: EngineCall) -> None:
        """A call computes its prompt from now on."""
        self._prefilling[call.vllm.request_id] = call

    def call_stopped(self, call: EngineCall) -> None:
        """A call has ended or lost its blocks."""
        self._prefilling.pop(call.vllm.request_id, None)

    def call_finished(self, call: EngineCall) -> None:
        """A call has ended: what the host has of it was used now, what it lacks is stored at the next boundary."""
        if self.extent is not None:
            self.ended.append(call)
            self._copies.used(call, self._stored_blocks(call, self.extent))

    def store_ended(self, now_s: float) -> None:
        """Copy what the calls leave that have ended since the last boundary."""
        ended, self.ended = self.ended, []
        if self.extent is None:
            return
        for call in ended:
            self._copies.store_rest(call, self._stored_blocks(call, self.extent), now_s)

    def _stored_blocks(self, call: EngineCall, extent: Extent) -> int:
        """How many blocks of a call that has ended are written through."""
        request = call.vllm
        tokens = tokens_left_behind(extent, request.num_prompt_tokens, request.num_output_tokens)
        return min(tokens // self._block_tokens, len(request.block_hashes))

    def store_computed(self, scheduled_tokens: Mapping[str, int], now_s: float) -> None:
        """When the step ends that computes these prompts' next tokens, their full blocks are copied to the host."""
        extent = self.extent
        if extent is None:
            return
        for request_id, call in list(self._prefilling.items()):
            if request_id not in scheduled_tokens:
                continue
            request = call.vllm
            upto = request.num_computed_tokens  # scheduling has counted the step's tokens already
            if upto >= call.target:
                del self._prefilling[request_id]
            tokens = tokens_to_store(extent, upto, request.num_prompt_tokens)
            blocks = min(tokens // self._block_tokens, len(request.block_hashes))  # a token in flight is not known yet
            if blocks > call.stored:
                self._copies.store(call, blocks, now_s)
