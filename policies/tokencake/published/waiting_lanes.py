"""The queue of waiting calls, in lanes: a plan looks at the heads of lanes that may fit, however many calls wait.

The calls of a lane need equally many blocks and never change places: they have the same hints, and their applications
started in the order in which the calls began to wait. So the first of a lane goes before the rest at any time. A call
that has nothing in common with others makes a lane by itself.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import count
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

from ....traces.apps import CallId
from .branches import JoinGroup
from .score import Drift

OrderClass = Drift | tuple[JoinGroup, Drift] | CallId


class Queued(Protocol):
    """What lanes must know of a waiting call."""

    id: CallId
    number: int  # calls that arrived before it
    need_blocks: int  # a lower bound of its demand
    total_blocks: int
    since_s: float  # in the queue since
    started_s: float  # its application
    order_class: OrderClass  # common to calls that never change places; its own id if there are no others


Call = TypeVar("Call", bound=Queued)
LaneKey = tuple[int, int, OrderClass]

_need = itemgetter(0)


class WaitingLane(Generic[Call]):
    """Calls with the same `need_blocks` and `total_blocks`, the most urgent first."""

    __slots__ = ("_places", "calls", "key", "need_blocks", "serial")

    def __init__(self, key: LaneKey, serial: int) -> None:
        self.key = key
        self.serial = serial
        self.need_blocks = key[0]
        self.calls: list[Call] = []
        self._places: list[tuple[float, int]] = []  # of the calls

    def insert(self, call: Call) -> bool:
        """Put a call into its place. False, and nothing done, if it might overtake another one."""
        calls = self.calls
        place = (call.since_s, call.number)
        i = bisect_left(self._places, place)
        if i and calls[i - 1].started_s > call.started_s:
            return False
        if i < len(calls) and calls[i].started_s < call.started_s:
            return False
        calls.insert(i, call)
        self._places.insert(i, place)
        return True

    def remove(self, call: Call) -> None:
        """Take a call out."""
        i = bisect_left(self._places, (call.since_s, call.number))
        del self.calls[i], self._places[i]


class WaitingLanes(Generic[Call]):
    """All waiting calls, by lane."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, WaitingLane[Call]] = {}
        self._of: dict[CallId, WaitingLane[Call]] = {}
        self._by_need: list[tuple[int, int, WaitingLane[Call]]] = []  # blocks, serial number, lane
        self._serial = count()

    def put(self, call: Call) -> None:
        """Add a call, or move it to where its bound and its order class belong now."""
        key = (call.need_blocks, call.total_blocks, call.order_class)
        before = self._of.get(call.id)
        if before is not None:
            if before.key == key:
                return
            self._leave(call, before)
        lane = self._lane(key)
        if not lane.insert(call):
            lane = self._lane((call.need_blocks, call.total_blocks, call.id))
            lane.insert(call)
        self._of[call.id] = lane

    def remove(self, call: Call) -> None:
        """A call left the queue."""
        self._leave(call, self._of.pop(call.id))

    def upto(self, blocks: int) -> list[WaitingLane[Call]]:
        """Lanes whose calls need at most so many blocks, as far as is known."""
        lanes = self._by_need
        if not lanes or lanes[0][0] > blocks:
            return []
        return [entry[2] for entry in lanes[: bisect_right(lanes, blocks, key=_need)]]

    def all(self) -> list[WaitingLane[Call]]:
        """Every lane, those that need least first."""
        return [entry[2] for entry in self._by_need]

    def _lane(self, key: LaneKey) -> WaitingLane[Call]:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = WaitingLane(key, next(self._serial))
            insort(self._by_need, (lane.need_blocks, lane.serial, lane))
        return lane

    def _leave(self, call: Call, lane: WaitingLane[Call]) -> None:
        lane.remove(call)
        if not lane.calls:
            del self._lanes[lane.key]
            del self._by_need[bisect_left(self._by_need, (lane.need_blocks, lane.serial, lane))]


def in_order(
    lanes: Sequence[WaitingLane[Call]],
    place: Callable[[Call], tuple[Any, ...]],
    reach_blocks: Callable[[], float],
) -> Iterator[Call]:
    """Calls by `place`, the smallest first; a lane is left as soon as what its calls need is out of reach.

    `place` must give the calls of a lane ascending values, and no two calls the same.
    """
    if len(lanes) == 1:
        for call in lanes[0].calls:
            if lanes[0].need_blocks > reach_blocks():
                return
            yield call
        return
    least = min((lane.need_blocks for lane in lanes), default=0)
    heads = [(place(lane.calls[0]), 0, lane) for lane in lanes]
    heapify(heads)
    while heads:
        reach = reach_blocks()
        if least > reach:
            return
        _, i, lane = heads[0]
        if lane.need_blocks > reach:
            heappop(heads)
            continue
        yield lane.calls[i]
        i += 1
        if i < len(lane.calls):
            heapreplace(heads, (place(lane.calls[i]), i, lane))
        else:
            heappop(heads)
