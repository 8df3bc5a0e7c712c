"""WaitingCall calls by the seniority of their applications and their own size, found one after another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import NamedTuple

from ...traces.apps import AppId, CallId


class WaitingCall(NamedTuple):
    """A call that waits and has no blocks yet. Of one application the smallest goes first, then the first that came."""

    size: float
    number: int
    call: CallId


class SeniorityQueue:
    """WaitingCall calls by application, in order of weight, found one after another: as far as somebody asks.

    All calls of an application have its rank, and the ranks of all fall when an old one ends. So what is kept is their
    order within applications, and that of the applications.
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
        """A call waits. One of an application that is not live has no place here."""
        number = self._numbers.get(app)
        if number is None:
            return
        if number not in self._waiting:
            self._waiting[number] = []
            insort(self._with_calls, number)
        insort(self._waiting[number], waiting)
        insort(self._sizes, waiting.size)

    def remove(self, app: AppId, waiting: WaitingCall) -> None:
        """It waits no longer, or has blocks. Nothing if it is not there."""
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
