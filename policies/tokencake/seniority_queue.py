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
        self._factors: list[float] = []  # (1 + rank) ** age_power, by rank, as far as they were needed
        self._numbers: dict[AppId, int] = {}  # of live applications, as they started
        self._live: list[int] = []
        self._waiting: dict[int, list[WaitingCall]] = {}  # by the application's number
        self._with_calls: list[int] = []  # the numbers of those that have waiting calls
        self._running: dict[int, int] = {}  # running calls, by the application's number
        self._with_both: list[int] = []  # the numbers of those that have waiting and running calls
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
            self._running.pop(number, None)

    def put(self, app: AppId, waiting: WaitingCall) -> None:
        """Add a call. It is left out if its application has ended."""
        number = self._numbers.get(app)
        if number is None:
            return
        calls = self._waiting.get(number)
        if calls is None:
            calls = self._waiting[number] = []
            insort(self._with_calls, number)
            if number in self._running:
                insort(self._with_both, number)
        insort(calls, waiting)
        insort(self._sizes, waiting.size)

    def remove(self, app: AppId, waiting: WaitingCall) -> None:
        """Take a call out, if it is in."""
        number = self._numbers.get(app)
        calls = None if number is None else self._waiting.get(number)
        if number is None or calls is None:
            return
        at = bisect_left(calls, waiting)
        if at < len(calls) and calls[at] == waiting:
            self._take_out(number, waiting)

    def runs(self, app: AppId) -> None:
        """One more call of the application runs."""
        number = self._numbers.get(app)
        if number is None:
            return
        calls = self._running.get(number, 0)
        self._running[number] = calls + 1
        if not calls and number in self._waiting:
            insort(self._with_both, number)

    def runs_no_more(self, app: AppId) -> None:
        """One call less of the application runs."""
        number = self._numbers.get(app)
        if number is None:
            return
        self._running[number] -= 1
        if not self._running[number]:
            del self._running[number]
            if number in self._waiting:
                del self._with_both[bisect_left(self._with_both, number)]

    def rank(self, app: AppId) -> int:
        """How many live applications started before this one; 0 if it is not live."""
        number = self._numbers.get(app)
        return 0 if number is None else bisect_left(self._live, number)

    def weight(self, rank: int, size: float) -> float:
        """What calls are ordered by, the smallest first."""
        while rank >= len(self._factors):
            factor: float = (1 + len(self._factors)) ** self._age_power
            self._factors.append(factor)
        return size * self._factors[rank]

    def __iter__(self) -> Iterator[tuple[float, CallId]]:
        """Weights and calls, the smallest first, then the first that came."""
        return self._in_order(self._with_calls)

    def related(self) -> Iterator[tuple[float, CallId]]:
        """Of these, the calls of applications that have a running call."""
        return self._in_order(self._with_both)

    def _in_order(self, numbers: Sequence[int]) -> Iterator[tuple[float, CallId]]:
        """The waiting calls of these applications, which are given in the order in which they started."""
        heads: list[tuple[float, int, int, int, CallId]] = []  # weight, call's number; application's, and place there
        next_app = 0
        while True:
            while next_app < len(numbers):
                number = numbers[next_app]
                rank = bisect_left(self._live, number)
                if heads and self.weight(rank, self._sizes[0]) > heads[0][0]:
                    break  # nothing of it, or of those that started later, can be smaller
                first = self._waiting[number][0]
                heappush(heads, (self.weight(rank, first.size), first.number, number, 0, first.call))
                next_app += 1
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
            if number in self._running:
                del self._with_both[bisect_left(self._with_both, number)]
