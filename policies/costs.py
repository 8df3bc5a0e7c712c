"""What a policy believes that copies and prefills cost: straight lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearCosts:
    """Costs that are linear in blocks and tokens, quadratic only in attention. Implements `Costs`.

    Prefill is what the tokens add to steps that run anyway: neither a step's fixed cost nor the reading of the weights
    is in it, since the decoding calls of the same steps pay for those.
    """

    copy_s: float  # a copy job, whatever its size
    copy_block_s: float  # a block on the link, either way
    prefill_token_s: float  # a prompt token, without its attention
    attention_s: float  # a prompt token x a token that it attends to

    def offload_s(self, blocks: int) -> float:
        """Seconds to copy `blocks` blocks to the host over an idle link."""
        return self._copy_s(blocks)

    def upload_s(self, blocks: int) -> float:
        """Seconds to copy `blocks` blocks to the GPU over an idle link."""
        return self._copy_s(blocks)

    def prefill_s(self, tokens: int, context_tokens: int) -> float:
        """Seconds to compute `tokens` prompt tokens that follow `context_tokens` cached ones."""
        attended = tokens * context_tokens + tokens * (tokens + 1) / 2
        return self.prefill_token_s * tokens + self.attention_s * attended

    def _copy_s(self, blocks: int) -> float:
        return self.copy_s + self.copy_block_s * blocks if blocks else 0.0
