"""The branches of a join group that are live, as far as their scores differ: however many, the highest is at hand."""

from __future__ import annotations

from bisect import bisect_left, insort

from ....traces.apps import AppId
from .score import Drift

JoinGroup = tuple[AppId, str]


class AlikeBranches:
    """Branches with the same drift: whoever waits for the longest, or waited, has the highest score."""

    __slots__ = ("since_s", "waited_s")

    def __init__(self) -> None:
        self.since_s: list[float] = []  # when those that wait began to, the first one first
        self.waited_s: list[float] = []  # how long those had to that were admitted, the shortest first


class Branches:
    """The live calls of a join group."""

    __slots__ = ("_alike", "_started_s")

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s  # their application
        self._alike: dict[Drift, AlikeBranches] = {}

    def __bool__(self) -> bool:
        return bool(self._alike)

    def add(self, drift: Drift, since_s: float, waited_s: float | None) -> None:
        """A call that waits since then, or that was admitted after such a wait."""
        alike = self._alike.get(drift)
        if alike is None:
            alike = self._alike[drift] = AlikeBranches()
        if waited_s is None:
            insort(alike.since_s, since_s)
        else:
            insort(alike.waited_s, waited_s)

    def remove(self, drift: Drift, since_s: float, waited_s: float | None) -> None:
        """Take out a call that was added so."""
        alike = self._alike[drift]
        if waited_s is None:
            del alike.since_s[bisect_left(alike.since_s, since_s)]
        else:
            del alike.waited_s[bisect_left(alike.waited_s, waited_s)]
        if not (alike.since_s or alike.waited_s):
            del self._alike[drift]

    def highest(self, now_s: float) -> float:
        """The highest score among them. There must be one."""
        elapsed_s = now_s - self._started_s
        highest: float | None = None
        for drift, alike in self._alike.items():
            waited_s = alike.waited_s[-1] if alike.waited_s else 0.0
            if alike.since_s:
                waited_s = max(waited_s, now_s - alike.since_s[0])
            points = drift.points(elapsed_s, waited_s)
            if highest is None or points > highest:
                highest = points
        assert highest is not None
        return highest
