"""The scores of live calls at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from .agent_types import AgentType
from .branches import Branches, JoinGroup
from .queue_state import CallRecord


class ScoreTable:
    """Each score is worked out once, when it is first asked for."""

    __slots__ = ("_best", "_branches", "_groups", "_now_s", "_own")

    def __init__(self, now_s: float, branches: Mapping[JoinGroup, Branches]) -> None:
        self._now_s = now_s
        self._branches = branches  # live calls by join group
        self._own: dict[CallRecord, float] = {}
        self._groups: dict[JoinGroup, float] = {}
        self._best: dict[AgentType, float] = {}

    def own(self, call: CallRecord) -> float:
        """The call's own score; its wait stops counting when it is admitted."""
        score = self._own.get(call)
        if score is None:
            waited_s = self._now_s - call.since_s if call.waited_s is None else call.waited_s
            score = self._own[call] = call.drift.points(self._now_s - call.started_s, waited_s)
        return score

    def rank(self, call: CallRecord) -> float:
        """What it is ordered by: a branch of a join group counts as much as the group's most urgent live call."""
        group = call.group
        if group is None:
            return self.own(call)
        score = self._groups.get(group)
        if score is None:
            score = self._groups[group] = self._branches[group].highest(self._now_s)
        return score

    def best(self, kind: AgentType, waiting: Iterable[CallRecord], above: float) -> float:
        """The highest rank of a type's waiting calls, or the first one found that is above `above`."""
        best = self._best.get(kind, -inf)
        if best <= above:
            for call in waiting:
                best = max(best, self.rank(call))
                if best > above:
                    break
            self._best[kind] = best
        return best
