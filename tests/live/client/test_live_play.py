"""The client of a live engine plays the DAG as the simulator's world does, and knows when everything was due."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_files import applications, dags, one_app, one_call

from tokencake.live.client.play import Player
from tokencake.live.client.tokens import Tokens
from tokencake.sim.engine.clock import BOUNDARY, At, Clock
from tokencake.sim.engine.memory.context_tree import ContextTree
from tokencake.sim.engine.world import World
from tokencake.sim.machine.timing import PS_PER_S, ps
from tokencake.traces.apps import AgentId, AppId, Application, Call, CallId, Tool
from tokencake.traces.errors import TraceError
from tokencake.traces.events import Request
from tokencake.traces.generate.workloads import code_writer

Event = tuple[float, str, str]  # when it was due, what, of whom
Serves = Callable[[Call], float]  # how long a call takes


@dataclass
class Recorder:
    """An engine that takes everything down, and serves each call in a fixed time, in a time that is not real."""

    serves: Serves
    seen: list[Event] = field(default_factory=list)
    last: dict[str, bool] = field(default_factory=dict)
    now_s: float = 0.0
    under_way: list[tuple[float, int, Call]] = field(default_factory=list)

    def app_started(self, app: AppId, due_s: float) -> None:
        self.seen.append((due_s, "started", app))

    def app_finished(self, app: AppId, due_s: float) -> None:
        self.seen.append((due_s, "finished", app))

    def tool_returned(self, call: Call, due_s: float) -> None:
        self.seen.append((due_s, "returned", call.id))

    def submit(self, call: Call, request: Request, token_ids: list[int], due_s: float, last: bool) -> None:
        assert len(token_ids) == call.prompt.tokens == request.prompt_tokens
        self.seen.append((due_s, "call", call.id))
        self.last[call.id] = last
        heappush(self.under_way, (self.now_s + self.serves(call), len(self.seen), call))


def played(
    apps: Iterable[Application],
    serves: Serves,
    late_s: float = 0.0,
    fails: Callable[[Call], bool] = lambda call: False,
) -> tuple[Recorder, Player]:
    """Drive a player through a run; the client looks only `late_s` after something has become due."""
    engine = Recorder(serves)
    player = Player(apps, Tokens(1 << 31), engine)
    while not player.done:
        ends_s = engine.under_way[0][0] if engine.under_way else float("inf")
        due_s = player.next_due_s
        engine.now_s = min(ends_s, float("inf") if due_s is None else max(due_s + late_s, engine.now_s))
        while engine.under_way and engine.under_way[0][0] <= engine.now_s:
            call = heappop(engine.under_way)[2]
            if fails(call):
                assert player.failed(call.id, engine.now_s) == call.app
                engine.seen.append((engine.now_s, "failed", call.id))
            else:
                player.finished(call.id, engine.now_s, [7] * call.output_tokens)
        player.advance(engine.now_s)
    return engine, player


class Simulated:
    """The simulator's world against an engine that serves each call in a fixed time."""

    def __init__(self, apps: Iterable[Application], serves: Serves) -> None:
        self.seen: list[Event] = []
        self._clock = Clock()
        self._serves = serves
        self._world = World(self._clock, apps, ContextTree(), 0)
        self._world.start(self)  # type: ignore[arg-type]  # what the world needs of an engine
        self._clock.env.run(until=self._world.done)

    def _see(self, what: str, whom: str) -> None:
        self.seen.append((self._clock.now_ps / PS_PER_S, what, whom))

    def app_started(self, app: AppId) -> None:
        self._see("started", app)

    def app_finished(self, app: AppId) -> None:
        self._see("finished", app)

    def tool_started(self, call: CallId, agent: AgentId) -> None:
        """Not the player's to say."""

    def tool_returned(self, call: CallId, agent: AgentId) -> None:
        self._see("returned", call)

    def arrive(self, call: Call, request: Request, context: Any) -> None:
        self._see("call", call.id)
        At(self._clock, ps(self._serves(call)), BOUNDARY, self._world.finished, call)


def in_ticks(application: Application, arrival_s: float) -> Application:
    """Times that are whole quarters of a second, so that much happens at once and sums are exact."""

    def tick(seconds: float) -> float:
        return round(seconds) % 5 / 4

    def tool(one: Tool) -> Tool:
        return one._replace(duration_s=tick(one.duration_s))

    calls = tuple(
        call._replace(pause_s=tick(call.pause_s), tools=tuple(map(tool, call.tools))) for call in application.calls
    )
    return application._replace(arrival_s=arrival_s, calls=calls)


@st.composite
def traces(draw: st.DrawFn) -> list[Application]:
    at_s, apps = 0.0, []
    for index in range(draw(st.integers(1, 4))):
        at_s += draw(st.sampled_from([0.0, 0.25, 1.0]))
        apps.append(in_ticks(draw(dags(f"a{index}")), at_s))
    return apps


def in_some_quarters(call: Call) -> float:
    return 0.25 + call.prompt.tokens % 4 / 4


@pytest.mark.sources
@given(traces())
def test_it_plays_as_the_simulators_world_does(apps: list[Application]) -> None:
    engine, player = played(apps, in_some_quarters)
    expected = Simulated(apps, in_some_quarters).seen
    assert sorted(engine.seen) == sorted(expected)
    assert [event for event in engine.seen if event[1] == "call"] == [e for e in expected if e[1] == "call"]
    assert (player.applications, player.calls) == (len(apps), sum(len(app.calls) for app in apps))
    assert player.lateness_s.summary()["max"] in (0.0, None)


@pytest.mark.sources
def test_it_plays_the_published_workload_as_the_simulators_world_does() -> None:
    apps = [in_ticks(app, app.arrival_s) for app in code_writer(apps=6, qps=1.0, arrivals="even", seed=0)]
    engine, _ = played(apps, in_some_quarters)
    assert sorted(engine.seen) == sorted(Simulated(apps, in_some_quarters).seen)


@given(traces())
def test_a_late_client_shifts_nothing_but_what_follows_an_answer(apps: list[Application]) -> None:
    """What is due without the engine is due at the same time, however late it is handed over."""
    engine, player = played(apps, in_some_quarters, late_s=0.125)
    seen = [event for event in engine.seen if event[1] == "started"]
    assert seen == [(app.arrival_s, "started", app.id) for app in apps]
    starts = {app.id: app.arrival_s for app in apps}
    first = {call.id: starts[call.app] + call.pause_s for app in apps for call in app.calls if not call.after}
    assert {call: due_s for due_s, what, call in engine.seen if what == "call" and call in first} == first
    if player.calls:
        assert player.lateness_s.summary()["max"] == 0.125


@given(traces())
def test_the_last_call_of_an_application_is_the_last_one_sent(apps: list[Application]) -> None:
    engine, _ = played(apps, in_some_quarters)
    for app in apps:
        sent = [call for _, what, call in engine.seen if what == "call" and call.startswith(f"{app.id}/")]
        assert [engine.last[call] for call in sent] == [False] * (len(sent) - 1) + [True] * bool(sent)


def test_tools_run_side_by_side_and_followers_wait_for_the_slowest(tmp_path: Path) -> None:
    tools = [{"kind": "a", "duration_s": 1.0}, {"kind": "b", "duration_s": 3.0}]
    app = one_app(one_call(tools=tools), one_call(id="d", after=["c"], pause_s=0.5), arrival_s=2.0)
    engine, _ = played(applications(tmp_path, app), lambda call: 0.25)
    assert engine.seen == [
        (2.0, "started", "a0"),
        (2.0, "call", "a0/c"),
        (5.25, "returned", "a0/c"),
        (5.75, "call", "a0/d"),
        (6.0, "finished", "a0"),
    ]


def test_applications_that_go_back_in_time_are_refused(tmp_path: Path) -> None:
    made = applications(tmp_path, one_app(one_call()))[0]
    with pytest.raises(TraceError, match="expected no earlier than the one before it"):
        played([made._replace(arrival_s=2.0), made._replace(id="b", arrival_s=1.0)], in_some_quarters)


def test_what_was_sent_and_has_not_ended_is_known(tmp_path: Path) -> None:
    engine = Recorder(lambda call: 1.0)
    player = Player(applications(tmp_path, one_app(one_call())), Tokens(100), engine)
    assert (player.sent, player.next_due_s, player.done) == ((), 0.0, False)
    player.advance(0.0)
    assert (player.sent, player.next_due_s, player.done) == (("a0/c",), None, False)
    player.finished("a0/c", 1.0, [1] * 5)
    assert (player.sent, player.next_due_s, player.done) == ((), None, True)


@given(apps=st.tuples(*(dags(f"a{at}", float(at)) for at in range(3))), period=st.integers(2, 6))
def test_a_call_that_fails_ends_its_application_when_those_beside_it_have_ended(
    apps: tuple[Application, ...], period: int
) -> None:
    calls = [call for app in apps for call in app.calls]
    bad = {call.id for call in calls[::period]}
    engine, player = played(apps, lambda call: 0.5 + call.output_tokens / 7, fails=lambda call: call.id in bad)
    failed_s: dict[str, float] = {}
    for at_s, what, name in engine.seen:
        if what == "failed":
            failed_s.setdefault(name.partition("/")[0], at_s)
    for app in apps:
        ends = [at_s for at_s, what, name in engine.seen if (what, name) == ("finished", app.id)]
        assert len(ends) == 1
        mine = [(at_s, what) for at_s, what, name in engine.seen if name.partition("/")[0] == app.id]
        if app.id in failed_s:
            assert not [at_s for at_s, what in mine if what in ("call", "returned") and at_s > failed_s[app.id]]
        else:
            assert sum(what == "call" for _, what in mine) == len(app.calls)
    assert player.applications == len(apps) - len(failed_s)
    assert player.failed_calls == sum(what == "failed" for _, what, _ in engine.seen) >= 1
    assert player._tokens.held == 0
