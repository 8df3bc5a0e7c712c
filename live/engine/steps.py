"""What a step of vLLM computes, in the four sums that a machine's step time is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Sums(NamedTuple):
    """See `traces.events.Stepped`."""

    prefill_tokens: int
    attended_tokens: int
    decode_calls: int
    context_tokens: int


def sums_of(output: Any, requests: Mapping[str, Any]) -> Sums:
    """The sums of vLLM's `SchedulerOutput`, right after it was scheduled."""
    prefill_tokens = attended_tokens = decode_calls = context_tokens = 0
    for request_id, tokens in output.num_scheduled_tokens.items():
        request = requests[request_id]
        before = request.num_computed_tokens - tokens  # scheduling has counted them already
        if tokens == 1 and before >= request.num_prompt_tokens:
            decode_calls += 1
            context_tokens += before
        else:
            prefill_tokens += tokens
            attended_tokens += tokens * before + tokens * (tokens + 1) // 2
    return Sums(prefill_tokens, attended_tokens, decode_calls, context_tokens)
