"""Lanes: whatever waits, calls come out in the order of their scores, and calls out of reach are left alone."""

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.policies.tokencake.published.score import drift
from tokencake.policies.tokencake.published.waiting_lanes import OrderClass, Place, WaitingLanes, in_order
from tokencake.traces.apps import Hints

CHAT = Hints()
DEEP = Hints(depth=3, remaining_depth=1, max_depth=4)


@dataclass
class Waiting:
    """A waiting call; `order_class` as the spatial half sets it."""

    number: int
    need_blocks: int
    started_s: float
    since_s: float
    hints: Hints = CHAT
    now_s: float = 0.0
    total_blocks: int = 100
    id: str = field(init=False)
    order_class: OrderClass = field(init=False)
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"c{9 - self.number}"  # the other way round
        line = drift(self.hints, self.started_s).line(self.started_s, self.since_s, self.now_s)
        self.order_class = line.slope
        self.place = (-line.points, self.since_s, self.number)

    def points(self, now_s: float) -> float:
        return drift(self.hints, self.started_s).points(now_s - self.started_s, now_s - self.since_s)

    def by_score(self) -> tuple[float, float, int]:
        return (-self.points(self.now_s), self.since_s, self.number)


def test_equal_calls_share_a_lane_and_the_first_of_it_goes_first():
    lanes: WaitingLanes[Waiting] = WaitingLanes()
    for n in (2, 0, 1):
        lanes.put(Waiting(n, 5, started_s=100.0 + n, since_s=100.0 + n))
    (lane,) = lanes.upto(5)
    assert [call.number for call in lane.upto(5)] == [0, 1, 2]
    assert lanes.upto(4) == []


def test_a_call_moves_with_its_bound():
    lanes: WaitingLanes[Waiting] = WaitingLanes()
    call = Waiting(0, 5, started_s=0.0, since_s=0.0)
    lanes.put(call)
    call.need_blocks = 9
    lanes.put(call)
    assert lanes.upto(8) == []
    assert [lane.least_blocks for lane in lanes.all()] == [9]
    lanes.remove(call)
    assert lanes.all() == []


def test_a_lane_is_left_when_its_calls_are_out_of_reach():
    lanes: WaitingLanes[Waiting] = WaitingLanes()
    for n in range(3):
        lanes.put(Waiting(n, 9, started_s=100.0 + n, since_s=100.0 + n, now_s=200.0))
    lanes.put(Waiting(3, 2, started_s=150.0, since_s=150.0, now_s=200.0))
    room = [10]
    seen = []
    for call in in_order(lanes.upto(10), Waiting.by_score, lambda: room[0]):
        seen.append(call.number)
        room[0] -= call.need_blocks
    assert seen == [0]  # one block is left, too little for any other


def test_applications_that_started_at_any_time_share_a_lane_once_that_counts_no_more():
    """Who came a second later gains 6 points by it. By now both have all that their ages give."""
    lanes: WaitingLanes[Waiting] = WaitingLanes()
    for n, started_s in enumerate((10.0, 30.0, 20.0)):
        lanes.put(Waiting(n, 5, started_s, since_s=1_000.0, now_s=1_000.0))
    (lane,) = lanes.all()
    assert [call.started_s for call in lane.upto(5)] == [30.0, 20.0, 10.0]


def in_reach(lanes: WaitingLanes[Waiting], reach: int, half: bool) -> list[int]:
    calls = in_order(lanes.upto(reach), Waiting.by_score, lambda: reach, half)
    return [call.number for call in calls]


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_calls_come_and_go_and_need_more_or_less(seed: int):
    """Against all of them, looked through anew."""
    random = Random(seed)
    lanes: WaitingLanes[Waiting] = WaitingLanes()
    waiting: list[Waiting] = []
    for n in range(1_200):
        if n < 500 or random.random() < 0.4:
            started_s = random.uniform(0.0, 400.0)
            call = Waiting(n, random.randint(1, 80), started_s, 500.0, random.choice([CHAT, DEEP]), now_s=500.0)
            waiting.append(call)
            lanes.put(call)
        elif random.random() < 0.7:
            lanes.remove(waiting.pop(random.randrange(len(waiting))))
        else:
            call = random.choice(waiting)
            call.need_blocks = random.randint(1, 80)
            lanes.put(call)
        if n % 50:
            continue
        reach, half = random.randint(1, 80), random.random() < 0.5
        near = [call for call in waiting if call.need_blocks <= reach and (not half or call.need_blocks <= 50)]
        assert in_reach(lanes, reach, half) == [call.number for call in sorted(near, key=Waiting.by_score)]
        for lane in lanes.upto(reach):
            fit = list(lane.upto(reach))
            assert (lane.last(reach), lane.least_blocks) == (fit[-1], min(call.need_blocks for call in fit))
    for call in waiting:
        lanes.remove(call)
    assert lanes.all() == []


times = st.floats(0.0, 400.0).map(lambda s: round(s, 3))
rows = st.lists(st.tuples(st.integers(1, 3), times, times, st.sampled_from([CHAT, DEEP])), max_size=12)
ROUNDING = 1e-6  # points


@given(rows, st.floats(0.0, 400.0))
def test_calls_come_by_score(rows, later_s):
    lanes: WaitingLanes[Waiting] = WaitingLanes()
    now_s = max((max(row[1], row[2]) for row in rows), default=0.0) + later_s
    calls = [
        Waiting(n, need, started_s=min(one, other), since_s=max(one, other), hints=hints, now_s=now_s)
        for n, (need, one, other, hints) in enumerate(rows)
    ]
    for call in calls:
        lanes.put(call)
    points = [call.points(now_s) for call in in_order(lanes.all(), Waiting.by_score, lambda: 10**9)]
    assert len(points) == len(calls)
    assert all(one >= other - ROUNDING for one, other in pairwise(points))


@given(rows, st.floats(0.0, 400.0), st.floats(0.0, 1.0))
def test_calls_of_a_lane_keep_their_places_until_one_leaves_it(rows, later_s, share):
    now_s = max((max(row[1], row[2]) for row in rows), default=0.0) + later_s
    lines = [
        (drift(hints, started_s), started_s, since_s)
        for _, one, other, hints in rows
        for started_s, since_s in [(min(one, other), max(one, other))]
    ]
    for like, started_s, since_s in lines:
        line = like.line(started_s, since_s, now_s)
        then_s = now_s + share * (min(line.until_s, now_s + 500.0) - now_s)
        points = like.points(then_s - started_s, then_s - since_s)
        assert line.points + line.slope * then_s == pytest.approx(points, abs=ROUNDING)
