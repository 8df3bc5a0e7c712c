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
    """A rule of vLLM's scheduler, the first version that has it, and the first that has it no more, if there is one."""

    since: str
    gone_since: str | None = None

    def holds(self, engine_version: str) -> bool:
        """Whether a version, one of `ENGINE_VERSIONS`, has it."""
        at = ENGINE_VERSIONS.index(engine_version)
        gone = self.gone_since is not None and at >= ENGINE_VERSIONS.index(self.gone_since)
        return at >= ENGINE_VERSIONS.index(self.since) and not gone


# `prefix_cache_retention_interval` is 0 by default: of a sliding window or a Mamba group only what a later prompt is
# likely to resume at stays in the cache. Before, all of it did.
CHECKPOINTS_ARE_SPARSE: Final = NewRule(since="0.29")

# A call that is passed over, because it waits for a copy or lets others go first, keeps its place among those that
# wait. Before, it went into a queue that was asked first, and so overtook those that were preempted later.
PASSED_OVER_CALLS_KEEP_THEIR_PLACE: Final = NewRule(since="0.31")

# `long_prefill_token_threshold` does not cut the prompt of a call beside which none runs or waits. Before, it did.
LONE_PROMPTS_ARE_NOT_CUT: Final = NewRule(since="0.31")

# Mamba and delta-net groups: each state that a call does not need any more is given back. Before, those behind a place
# where none was kept stayed until the call ended, and in 0.26 a block wider than a step was never computed. Machines
# with such groups are refused there.
STATES_ARE_GIVEN_BACK: Final = NewRule(since="0.30")

# A prompt of whole blocks has a chunk that ends before its last one, where the same prompt finds a state when it comes
# again. Before, it missed.
CHUNKS_END_WHERE_A_PROMPT_RESUMES: Final = NewRule(since="0.32")

# The state at the end of a prompt is made known once more in each step that keeps it, and whoever hits it then waits
# for the next step. Else only those wait that hit it in the step that computes it.
STATES_ARE_MADE_KNOWN_AGAIN: Final = NewRule(since="0.32", gone_since="0.33")


def simulated_version(vllm: object) -> str:
    """The `engine_version` of a vLLM, such as 0.32 for 0.32.1. Raises MachineError if it is none of those."""
    found = re.match(r"[0-9]{1,9}\.[0-9]{1,9}(?![0-9])", vllm) if isinstance(vllm, str) else None
    if found is None or found[0] not in ENGINE_VERSIONS:
        raise MachineError(
            f"vllm: expected a version from {ENGINE_VERSIONS[0]} to {ENGINE_VERSIONS[-1]}, got {shown(vllm)}"
        )
    return found[0]
