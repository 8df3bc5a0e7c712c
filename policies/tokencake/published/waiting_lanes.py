"""The queue of waiting calls, in lanes: a plan looks at those that may fit, however many calls wait.

The calls of a lane do not change places: their scores grow at the same pace, until one stops to and moves to another
lane. So the first of a lane goes before the rest at any time. A call that has nothing in common with others makes a
lane by itself.
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

STRETCH_CALLS = 64  # a stretch with twice as many is divided


class Queued(Protocol):
    """What lanes must know of a waiting call."""

    id: CallId
    need_blocks: int  # a lower bound of its demand
    total_blocks: int
    order_class: OrderClass  # common to calls that do not change places; its own id if there are no others
    place: Place  # among these, the smallest first; no two are equal. It changes with the class alone


Call = TypeVar("Call", bound=Queued)

_need = itemgetter(0)


class Stretch(Generic[Call]):
    """Calls that follow each other in a lane, and the bounds of their demands when they were put there."""

    __slots__ = ("calls", "least_blocks", "least_over_half", "needs_blocks", "places")

    def __init__(self, calls: list[Call], places: list[Place], needs_blocks: list[int]) -> None:
        self.calls = calls
        self.places = places
        self.needs_blocks = needs_blocks
        self.least_blocks = 0
        self.least_over_half = 0  # how much the need of a call is above half of its blocks, twice, at least
        self.look()

    def look(self) -> None:
        """Find anew what its calls need at least."""
        self.least_blocks = min(self.needs_blocks)
        self.least_over_half = min(
            [2 * need - call.total_blocks for call, need in zip(self.calls, self.needs_blocks, strict=True)]
        )

    def insert(self, at: int, call: Call) -> None:
        need_blocks = call.need_blocks
        self.calls.insert(at, call)
        self.places.insert(at, call.place)
        self.needs_blocks.insert(at, need_blocks)
        self._came(call, need_blocks)

    def remove(self, at: int) -> None:
        call, need_blocks = self.calls.pop(at), self.needs_blocks.pop(at)
        del self.places[at]
        if self.calls:
            self._went(call, need_blocks)

    def need(self, at: int, need_blocks: int) -> None:
        call, before = self.calls[at], self.needs_blocks[at]
        self.needs_blocks[at] = need_blocks
        self._came(call, need_blocks)
        self._went(call, before)

    def _came(self, call: Call, need_blocks: int) -> None:
        self.least_blocks = min(self.least_blocks, need_blocks)
        self.least_over_half = min(self.least_over_half, 2 * need_blocks - call.total_blocks)

    def _went(self, call: Call, need_blocks: int) -> None:
        if need_blocks == self.least_blocks or 2 * need_blocks - call.total_blocks == self.least_over_half:
            self.look()


class WaitingLane(Generic[Call]):
    """Calls that keep their order, the most urgent first, in stretches: of one in which nobody fits, none is looked at.

    A position is a stretch and a place in it; it holds until a call is put in or taken out.
    """

    __slots__ = ("_lasts", "_stretches", "least_blocks", "order_class", "serial")

    def __init__(self, call: Call, serial: int) -> None:
        self.order_class = call.order_class
        self.serial = serial
        self._stretches = [Stretch([call], [call.place], [call.need_blocks])]
        self._lasts = [call.place]  # of each stretch
        self.least_blocks = call.need_blocks

    @property
    def first(self) -> Call:
        """The most urgent one."""
        return self._stretches[0].calls[0]

    def insert(self, call: Call) -> None:
        """Put a call into its place."""
        number = min(bisect_left(self._lasts, call.place), len(self._lasts) - 1)
        stretch = self._stretches[number]
        stretch.insert(bisect_left(stretch.places, call.place), call)
        self.least_blocks = min(self.least_blocks, call.need_blocks)
        if len(stretch.calls) == 2 * STRETCH_CALLS:
            calls, places, needs_blocks = stretch.calls, stretch.places, stretch.needs_blocks
            half = STRETCH_CALLS
            self._stretches[number : number + 1] = [
                Stretch(calls[:half], places[:half], needs_blocks[:half]),
                Stretch(calls[half:], places[half:], needs_blocks[half:]),
            ]
            self._lasts.insert(number, places[half - 1])
            number += 1
        self._lasts[number] = self._stretches[number].places[-1]

    def remove(self, place: Place) -> bool:
        """Take out the call at this place. Whether the lane is empty now."""
        number = bisect_left(self._lasts, place)
        stretch = self._stretches[number]
        least_blocks = stretch.least_blocks
        stretch.remove(bisect_left(stretch.places, place))
        if stretch.calls:
            self._lasts[number] = stretch.places[-1]
        else:
            del self._stretches[number], self._lasts[number]
            if not self._stretches:
                return True
        self._went(stretch, least_blocks)
        return False

    def need(self, place: Place, need_blocks: int) -> None:
        """The call at this place needs so many blocks, as far as is known now."""
        stretch = self._stretches[bisect_left(self._lasts, place)]
        least_blocks = stretch.least_blocks
        stretch.need(bisect_left(stretch.places, place), need_blocks)
        self.least_blocks = min(self.least_blocks, need_blocks)
        self._went(stretch, least_blocks)

    def _went(self, stretch: Stretch[Call], least_blocks: int) -> None:
        """A stretch has changed, of which so few blocks were the least that a call needed."""
        if least_blocks == self.least_blocks and (not stretch.calls or stretch.least_blocks > least_blocks):
            self.least_blocks = min([other.least_blocks for other in self._stretches])

    # -- positions

    def following(self, number: int, at: int, reach_blocks: float, half: bool = False) -> tuple[int, int, Call] | None:
        """The first call from a position on that needs at most so many blocks, and where it is.

        `half`: one that needs at most half of its blocks.
        """
        for stretch_number in range(number, len(self._stretches)):
            stretch = self._stretches[stretch_number]
            if stretch.least_blocks <= reach_blocks and not (half and stretch.least_over_half > 0):
                needs_blocks = stretch.needs_blocks
                for i in range(at, len(needs_blocks)):
                    if needs_blocks[i] <= reach_blocks:
                        call = stretch.calls[i]
                        if not half or 2 * needs_blocks[i] <= call.total_blocks:
                            return stretch_number, i, call
            at = 0
        return None

    def need_at(self, number: int, at: int) -> int:
        return self._stretches[number].needs_blocks[at]

    def upto(self, reach_blocks: float) -> Iterator[Call]:
        """The calls that need at most so many blocks, in order."""
        for stretch in self._stretches:
            if stretch.least_blocks <= reach_blocks:
                for call, need_blocks in zip(stretch.calls, stretch.needs_blocks, strict=True):
                    if need_blocks <= reach_blocks:
                        yield call

    def last(self, reach_blocks: float) -> Call | None:
        """The last one that needs at most so many blocks."""
        for stretch in reversed(self._stretches):
            if stretch.least_blocks <= reach_blocks:
                for at in range(len(stretch.calls) - 1, -1, -1):
                    if stretch.needs_blocks[at] <= reach_blocks:
                        return stretch.calls[at]
        return None


class WaitingLanes(Generic[Call]):
    """All waiting calls, by lane."""

    def __init__(self) -> None:
        self._lanes: dict[OrderClass, WaitingLane[Call]] = {}
        self._of: dict[CallId, tuple[WaitingLane[Call], Place, int]] = {}  # with the demand that the lane knows of
        self._by_need: list[tuple[int, int, WaitingLane[Call]]] = []  # blocks, serial number, lane
        self._serial = count()

    def put(self, call: Call) -> None:
        """Add a call, or move it to where its bound and its order class belong now."""
        before = self._of.get(call.id)
        if before is not None:
            lane, place, need_blocks = before
            if lane.order_class == call.order_class:
                if need_blocks != call.need_blocks:
                    self._of[call.id] = (lane, place, call.need_blocks)
                    least_blocks = lane.least_blocks
                    lane.need(place, call.need_blocks)
                    self._moved(lane, least_blocks)
                return
            self.remove(call)
        found = self._lanes.get(call.order_class)
        if found is None:
            lane = self._lanes[call.order_class] = WaitingLane(call, next(self._serial))
            insort(self._by_need, (lane.least_blocks, lane.serial, lane))
        else:
            lane = found
            least_blocks = lane.least_blocks
            lane.insert(call)
            self._moved(lane, least_blocks)
        self._of[call.id] = (lane, call.place, call.need_blocks)

    def remove(self, call: Call) -> None:
        """A call left the queue."""
        lane, place, _ = self._of.pop(call.id)
        least_blocks = lane.least_blocks
        if lane.remove(place):
            del self._lanes[lane.order_class]
            del self._by_need[bisect_left(self._by_need, (least_blocks, lane.serial, lane))]
        else:
            self._moved(lane, least_blocks)

    def upto(self, blocks: int) -> list[WaitingLane[Call]]:
        """Lanes of which some call needs at most so many blocks, as far as is known."""
        lanes = self._by_need
        if not lanes or lanes[0][0] > blocks:
            return []
        return [entry[2] for entry in lanes[: bisect_right(lanes, blocks, key=_need)]]

    def all(self) -> list[WaitingLane[Call]]:
        """Every lane."""
        return [entry[2] for entry in self._by_need]

    def _moved(self, lane: WaitingLane[Call], least_blocks: int) -> None:
        """Who needs least in a lane may need another number of blocks now."""
        if lane.least_blocks != least_blocks:
            del self._by_need[bisect_left(self._by_need, (least_blocks, lane.serial, lane))]
            insort(self._by_need, (lane.least_blocks, lane.serial, lane))


def in_order(
    lanes: Sequence[WaitingLane[Call]],
    place: Callable[[Call], tuple[Any, ...]],
    reach_blocks: Callable[[], float],
    half: bool = False,
) -> Iterator[Call]:
    """Calls by `place`, the smallest first; those whose needs are out of reach when it is their turn are left out.

    `place` must give the calls of a lane ascending values, and no two calls the same; the reach only shrinks. `half`:
    of those, the ones that need at most half of their blocks.
    """
    heads: list[tuple[tuple[Any, ...], int, int, Call, WaitingLane[Call]]] = []
    least = min([lane.least_blocks for lane in lanes], default=0)
    reach = reach_blocks()
    for lane in lanes:
        found = lane.following(0, 0, reach, half)
        if found is not None:
            number, at, call = found
            heads.append((place(call), number, at, call, lane))
    heapify(heads)
    while heads:
        reach = reach_blocks()
        if least > reach:
            return
        _, number, at, call, lane = heads[0]
        if lane.need_at(number, at) <= reach:
            yield call
            at += 1
        found = lane.following(number, at, reach, half)
        if found is None:
            heappop(heads)
        else:
            number, at, call = found
            heapreplace(heads, (place(call), number, at, call, lane))
