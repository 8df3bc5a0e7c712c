"""The queue of waiting calls, in lanes: a plan looks at the heads of lanes that may fit, however many calls wait.

The calls of a lane need equally many blocks and do not change places: their scores grow at the same pace, until one
stops to and moves to another lane. So the first of a lane goes before the rest at any time. A call that has nothing in
common with others makes a lane by itself.
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

OrderClass = float | tuple[JoinGroup, Drift] | CallId
Place = tuple[float, float, int]


class Queued(Protocol):
    """What lanes must know of a waiting call."""

    id: CallId
    need_blocks: int  # a lower bound of its demand
    total_blocks: int
    order_class: OrderClass  # common to calls that do not change places; its own id if there are no others
    place: Place  # among these, the smallest first; no two are equal. It changes with the class alone


Call = TypeVar("Call", bound=Queued)
LaneKey = tuple[int, int, OrderClass]

_need = itemgetter(0)


class WaitingLane(Generic[Call]):
    """Calls with the same `need_blocks` and `total_blocks`, the most urgent first."""

    __slots__ = ("calls", "key", "need_blocks", "places", "serial")

    def __init__(self, key: LaneKey, serial: int) -> None:
        self.key = key
        self.serial = serial
        self.need_blocks = key[0]
        self.calls: list[Call] = []
        self.places: list[Place] = []  # of the calls

    def insert(self, call: Call) -> None:
        """Put a call into its place."""
        at = bisect_left(self.places, call.place)
        self.calls.insert(at, call)
        self.places.insert(at, call.place)

    def remove(self, call: Call, place: Place) -> None:
        """Take a call out that was put there."""
        at = bisect_left(self.places, place)
        del self.calls[at], self.places[at]


class WaitingLanes(Generic[Call]):
    """All waiting calls, by lane."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, WaitingLane[Call]] = {}
        self._of: dict[CallId, tuple[WaitingLane[Call], Place]] = {}
        self._by_need: list[tuple[int, int, WaitingLane[Call]]] = []  # blocks, serial number, lane
        self._serial = count()

    def put(self, call: Call) -> None:
        """Add a call, or move it to where its bound and its order class belong now."""
        key = (call.need_blocks, call.total_blocks, call.order_class)
        before = self._of.get(call.id)
        if before is not None:
            if before[0].key == key:
                return
            self._leave(call, *before)
        lane = self._lane(key)
        lane.insert(call)
        self._of[call.id] = (lane, call.place)

    def remove(self, call: Call) -> None:
        """A call left the queue."""
        self._leave(call, *self._of.pop(call.id))

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

    def _leave(self, call: Call, lane: WaitingLane[Call], place: Place) -> None:
        lane.remove(call, place)
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
