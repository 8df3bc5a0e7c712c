"""Which policies have a host half, and which fields of a plan act in vLLM's CPU tier."""

from __future__ import annotations

from ...policies.registry import is_ours
from ...traces.errors import EngineError, PolicyError
from ..engine.control.versions import numbers_of

FIRST_VLLM = (0, 31)  # which tells a cache policy of the end of a request
ACTING = ("offload", "forget", "evict")  # fields of a plan
# Their plans say who starts, or what stays on the GPU, and nothing of what the host keeps.
WITHOUT_HOST_HALF = frozenset({"tokencake-space", "continuum", "autellix", "saga", "thunderagent"})


def check_host_half(spec: str) -> None:
    """Raise `PolicyError` for a policy of ours that leaves the tier as it is, though that is not what it is for."""
    name = spec.partition(":")[0]
    if is_ours(spec) and name in WITHOUT_HOST_HALF:
        raise PolicyError(
            f"policy {name}: its plans say nothing of what the host keeps: expected another one as a cache policy"
        )


def check_tier(version: str) -> None:
    """Raise `EngineError` for a vLLM whose cache policies cannot know whose calls end when."""
    numbers = numbers_of(version)
    if numbers is None or numbers < FIRST_VLLM:
        raise EngineError(
            f"vLLM {version} does not tell a cache policy when a request has ended:"
            f" expected vllm>={'.'.join(map(str, FIRST_VLLM))}"
        )


def what_acts(policy: str, host_blocks: int, block_tokens: int) -> str:
    """What is said when the tier begins."""
    return (
        f"tokencake: policy {policy} decides what goes from vLLM's CPU tier ({host_blocks} chunks of {block_tokens}"
        f" tokens): of its plans {', '.join(ACTING[:-1])} and {ACTING[-1]} act, and nothing else"
    )
