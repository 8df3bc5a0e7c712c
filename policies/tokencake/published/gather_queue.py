"""Stalled agents whose copies may come back: those whose time has come, and the others by when it will."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from ....traces.apps import AgentId

ROUNDING_S = 1e-3  # so much earlier an agent is looked at: to look too early does no harm


class GatherQueue:
    """A plan looks at those alone whose time has come, however many are on the host."""

    def __init__(self) -> None:
        self._near: list[tuple[int, AgentId]] = []  # by number
        self._far: list[tuple[float, int, AgentId]] = []  # by the time from which on they gather blocks
        self._places: dict[AgentId, tuple[float, int, AgentId]] = {}  # of both

    def __bool__(self) -> bool:
        return bool(self._places)

    def put(self, agent: AgentId, number: int, from_s: float) -> None:
        """Add an agent that may gather from then on, or give it another time. No two have the same number."""
        self.remove(agent)
        place = self._places[agent] = (from_s, number, agent)
        insort(self._far, place)

    def remove(self, agent: AgentId) -> None:
        """Take an agent out, if it is in."""
        place = self._places.pop(agent, None)
        if place is None:
            return
        at = bisect_left(self._far, place)
        if at < len(self._far) and self._far[at] == place:
            del self._far[at]
        else:
            del self._near[bisect_left(self._near, place[1:])]

    def near(self, now_s: float) -> Sequence[tuple[int, AgentId]]:
        """Numbers and names of those whose time has come, or is about to, by number."""
        come = 0
        for from_s, number, agent in self._far:
            if from_s > now_s + ROUNDING_S:
                break
            insort(self._near, (number, agent))
            come += 1
        del self._far[:come]
        return self._near

    def far(self) -> Sequence[tuple[float, int, AgentId]]:
        """Times, numbers and names of the others, by time."""
        return self._far
