"""Prefetch at pause: write-through to the host, and back to the GPU as soon as there is idle room.

Source: a comment on vLLM's request for comments on programmable KV caches, which reports that such a prefetch keeps 95
to 100 % of what an oracle gains, where uploads by a fixed lead or a moving average keep 5 to 50 %.

Here it is Tokencake's temporal half alone, beside the engine's write-through: prompts are saved as `native-offload`
saves them, whoever they belong to; when a call ends its answer is saved, too, and the context is held on the host while
the tool runs. The upload begins at the first step of the pause in which room is left that is promised to no running
call, and is given up when the first waiting call would fit into its room. `tokencake:upload=pause` is the same with
Tokencake's spatial half and without what belongs to nobody.
"""

from __future__ import annotations

from dataclasses import replace

from ..interface import Plan, View
from ..tokencake.options import Options
from ..tokencake.policy import Tokencake


class PrefetchAtPause:
    """Native offloading, and contexts back on the GPU during the pause, as soon as there is room."""

    def __init__(self) -> None:
        self._policy = Tokencake(Options(space=False, upload="pause"))

    @property
    def listens_to(self) -> frozenset[type]:
        return self._policy.listens_to

    def plan(self, view: View) -> Plan:
        """Tokencake's temporal half, and write-through."""
        return replace(self._policy.plan(view), write_through="prompts")
