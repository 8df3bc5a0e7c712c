"""Waiting calls by the seniority of their applications and their own size, found one after another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import NamedTuple

from ...traces.apps import AppId, CallId


class WaitingCall(NamedTuple):
    """A call that waits and has no blocks yet. Within an application, ordered by size, then by arrival."""

    size: float
    number: int
    call: CallId


class SeniorityQueue:
    """Waiting calls in the order of their weights, found one after another: a plan pays for the calls that it reads.

    The weight of a call depends on the rank of its application, and all ranks fall when an older application ends. So
    the queue keeps two orders that do not change: of the calls within each application, and of the applications.
    """

    def __init__(self, age_power: float) -> None:
        self._age_power = age_power
        self._numbers: dict[AppId, int] = {}  # of live applications, as they started
        self._live: list[int] = []
        self._waiting: dict[int, list[WaitingCall]] = {}  # by the application's number
        self._with_calls: list[int] = []  # the numbers of those that have waiting calls
        self._sizes: list[float] = []  # of all waiting calls
        self._started = count()

    def app_started(self, app: AppId) -> None:
        if app not in self._numbers:
            number = self._numbers[app] = next(self._started)
            self._live.append(number)

    def app_finished(self, app: AppId) -> None:
        number = self._numbers.pop(app, None)
        if number is not None:
            del self._live[bisect_left(self._live, number)]
            for waiting in tuple(self._waiting.get(number, ())):
                self._take_out(number, waiting)

    def put(self, app: AppId, waiting: WaitingCall) -> None:
        """Add a call. It is left out if its application has ended."""
        number = self._numbers.get(app)
        if number is None:
            return
        if number not in self._waiting:
            self._waiting[number] = []
            insort(self._with_calls, number)
        insort(self._waiting[number], waiting)
        insort(self._sizes, waiting.size)

    def remove(self, app: AppId, waiting: WaitingCall) -> None:
        """Take a call out, if it is in."""
        number = self._numbers.get(app)
        if number is not None and waiting in self.of(app):
            self._take_out(number, waiting)

    def of(self, app: AppId) -> Sequence[WaitingCall]:
        """The waiting calls of an application."""
        return self._waiting.get(self._numbers.get(app, -1), ())

    def rank(self, app: AppId) -> int:
        """How many live applications started before this one; 0 if it is not live."""
        number = self._numbers.get(app)
        return 0 if number is None else bisect_left(self._live, number)

    def weight(self, rank: int, size: float) -> float:
        """What calls are ordered by, the smallest first."""
        weight: float = size * (1 + rank) ** self._age_power
        return weight

    def __iter__(self) -> Iterator[tuple[float, CallId]]:
        """Weights and calls, the smallest first, then the first that came."""
        heads: list[tuple[float, int, int, int, CallId]] = []  # weight, call's number; application's, and place there
        coming = iter(self._with_calls)
        number = next(coming, None)
        while True:
            while number is not None:
                rank = bisect_left(self._live, number)
                if heads and self.weight(rank, self._sizes[0]) > heads[0][0]:
                    break  # nothing of it, or of those that started later, can be smaller
                first = self._waiting[number][0]
                heappush(heads, (self.weight(rank, first.size), first.number, number, 0, first.call))
                number = next(coming, None)
            if not heads:
                return
            weight, _, of, at, call = heads[0]
            yield weight, call
            calls, at = self._waiting[of], at + 1
            if at == len(calls):
                heappop(heads)
                continue
            following = calls[at]
            own = self.weight(bisect_left(self._live, of), following.size)
            heapreplace(heads, (own, following.number, of, at, following.call))

    def _take_out(self, number: int, waiting: WaitingCall) -> None:
        calls = self._waiting[number]
        del calls[bisect_left(calls, waiting)]
        del self._sizes[bisect_left(self._sizes, waiting.size)]
        if not calls:
            del self._waiting[number]
            del self._with_calls[bisect_left(self._with_calls, number)]
