"""Whether an engine, simulated or real, can ever serve an application."""

from __future__ import annotations

from typing import Protocol

from .apps import Application, Call
from .arithmetic import div_ceil


class Limits(Protocol):
    """What bounds the calls that an engine can serve. A simulated machine is one."""

    @property
    def gpu_blocks(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def max_context_tokens(self) -> int: ...  # of a prompt and its answer


def problem(application: Application, limits: Limits) -> str | None:
    """Why an engine can never serve an application; None if it can."""
    for call in application.calls:
        tokens = call.prompt.tokens + call.max_output_tokens
        if tokens > limits.max_context_tokens:
            limit = limits.max_context_tokens
            return f"call {call.id!r}: {tokens} tokens of prompt and answer, but the model's context is {limit}"
        blocks = div_ceil(_stored(call), limits.block_tokens)
        if blocks > limits.gpu_blocks:
            return f"call {call.id!r}: {tokens} tokens need {blocks} blocks, but the GPU has {limits.gpu_blocks}"
    return None


def fits(application: Application, limits: Limits) -> bool:
    """Whether an engine can serve all calls of an application."""
    return problem(application, limits) is None


def _stored(call: Call) -> int:
    """Tokens of a call that need a place: a prompt, and of the answer all but the last."""
    return call.prompt.tokens + call.output_tokens - 1
