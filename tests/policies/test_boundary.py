"""Whatever a policy does is its own error: one line with its name, the time of the run and what was wrong."""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake.policies.field.vllm import Vllm
from tokencake.policies.interface import EVERYTHING, Move, Plan, View
from tokencake.policies.names import Names
from tokencake.policies.plans import plain_plan
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces.apps import Application
from tokencake.traces.errors import PolicyError, PolicyFault
from tokencake.traces.events import Planned
from tokencake.traces.format.events_file import encode
from tokencake.traces.generate.workloads import code_writer

Plan_: Any = Plan  # of anything, whatever its fields' types
Move_: Any = Move
APPS: tuple[Application, ...] = tuple(code_writer(apps=1, qps=1.0, seed=0))
MACHINE = PUBLISHED


class Doing:
    """Does this whenever it is asked."""

    listens_to = EVERYTHING

    def __init__(self, act: Callable[[View], Any]) -> None:
        self._act = act

    def plan(self, view: View) -> Any:
        return self._act(view)


def play(act: Callable[[View], Any]) -> None:
    written: list[str] = []  # what cannot be written into an events file is an error
    simulate(iter(APPS), Doing(act), MACHINE, journal=lambda record: written.append(encode(record)))


def once_there_are_agents(act: Callable[[View], Any]) -> Callable[[View], Any]:
    return lambda view: act(view) if view.agents else Plan()


def said(act: Callable[[View], Any]) -> str:
    with pytest.raises(PolicyFault) as error:
        play(act)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_numpys_whole_numbers_of_blocks_become_pythons() -> None:
    numpy = pytest.importorskip("numpy")
    plan: Any = plain_plan(Plan_(offload=(Move_("a", numpy.int64(3)),), upload=(Move_("a", numpy.float64(3)),)))
    assert (plan.offload[0].blocks, type(plan.offload[0].blocks)) == (3, int)
    assert type(plan.upload[0].blocks) is not int, "no whole number: left to the check"
    same = Plan_(offload=(Move_("a", 3),))
    assert plain_plan(same) is same


@pytest.mark.parametrize("name", Plan.__dataclass_fields__)
def test_a_plan_has_what_it_was_given_and_else_its_defaults(name: str) -> None:
    given = object()
    plan = Plan_(**{name: given})
    assert getattr(plan, name) is given
    others = set(Plan.__dataclass_fields__) - {name}
    assert {other: getattr(plan, other) for other in others} == {other: getattr(Plan(), other) for other in others}
    assert replace(Plan(), **{name: given}) == plan != Plan()
    with pytest.raises(FrozenInstanceError):
        setattr(plan, name, None)


@dataclass(frozen=True)
class Explained(Plan):
    """A policy's own kind of plan."""

    why: str = ""


def test_a_plan_may_be_of_a_class_of_the_policy_s_own() -> None:
    wanted = plain_plan(Explained(skip=True, why="there is room"))
    assert (type(wanted), wanted) == (Plan, Plan(skip=True))


class Subclass(Plan):
    """A plan that says something else whenever it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name == "skip":
            raise SystemExit(0)
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("plan", "wrong"),
    [
        (None, "plan() returned NoneType, expected a Plan"),
        ({"admit": ()}, "plan() returned dict, expected a Plan"),
        (Plan_(admit=5), "admit: expected a tuple of ids, got int"),
        (Plan_(admit=[]), "admit: expected a tuple of ids, got list"),
        (Plan_(admit=([],)), "admit: expected a call that was in the view, got list"),
        (Plan_(admit=("nobody",)), "admit: expected a call that was in the view, got 'nobody'"),
        (Plan_(preempt=(7,)), "preempt: expected a call that was in the view, got 7"),
        (Plan_(evict=5), "evict: expected a tuple of ids, got int"),
        (Plan_(evict=iter(())), "evict: expected a tuple of ids, got tuple_iterator"),
        (Plan_(cancel=("nobody",)), "cancel: expected an agent that was in the view, got 'nobody'"),
        (Plan_(forget=([],)), "forget: expected an agent that was in the view, got list"),
        (Plan_(skip=1), "skip: expected True or False, got 1"),
        (Plan_(offload=(1,)), "offload[0]: expected a Move, got 1"),
        (Plan_(offload=[]), "offload: expected a tuple of Moves, got list"),
        (
            Plan_(offload=(Move_("nobody", 3),)),
            "offload[0].agent: expected an agent that was in the view, got 'nobody'",
        ),
        (Plan_(pin={"nobody": 1.0}), "pin: expected an agent that was in the view, got 'nobody'"),
        (Plan_(pin=[("a", 1.0)]), "pin: expected a mapping of agents' ids to times, got list"),
        (Plan_(wake_at_s="soon"), "wake_at_s: expected a time in seconds or None, got 'soon'"),
        (Plan_(wake_at_s=True), "wake_at_s: expected a time in seconds or None, got True"),
        (Plan_(wake_at_s=float("nan")), "wake_at_s: expected a time in seconds or None, got nan"),
        (Plan_(wake_at_s=10**5000), "wake_at_s: expected a time in seconds or None, got a number that is too large"),
        (Plan_(write_through=["prompts"]), "write_through: expected 'prompts' or 'contexts' or None, got list"),
    ],
)
def test_a_wrong_plan_is_told_by_its_field(plan: Any, wrong: str) -> None:
    assert said(lambda view: plan) == f"policy Doing: at 0.000000 s: {wrong}"


@pytest.mark.parametrize(
    ("wish", "wrong"),
    [
        (lambda name: Plan_(upload=(Move_(name, -1),)), "upload[0].blocks: expected a number of blocks, got -1"),
        (lambda name: Plan_(upload=(Move_(name, True),)), "upload[0].blocks: expected a number of blocks, got True"),
        (lambda name: Plan_(upload=(Move_(name, 2.0),)), "upload[0].blocks: expected a number of blocks, got 2.0"),
        (lambda name: Plan_(offload=(Move_(name, 1, 0),)), "offload[0].keep: expected True or False, got 0"),
        (lambda name: Plan_(pin={name: "5"}), "expected a time in seconds, got '5'"),
        (lambda name: Plan_(pin={name: float("inf")}), "expected a time in seconds, got inf"),
    ],
)
def test_a_wrong_wish_about_an_agent_is_told_by_its_field(wish: Callable[[str], Any], wrong: str) -> None:
    assert wrong in said(once_there_are_agents(lambda view: wish(next(iter(view.agents)))))


def test_a_call_is_admitted_once() -> None:
    assert " twice" in said(lambda view: Plan(admit=(*view.waiting, *view.waiting)))


def test_calls_that_ended_may_still_be_named() -> None:
    seen: dict[str, None] = {}

    def all_so_far(view: View) -> Plan:
        seen.update(dict.fromkeys(view.waiting))
        return Plan(admit=tuple(seen), preempt=tuple(seen))

    play(all_so_far)
    assert len(seen) == len(APPS[0].calls)


@pytest.mark.parametrize(
    "error", [SystemExit(0), GeneratorExit(), ValueError("no idea"), MemoryError(), PolicyError("x")]
)
def test_what_a_policy_raises_is_its_error(error: BaseException) -> None:
    def fail(view: View) -> Plan:
        raise error

    text = said(fail)
    assert text.startswith(f"policy Doing: at 0.000000 s: plan() raised {type(error).__name__}")
    assert "(test_boundary.py:" in text


def test_what_a_plan_does_while_it_is_read_is_its_error() -> None:
    assert "plan() raised SystemExit" in said(lambda view: Subclass())


class Sly(float):
    """A time that acts when it is computed with."""

    def __float__(self) -> float:
        raise SystemExit(0)

    def __mul__(self, other: object) -> float:
        raise SystemExit(0)

    __rmul__ = __mul__


class Still(float):
    """A time that is compared in its own way."""

    def __eq__(self, other: object) -> bool:
        raise SystemExit(0)

    def __lt__(self, other: object) -> bool:
        raise SystemExit(0)

    __le__ = __gt__ = __ge__ = __lt__
    __hash__ = float.__hash__


def test_times_of_a_subclass_become_numbers_while_it_is_the_policy_s_turn() -> None:
    assert "plan() raised SystemExit" in said(lambda view: Plan(wake_at_s=Sly(5.0)))
    assert "plan() raised SystemExit" in said(
        once_there_are_agents(lambda view: Plan(pin=dict.fromkeys(view.agents, Sly(5.0))))
    )
    play(lambda view: Plan(wake_at_s=Still(view.now_s + 5.0), pin=dict.fromkeys(view.agents, Still(5.0))))


def test_a_plan_that_is_written_into_is_looked_at_again() -> None:
    kept = Plan()

    def write_into(view: View) -> Plan:
        if view.agents:
            object.__setattr__(kept, "admit", 5)
        return kept

    assert "admit: expected a tuple of ids, got int" in said(write_into)


class Exits(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit(0)


class Text(str):
    def split(self, *_: object) -> Any:
        raise SystemExit(0)


class ShownByText(Exception):
    def __str__(self) -> str:
        return Text("no idea")


class ShownByLeaving(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class Nameless(Exception, metaclass=Exits):
    pass


@pytest.mark.parametrize(
    ("error", "shown"),
    [(ShownByText(), "ShownByText: no idea"), (ShownByLeaving(), "ShownByLeaving"), (Nameless(), "Nameless")],
)
def test_an_error_that_acts_when_it_is_shown_is_an_error_all_the_same(error: Exception, shown: str) -> None:
    def fail(view: View) -> Plan:
        raise error

    assert f"plan() raised {shown} (test_boundary.py:" in said(fail)


def test_what_a_policy_hears_is_asked_in_its_turn() -> None:
    class Leaving(Doing):
        @property
        def listens_to(self) -> Any:  # type: ignore[override]
            raise SystemExit(0)

    with pytest.raises(PolicyFault, match=r"policy Leaving: constructor raised SystemExit: 0"):
        simulate(iter(APPS), Leaving(lambda view: Plan()), MACHINE)


def test_a_copy_of_the_process_ends_with_the_turn_in_which_it_was_made() -> None:
    copies: list[int] = []

    def copy(view: View) -> Plan:
        if not copies:
            copies.append(os.fork())
        return Plan()

    play(copy)
    _, status = os.waitpid(copies[0], 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_an_interrupt_is_the_user_s_unless_nobody_can_interrupt() -> None:
    def interrupt(view: View) -> Plan:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(interrupt)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert "plan() raised KeyboardInterrupt" in said(interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_policy_hears_is_checked_after_each_plan() -> None:
    def listen(view: View) -> Plan:
        Doing.listens_to = frozenset({int})
        return Plan()

    try:
        assert "listens_to: expected a frozenset of facts" in said(listen)
    finally:
        Doing.listens_to = EVERYTHING


def test_what_a_policy_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def chat(view: View) -> Plan:
        print("thinking")
        return Plan()

    stdout = sys.stdout
    play(chat)
    assert sys.stdout is stdout
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("thinking\n")


def set_(name: str, value: object) -> Callable[[object], None]:
    return lambda thing: setattr(thing, name, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda view: view.waiting.clear(),
        lambda view: view.agents.pop("x"),
        lambda view: view.running.update({}),
        lambda view: view.stalled.__setitem__("x", None),
        lambda view: view.news.append(None),
        lambda view: set_("now_s", 5.0)(view),
        lambda view: set_("waiting", {})(view),
        lambda view: set_("unheard_of", 1)(view),
        lambda view: delattr(view, "news"),
        lambda view: set_("loading", True)(next(iter({**view.waiting, **view.running}.values()))),
        lambda view: set_("host_blocks", 9)(next(iter(view.agents.values()))),
        lambda view: set_("prompt_tokens", 9)(next(iter(view.agents.values())).last),
        lambda view: set_("copy_s", 9.0)(view.costs),
    ],
)
def test_a_view_cannot_be_changed(change: Callable[[Any], None]) -> None:
    text = said(once_there_are_agents(change))
    assert "plan() raised AttributeError" in text or "plan() raised FrozenInstanceError" in text


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("part", [lambda view: view, lambda view: next(iter(view.agents.values()))])
def test_a_view_cannot_be_copied_whole(copied: Callable[[object], object], part: Callable[[View], object]) -> None:
    text = said(once_there_are_agents(lambda view: copied(part(view))))
    assert "plan() raised TypeError: a view cannot be copied" in text


@pytest.mark.sources
def test_what_comes_of_a_write_past_the_lock_names_the_policy() -> None:
    def write(view: View) -> Plan:
        object.__setattr__(next(iter({**view.waiting, **view.running}.values())), "_request", None)
        return Plan()

    with pytest.raises(AttributeError) as error:
        play(once_there_are_agents(write))
    assert error.value.__notes__ == [
        "or a bug in policy Doing, which was playing: does it write past the lock of what it is shown?"
    ]


def test_an_error_under_a_policy_of_ours_is_ours_alone() -> None:
    def fail(fact: object) -> None:
        raise KeyError(fact)

    with pytest.raises(KeyError) as error:
        simulate(iter(APPS), Vllm(), MACHINE, [fail])
    assert not hasattr(error.value, "__notes__")


def test_the_engine_keeps_a_plan_that_the_policy_changes_afterwards() -> None:
    pins: dict[str, Any] = {}

    def pin(view: View) -> Plan:
        pins.clear()
        pins.update(dict.fromkeys(view.agents, view.now_s + 1.0))
        return Plan(pin=pins)

    def spoil(record: Any) -> None:
        if isinstance(record, Planned):
            pins.update(dict.fromkeys(pins, "soon"))

    simulate(iter(APPS), Doing(pin), MACHINE, journal=spoil)
    assert "soon" in pins.values()


NAMES = st.sampled_from(["nobody", "\0", "\ud800", ""])
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**5000), 1e300, -1e308, float("nan"), float("inf"), 1e12, -1e12, 2.5]),
    NAMES,
    st.binary(max_size=2),
    st.sampled_from([[], {}, set(), object(), Plan, len, b"", (), ((),), (None,), range(3)]),
    st.builds(Move, NAMES | st.none(), st.integers(), st.booleans() | st.none()),
)


@st.composite
def wishes(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a plan: each odd, or a collection of odd things, or made of what is in the view (see `REAL`)."""
    fields = draw(st.lists(st.sampled_from(list(Plan.__dataclass_fields__)), min_size=1, max_size=3, unique=True))
    return {
        field: draw(ODD | st.just(REAL) | st.lists(ODD, max_size=2).map(tuple) | st.dictionaries(NAMES, ODD))
        for field in fields
    }


REAL = object()  # the field gets something that is right, or nearly


def real(field: str, view: View, number: Any) -> Any:
    agents = tuple(view.agents)
    return {
        "admit": tuple(view.waiting),
        "preempt": tuple(view.running),
        "pin": dict.fromkeys(agents, number),
        "offload": tuple(Move(agent, number) for agent in agents),
        "upload": tuple(Move(agent, number) for agent in agents),
        "skip": True,
        "wake_at_s": number,
        "write_through": "contexts",
    }.get(field, agents)


@settings(max_examples=150, deadline=None)
@given(wishes(), ODD, st.integers(0, 3))
def test_no_plan_leads_to_anything_but_a_run_or_the_policy_s_error(
    wish: dict[str, Any], number: Any, after: int
) -> None:
    asked = 0

    def odd(view: View) -> Plan:
        nonlocal asked
        asked += 1
        if asked <= after or asked > after + 20 or not view.agents:
            return Plan()
        return Plan(**{field: real(field, view, number) if value is REAL else value for field, value in wish.items()})

    with suppress(PolicyFault):
        play(odd)


@given(st.lists(st.text()), st.text())
def test_a_name_that_was_there_is_never_denied(names: list[str], other: str) -> None:
    seen = Names()
    for name in names:
        seen.add(name)
    assert all(name in seen for name in names)
    assert other not in Names()
