"""Carrying out a plan: in which order, for whom, and until when."""

from collections.abc import Sequence
from types import MappingProxyType

import pytest

from tokencake.policies.execution.carry_out import SOONEST_S, TimeUnit, carry_out, wake_time
from tokencake.policies.interface import Move, Plan
from tokencake.sim.engine.clock import PICOSECONDS

SECONDS = TimeUnit(SOONEST_S, float)
AGENTS = {name: f"cache of {name}" for name in ("a", "b", "c")}


class Recorder:
    """Copies that do nothing but note what is asked of them."""

    def __init__(self, pinned: Sequence[str] = ()) -> None:
        self.pinned = {name: AGENTS[name] for name in pinned}
        self.done: list[tuple[object, ...]] = []

    def forget(self, agent: str, now: float) -> None:
        self.done.append(("forget", agent, now))

    def cancel(self, agent: str, now: float) -> None:
        self.done.append(("cancel", agent, now))

    def unpin(self, agent: str) -> None:
        self.done.append(("unpin", agent))

    def offload(self, agent: str, move: Move, now: float) -> None:
        self.done.append(("offload", agent, move.blocks, now))

    def pin(self, agent: str, until: float) -> None:
        self.done.append(("pin", agent, until))

    def upload(self, agent: str, move: Move, now: float) -> None:
        self.done.append(("upload", agent, move.blocks, now))

    def evict_first(self, agents: Sequence[str]) -> None:
        self.done.append(("evict", *agents))


def done(plan: Plan, now: float = 5.0, pinned: Sequence[str] = ()) -> list[tuple[object, ...]]:
    copies = Recorder(pinned)
    carry_out(plan, AGENTS, copies, now, SECONDS)
    return copies.done


def test_the_order_is_always_the_same() -> None:
    plan = Plan(
        evict=("c", "a"),
        offload=(Move("a", 3), Move("b", 4)),
        upload=(Move("b", 2),),
        cancel=("b",),
        forget=("a",),
        pin={"c": 7.0},
    )
    assert done(plan, pinned=["a", "c"]) == [
        ("forget", "cache of a", 5.0),
        ("cancel", "cache of b", 5.0),
        ("unpin", "cache of a"),
        ("offload", "cache of a", 3, 5.0),
        ("offload", "cache of b", 4, 5.0),
        ("pin", "cache of c", 7.0),
        ("upload", "cache of b", 2, 5.0),
        ("evict", "cache of c", "cache of a"),
    ]


def test_agents_that_are_gone_are_passed_over() -> None:
    gone = Plan(
        evict=("z", "b"), offload=(Move("z", 1),), upload=(Move("z", 1),), cancel=("z",), forget=("z",), pin={"z": 9.0}
    )
    assert done(gone) == [("evict", "cache of b")]


def test_a_pin_whose_time_has_come_is_none() -> None:
    assert done(Plan(pin={"a": 5.0, "b": 4.0}), pinned=["a"]) == [("unpin", "cache of a")]


def test_a_pin_that_is_renewed_is_not_given_up_before() -> None:
    assert done(Plan(pin={"a": 6.0}), pinned=["a", "b"]) == [("unpin", "cache of b"), ("pin", "cache of a", 6.0)]


def test_a_plan_without_pins_ends_all_pins() -> None:
    assert done(Plan(), pinned=["a", "b"]) == [("unpin", "cache of a"), ("unpin", "cache of b")]


def test_no_pin_ends_within_a_millisecond() -> None:
    assert done(Plan(pin={"a": 5.0004})) == [("pin", "cache of a", 5.0 + SOONEST_S)]


@pytest.mark.parametrize(("wanted_s", "found_s"), [(None, None), (7.0, 7.0), (5.0004, 5.001), (3.0, 5.001)])
def test_a_policy_is_not_woken_before_a_millisecond_is_over(wanted_s: float | None, found_s: float | None) -> None:
    assert wake_time(Plan(wake_at_s=wanted_s), 5.0, SECONDS) == found_s


def test_the_simulator_does_the_same_on_whole_picoseconds() -> None:
    now = 5 * 10**12
    copies = Recorder(["c"])
    pins = MappingProxyType({"a": 7.0, "b": 5.0004, "c": 5.0})
    carry_out(Plan(pin=pins, forget=("a",)), AGENTS, copies, now, PICOSECONDS)
    assert copies.done == [
        ("forget", "cache of a", now),
        ("unpin", "cache of c"),
        ("pin", "cache of a", 7 * 10**12),
        ("pin", "cache of b", now + 10**9),
    ]
    assert wake_time(Plan(wake_at_s=5.0), now, PICOSECONDS) == now + 10**9
    assert wake_time(Plan(wake_at_s=0.1 + 5), now, PICOSECONDS) == 5_100_000_000_000
