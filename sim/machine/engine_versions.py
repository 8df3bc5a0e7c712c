"""The versions of vLLM whose scheduler is simulated, and each rule that some of them have otherwise.

A version is simulated if its scheduler was driven beside the simulator in virtual time, step by step. That takes its
sources alone. The default is the newest that has a build for CPUs, so that tests run all of it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ...traces.errors import MachineError
from ...traces.files.fields import shown

ENGINE_VERSIONS: Final = ("0.26", "0.27", "0.28", "0.29", "0.30", "0.31", "0.32", "0.33")  # in order
DEFAULT_ENGINE_VERSION: Final = "0.32"


class NewRule(NamedTuple):
    """A rule of vLLM's scheduler, and the first version that has it."""

    since: str

    def holds(self, engine_version: str) -> bool:
        """Whether a version, one of `ENGINE_VERSIONS`, has it."""
        return ENGINE_VERSIONS.index(engine_version) >= ENGINE_VERSIONS.index(self.since)


# `prefix_cache_retention_interval` is 0 by default: of a sliding window or a Mamba group only what a later prompt is
# likely to resume at stays in the cache. Before, all of it did.
CHECKPOINTS_ARE_SPARSE: Final = NewRule(since="0.29")

# A call that is passed over, because it waits for a copy or lets others go first, keeps its place among those that
# wait. Before, it went into a queue that was asked first, and so overtook those that were preempted later.
PASSED_OVER_CALLS_KEEP_THEIR_PLACE: Final = NewRule(since="0.31")

# `long_prefill_token_threshold` does not cut the prompt of a call beside which none runs or waits. Before, it did.
LONE_PROMPTS_ARE_NOT_CUT: Final = NewRule(since="0.31")


def simulated_version(vllm: object) -> str:
    """The `engine_version` of a vLLM, such as 0.32 for 0.32.1. Raises MachineError if it is none of those."""
    found = re.match(r"[0-9]{1,9}\.[0-9]{1,9}(?![0-9])", vllm) if isinstance(vllm, str) else None
    if found is None or found[0] not in ENGINE_VERSIONS:
        raise MachineError(
            f"vllm: expected a version from {ENGINE_VERSIONS[0]} to {ENGINE_VERSIONS[-1]}, got {shown(vllm)}"
        )
    return found[0]
