"""What goes, and in which order, when calls wait, none runs and none can be scheduled."""

import pytest

from tokencake.policies.execution.starvation import make_way, release_held, without_choices
from tokencake.policies.interface import Plan


class Engine:
    """One with so many loaded calls, under a plan that admits somebody who waits or nobody."""

    def __init__(self, loaded: int, admits: bool) -> None:
        self.loaded = loaded
        self.admits = admits
        self.held = True

    def release_held(self) -> None:
        self.held = False

    def admits_anybody(self) -> bool:
        return self.admits

    def unload_last(self) -> bool:
        self.loaded -= 1
        return self.loaded >= 0


def schedules(engine: Engine, count: int) -> list[str]:
    """What holds for each of the schedules that follow one another in vain."""
    found = []
    for in_vain in range(1, count + 1):
        without_plan = make_way(in_vain, engine)
        found.append("without the plan" if without_plan else f"{max(0, engine.loaded)} loaded")
    return found


def test_what_is_held_ahead_of_need_goes_first() -> None:
    engine = Engine(loaded=1, admits=True)
    assert schedules(engine, 1) == ["1 loaded"]
    assert not engine.held


def test_loaded_calls_go_one_by_one_and_then_the_plan() -> None:
    assert schedules(Engine(loaded=2, admits=True), 5) == [
        "2 loaded", "1 loaded", "0 loaded", "without the plan", "without the plan",
    ]  # fmt: skip


def test_a_plan_that_admits_nobody_who_waits_goes_before_the_loads_do() -> None:
    assert schedules(Engine(loaded=1, admits=False), 4) == [
        "1 loaded", "without the plan", "0 loaded", "without the plan",
    ]  # fmt: skip


@pytest.mark.parametrize("admits", [True, False])
def test_without_loads_the_plan_goes_second(admits: bool) -> None:
    assert schedules(Engine(loaded=0, admits=admits), 2) == ["0 loaded", "without the plan"]


def test_without_its_choices_a_plan_still_says_what_is_stored() -> None:
    plan = Plan(admit=(), skip=True, preempt=("a/1",), write_through="contexts")
    assert without_choices(plan) == Plan(write_through="contexts")


def test_uploads_and_pins_of_all_are_given_up() -> None:
    done: list[tuple[object, ...]] = []

    class Copies:
        def cancel(self, agent: str, now: int) -> None:
            done.append(("cancel", agent, now))

        def unpin(self, agent: str) -> None:
            done.append(("unpin", agent))

    release_held(["a", "b"], Copies(), 7)
    assert done == [("cancel", "a", 7), ("unpin", "a"), ("cancel", "b", 7), ("unpin", "b")]
