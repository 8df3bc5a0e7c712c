"""Waiting calls by the seniority of their applications and their own size, found one after another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final, NamedTuple

from ...traces.apps import AppId, CallId
from .waiting_apps import WaitingApps

# Weight, call's number, A_CALL, application's number, place there, and call; or, of a stretch of applications, of which
# not all were looked at: least weight of the rest, A_STRETCH, level, start, place of the next member, and no name.
Head = tuple[float, int, int, int, int, CallId]

A_CALL: Final = -1  # in place of a level
A_STRETCH: Final = -1  # in place of a call's number: it is opened before calls of the same weight are taken


class WaitingCall(NamedTuple):
    """A call that waits and has no blocks yet. Within an application, ordered by size, then by arrival."""

    size: float
    number: int
    call: CallId


class SeniorityQueue:
    """Waiting calls in the order of their weights, found one after another: a plan pays for the calls that it reads.

    The weight of a call depends on the rank of its application, and all ranks fall when an older application ends. So
    the queue keeps two orders that do not change: of the calls within each application, and of the applications. Where
    sizes differ much, stretches of applications whose calls are too large are passed over.
    """

    def __init__(self, age_power: float) -> None:
        self._age_power = age_power
        self._factors: list[float] = []  # (1 + rank) ** age_power, by rank, as far as they were needed
        self._numbers: dict[AppId, int] = {}  # of live applications, as they started
        self._live: list[int] = []
        self._waiting: dict[int, list[WaitingCall]] = {}  # by the application's number
        self._with_calls = WaitingApps()
        self._running: dict[int, int] = {}  # running calls, by the application's number
        self._with_both = WaitingApps()  # that have waiting and running calls
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
        insort(calls, waiting)
        self._changed(number)

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
            self._changed(number)

    def runs_no_more(self, app: AppId) -> None:
        """One call less of the application runs."""
        number = self._numbers.get(app)
        if number is None:
            return
        self._running[number] -= 1
        if not self._running[number]:
            del self._running[number]
            if number in self._waiting:
                self._with_both.remove(number)

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

    def _in_order(self, apps: WaitingApps) -> Iterator[tuple[float, CallId]]:
        """The waiting calls of these applications."""
        heads: list[Head] = []
        top = apps.top
        for start, stretch in apps.levels[top].items():
            heappush(heads, (self._least_weight(start, stretch.sizes[0]), A_STRETCH, top, start, 0, ""))
        while heads:
            weight, _, level, of, at, call = heads[0]
            if level != A_CALL:
                heappop(heads)
                self._open(apps, level, of, at, heads)
                continue
            yield weight, call
            calls, at = self._waiting[of], at + 1
            if at == len(calls):
                heappop(heads)
                continue
            following = calls[at]
            own = self._least_weight(of, following.size)
            heapreplace(heads, (own, following.number, level, of, at, following.call))

    def _open(self, apps: WaitingApps, level: int, start: int, at: int, heads: list[Head]) -> None:
        """Add the members of a stretch, from a place on, until none of the rest can be smaller than the first head."""
        stretch = apps.levels[level][start]
        members, size = stretch.members, stretch.sizes[0]
        while at < len(members):
            member = members[at]
            rank = bisect_left(self._live, member)
            if heads:
                bound = self.weight(rank, size)
                if bound > heads[0][0]:
                    heappush(heads, (bound, A_STRETCH, level, start, at, ""))
                    return
            if level:
                least = apps.levels[level - 1][member].sizes[0]
                heappush(heads, (self.weight(rank, least), A_STRETCH, level - 1, member, 0, ""))
            else:
                first = self._waiting[member][0]
                heappush(heads, (self.weight(rank, first.size), first.number, A_CALL, member, 0, first.call))
            at += 1

    def _least_weight(self, number: int, size: float) -> float:
        """Of a call of this size, if its application has this number or a higher one."""
        return self.weight(bisect_left(self._live, number), size)

    def _changed(self, number: int) -> None:
        """An application's waiting calls, or whether it has running ones."""
        size = self._waiting[number][0].size
        self._with_calls.put(number, size)
        if number in self._running:
            self._with_both.put(number, size)

    def _take_out(self, number: int, waiting: WaitingCall) -> None:
        calls = self._waiting[number]
        del calls[bisect_left(calls, waiting)]
        if calls:
            self._changed(number)
            return
        del self._waiting[number]
        self._with_calls.remove(number)
        if number in self._running:
            self._with_both.remove(number)
