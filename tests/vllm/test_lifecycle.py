"""Runs begin and end with requests and copies under way, in every order, and nothing of a run outlives it.

On vLLM's real scheduler in virtual time, driven as a server is: by clients' requests and by control calls, right ones
and wrong ones. After each of them: the server has its own run or a client's, and knows nothing of any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise, permutations
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import Adversary, Hoarder
from random_clients import Clients, machine
from virtual_engine import Virtual
from witness import Witness

from tokencake.live.engine import apps as apps_module
from tokencake.live.engine.control.control import Control
from tokencake.live.engine.control.metadata import KEY
from tokencake.policies.interface import EVERYTHING, Plan, Policy, View
from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces.errors import PolicyError

OPERATIONS = 700  # of each of 16 runs: 11,200 in all
TIMEOUT_S = 2.0
WRONG: tuple[Any, ...] = (
    {},
    {"run": "short", "settings": {}},
    {"run": "r" * 40},
    {"run": "r" * 40, "settings": {"policy": "vllm", "events": "/tmp/x"}},
    {"run": "r" * 40, "settings": {"policy": "vllm", "events": "\0"}},
    {"run": "r" * 40, "settings": {"policy": "unknown"}},
    {"run": "r" * 40, "settings": {"policy": "fails"}},
    {"run": "r" * 40, "settings": {"seed": -5}},
    {"run": "r" * 40, "settings": {"app_timeout_s": float("nan")}},
    {"run": 3, "settings": []},
    {"events": [{"event": "tea_break", "app": "a"}]},
    {"events": [{"event": "app_started", "app": "a/b"}]},
    {"events": 5},
    {"run": "r" * 40, "from": -1},
    {"run": "r" * 40, "from": float("inf")},
)


class Raises:
    """Of no use after a while."""

    listens_to = EVERYTHING

    def __init__(self) -> None:
        self._left = 20

    def plan(self, view: View) -> Plan:
        self._left -= 1
        if self._left < 0:
            raise ValueError("out of ideas")
        return Plan()


def policies(spec: str, seed: int, registered_only: bool = False) -> Policy:
    """Whatever policy a run has, it looks at what it is told."""
    if spec == "fails":
        raise RuntimeError("whatever goes wrong")
    if spec == "unknown":
        raise PolicyError("unknown policy")
    kinds: dict[str, Callable[[], Policy]] = {
        "adversary": lambda: Adversary(seed),
        "hoarder": Hoarder,
        "raises": Raises,
    }
    return Witness(kinds[spec]() if spec in kinds else load_policy(spec))


def serving(engine: Virtual, own: str) -> Control:
    """The engine as a server with a run of its own."""
    control: Control = engine.scheduler._tokencake_control
    control._timeout_s = TIMEOUT_S
    control._clock = lambda: engine.now_ps / PS_PER_S
    engine.adapter.load_policy = policies
    control.begin_own(RunSettings(policy=own, costs=engine.machine.beliefs()))
    return control


class Server(Clients):
    """Clients that send requests, and clients that control runs."""

    def __init__(self, engine: Virtual, rng: random.Random, control: Control) -> None:
        super().__init__(engine, rng)
        self._control = control
        self._runs = 0
        self._run = ""  # the name of the last one
        self._next = 0  # fact that was not fetched
        self.came = 0  # client runs that began
        self.cut = 0  # those that ended with calls under way
        self.operations |= {self.begin: 1.5, self.end: 0.7, self.facts: 2, self.wrong: 1, self.drain: 0.5,
                            self.nothing_is_heard: 0.1, self.send_again: 0.5, self.all_abort: 0.2}  # fmt: skip

    def ask(self, op: str, payload: Any) -> dict[str, Any]:
        said: dict[str, Any] = self._control.handle(op, payload)
        if "error" in said:
            assert "\n" not in said["error"]
        return said

    def begin(self) -> None:
        if self.rng.random() < 0.3:
            self.drain()
        self._runs += 1
        name = f"{self._runs:040}"
        policy = self.rng.choice(("adversary", "adversary", "hoarder", "raises", "tokencake", "native-offload"))
        settings: dict[str, object] = {"policy": policy, "seed": self._runs, "keep_facts": self.rng.random() < 0.7}
        if "error" not in self.ask("begin", {"run": name, "settings": settings}):
            self._run, self._next = name, 0
            self.came += 1
            assert self.ask("begin", {"run": name, "settings": settings}) == {"run": name}  # asked again

    def end(self) -> None:
        self.cut += self._control._client is not None and bool(self.engine.session.calls.by_id)
        said = self.ask("end", {"run": self._run or "r" * 40})
        assert ("error" in said) == (not self._run)
        assert self.ask("end", {"run": self._run or "r" * 40}) == said  # asked again

    def facts(self) -> None:
        if self._run:
            said = self.ask("facts", {"run": self._run, "from": self._next, "limit": 50})
            assert self.ask("facts", {"run": self._run, "from": self._next, "limit": 50}) == said
            self._next = said["next"]

    def wrong(self) -> None:
        op = self.rng.choice(("begin", "end", "facts", "tell", "info", "os.system"))
        said = self.ask(op, self.rng.choice(WRONG))
        assert op in ("info", "tell") or "error" in said

    def drain(self) -> None:
        """Everybody waits for the engine."""
        self.come_to_an_end()
        for _ in range(200):
            if self.engine.adapter.at_rest:
                return
            self.run_once()

    def nothing_is_heard(self) -> None:
        """For longer than a client may be silent. Then its run is over, as soon as anything happens."""
        self.engine.now_ps += 3 * PS_PER_S
        self.ask("info", {})
        assert self._control._client is None

    def send_again(self) -> None:
        """A call that is under way, under the name that it has: by a client that believes that it was lost."""
        calls = list(self.engine.session.calls.by_id.values())
        if calls:
            known = self.rng.choice(calls).request
            self.count += 1
            name = f"r{self.count}"
            said = {"app": known.app, "agent": known.agent.partition("/")[2], "call": known.id.partition("/")[2]}
            self.sent[name] = ((f"again{self.count}", "g"), [1, 2, 3], 2)
            self.engine.add(name, [1, 2, 3], 2, self.engine.adapter.now_s(), {KEY: said})

    def all_abort(self) -> None:
        for _ in range(len(self.sent)):
            self.abort()

    def check(self) -> None:
        """The server has a run, and what it knows is of that run."""
        control, adapter, scheduler = self._control, self.engine.adapter, self.engine.scheduler
        client = control._client
        assert adapter.settings is (control._own if client is None else client.settings)
        assert all("ValueError: out of ideas" in error for error in adapter.errors), adapter.errors
        known, stalled = self.engine.session.calls, self.engine.session.apps.stalled
        calls, agents, apps = known.by_id, self.engine.session.apps.agents, self.engine.session.apps.by_name
        assert set(known.by_request) <= set(scheduler.requests)
        assert sorted(map(id, known.by_request.values())) == sorted(map(id, calls.values()))
        for call in calls.values():
            assert agents[call.agent.name] is call.agent
            assert adapter.request_of(call.id) is scheduler.requests[call.vllm.request_id]
        assert set(known._holding) <= set(calls)
        assert set(known._unseen) <= set(known.by_request)
        assert sum(app.calls for app in apps.values()) == sum(agent.calls for agent in agents.values()) == len(calls)
        assert sorted(agent.name for app in apps.values() for agent in app.agents) == sorted(agents)
        assert set(stalled) <= set(agents)
        assert all(agents[name] is agent for name, agent in adapter.copies.pinned.items())
        blocks = {block.block_id for agent in agents.values() for block in agent.pin or ()}
        blocks |= {block.block_id for agent in agents.values() for up in agent.uploads for block in up.held}
        assert adapter.copies.held_blocks >= len(blocks)
        if not adapter.copies.under_way:
            assert adapter.copies.held_blocks == len(blocks)
            if not scheduler.requests:
                assert self.engine.leaked_blocks() == len(blocks)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("seed", range(8))
def test_runs_begin_and_end_whatever_is_under_way(seed: int, asynchronous: bool) -> None:
    rng = random.Random(seed)
    engine = Virtual(machine(rng, asynchronous))
    control = serving(engine, ("tokencake", "adversary", "native-offload", "tokencake-time")[seed % 4])
    server = Server(engine, rng, control)
    for _ in range(OPERATIONS):
        server.operate()
        server.check()
    server.come_to_an_end()
    engine.adapter.end()
    engine.come_to_rest()
    assert server.came > 5
    assert server.cut > 0
    assert engine.leaked_blocks() == 0
    assert engine.adapter.copies.held_blocks == 0
    assert engine.adapter.copies.host_free == engine.machine.host_blocks


STATES: dict[str, Callable[[Virtual], bool]] = {
    "waiting": lambda engine: len(engine.scheduler.waiting) > 1,
    "running": lambda engine: bool(engine.scheduler.running),
    "preempted": lambda engine: any(request.num_preemptions for request in engine.scheduler.waiting),
    "loading": lambda engine: any(call.loading for call in engine.session.calls.by_id.values()),
    "offloading": lambda engine: any(agent.offloading for agent in engine.session.apps.agents.values()),
    "uploading": lambda engine: any(
        up.ready_at is None for agent in engine.session.apps.agents.values() for up in agent.uploads
    ),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("state", STATES)
def test_a_run_that_ends_in_the_middle_leaves_nothing_in_any_order(state: str, asynchronous: bool) -> None:
    """Its client ends it, all requests are aborted, the engine goes on, and others come: each before each other."""
    for order in permutations(("end", "all_abort", "step", "send")):
        server = brought_to(state, asynchronous)
        for operation in order:
            getattr(server, operation)()
            server.check()
        server.come_to_an_end()
        engine = server.engine
        engine.adapter.end()
        engine.come_to_rest()
        assert engine.leaked_blocks() == 0
        assert engine.adapter.copies.held_blocks == 0
        assert engine.adapter.copies.host_free == engine.machine.host_blocks


def in_a_clients_run(seed: int, asynchronous: bool) -> Server:
    rng = random.Random(seed)
    engine = Virtual(machine(rng, asynchronous))
    server = Server(engine, rng, serving(engine, "tokencake"))
    server.operations = {server.send: 5, server.step: 8, server.abort: 1, server.tool_returns: 1}
    server._run = "r" * 40
    settings = {"policy": "adversary", "seed": seed, "keep_facts": True}
    assert server.ask("begin", {"run": server._run, "settings": settings}) == {"run": server._run}
    return server


@cache
def way_to(state: str, asynchronous: bool) -> tuple[int, int]:
    """The seed of a server, and how many operations bring it there."""
    for seed in range(100):
        server = in_a_clients_run(seed, asynchronous)
        for operations in range(1, 100):
            operate(server)
            if STATES[state](server.engine):
                return seed, operations
    raise AssertionError("it did not come to that")


def brought_to(state: str, asynchronous: bool) -> Server:
    """A server in whose client's run that is so. The same each time."""
    seed, operations = way_to(state, asynchronous)
    server = in_a_clients_run(seed, asynchronous)
    for _ in range(operations):
        operate(server)
    assert STATES[state](server.engine)
    return server


def operate(server: Server) -> None:
    server.operate()
    server.facts()  # the client is still there


# -- one thing at a time


def a_server(own: str = "tokencake") -> tuple[Virtual, Control]:
    engine = Virtual(machine(random.Random(1), False))
    return engine, serving(engine, own)


def a_call(engine: Virtual, name: str, output_tokens: int = 20, app: str = "A") -> None:
    engine.add(name, [1, 2, 3, 4, 5], output_tokens, engine.adapter.now_s(), {KEY: {"app": app, "agent": "g"}})


def begin(control: Control, name: str = "r" * 40, **settings: object) -> dict[str, Any]:
    return control.handle("begin", {"run": name, "settings": {"policy": "adversary", "keep_facts": True, **settings}})


def test_a_client_that_ends_its_run_while_it_is_answered_may_then_disconnect() -> None:
    engine, control = a_server()
    assert begin(control) == {"run": "r" * 40}
    a_call(engine, "one")
    engine.step()
    assert control.handle("end", {"run": "r" * 40})["errors"] == []
    engine.abort("one")
    assert control.handle("info", {})["policy"] == "tokencake"
    lines = control.handle("facts", {"run": "r" * 40})["lines"]
    kinds = [line.split('"')[3] for line in lines if '"at_s"' in line]
    ends = [kind for kind in kinds if kind in ("CallAborted", "AppFinished", "Occupied")]
    assert ends == ["CallAborted", "AppFinished", "Occupied"]


def test_the_servers_own_policy_is_back_at_once_and_hears_of_what_comes_then() -> None:
    engine, control = a_server("adversary")
    begin(control)
    a_call(engine, "one", output_tokens=40)
    engine.step()
    control.handle("end", {"run": "r" * 40})
    assert engine.adapter.settings is control._own
    a_call(engine, "two", app="B")
    assert [call.request.app for call in engine.session.calls.by_id.values()] == ["B"]
    engine.run_until(lambda: not engine.scheduler.requests)
    assert len(engine.answers["one"]) == 40
    assert not engine.adapter.errors


def test_a_run_whose_client_has_gone_ends() -> None:
    engine, control = a_server()
    begin(control)
    engine.now_ps += round((TIMEOUT_S - 0.1) * PS_PER_S)
    control.handle("facts", {"run": "r" * 40})  # it is still there
    engine.now_ps += round((TIMEOUT_S - 0.1) * PS_PER_S)
    control.look()
    assert control._client is not None
    engine.now_ps += PS_PER_S
    a_call(engine, "one")  # of somebody else: served under the server's own policy
    assert control.handle("info", {})["policy"] == "tokencake"
    assert [call.request.app for call in engine.session.calls.by_id.values()] == ["A"]
    said = control.handle("end", {"run": "r" * 40})
    assert said["errors"] == ["the server ended the run: nothing was heard of its client for 2 s"]
    assert control.handle("facts", {"run": "r" * 40})["under_way"] is False


def test_a_run_whose_facts_nobody_fetches_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokencake.live.engine.control.kept_facts.MOST_BYTES", 2000)
    engine, control = a_server()
    begin(control)
    for name in ("one", "two", "three", "four", "five", "six", "seven", "eight"):
        a_call(engine, name, output_tokens=2)
        engine.run_until(lambda: not engine.scheduler.requests)
    assert engine.adapter.settings is control._own
    assert control.handle("end", {"run": "r" * 40})["errors"] == [
        "the server ended the run: too many of its facts were not fetched"
    ]


def test_only_who_knows_a_runs_name_reads_and_ends_it() -> None:
    _, control = a_server()
    begin(control)
    for op in ("facts", "end"):
        assert "only who began a run" in control.handle(op, {"run": "s" * 40})["error"]
    assert control.handle("info", {})["policy"] == "adversary"
    assert begin(control, "s" * 40)["status"] == 423
    control.handle("end", {"run": "r" * 40})
    assert "only who began a run" in control.handle("facts", {"run": "s" * 40})["error"]


def test_a_policy_that_raised_is_begun_anew_after_a_while_and_ever_less_often() -> None:
    engine, control = a_server("raises")
    times = []
    for second in range(1000):
        engine.now_ps += PS_PER_S
        before = engine.adapter.session
        a_call(engine, f"c{second}", output_tokens=30)
        engine.run_until(lambda: not engine.scheduler.requests)
        if engine.adapter.session is not before:
            times.append(second)
    assert len(times) == 4
    assert all(later > 1.5 * earlier for earlier, later in pairwise(times))
    assert "out of ideas" in control.handle("info", {})["errors"][0]


def test_an_own_policy_that_cannot_be_made_again_keeps_a_client_out() -> None:
    """Else the server would be without one when the client has left."""
    engine, control = a_server()
    engine.adapter.load_policy = lambda spec, seed, registered_only=False: policies(
        spec if registered_only else "unknown", seed
    )
    assert "unknown policy" in begin(control)["error"]
    assert engine.adapter.settings is control._own
    a_call(engine, "one", output_tokens=2)
    engine.run_until(lambda: not engine.scheduler.requests)
    assert not engine.adapter.errors


def test_a_name_that_looks_like_one_of_ours_breaks_nothing() -> None:
    """Calls that are sent again are given another name; somebody may have chosen it before."""
    engine, _ = a_server()
    for name, call in (("r1", "c"), ("r2", "c#r3"), ("r3", "c"), ("r4", "c")):
        said = {"app": "A", "agent": name, "call": call}
        engine.add(name, [1, 2, 3], 3, engine.adapter.now_s(), {KEY: said})
    assert sorted(engine.session.calls.by_id) == ["A/c", "A/c#r3", "A/c#r3#0", "A/c#r4"]
    engine.run_until(lambda: not engine.scheduler.requests)
    assert not engine.session.calls.by_id


def test_of_too_many_applications_those_end_that_were_heard_of_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps_module, "MOST_AGENTS", 10)
    engine, control = a_server()
    for at in range(20):
        assert control.handle("tell", {"events": [{"event": "app_started", "app": f"a{at}"}]}) == {}
    assert list(engine.session.apps.by_name) == [f"a{at}" for at in range(10, 20)]
    for at in range(12):  # each has a call, of an agent
        a_call(engine, f"r{at}", app=f"b{at}", output_tokens=3)
    assert list(engine.session.apps.agents) == [f"b{at}/g" for at in range(5)]  # all have calls: others are strangers
    assert list(engine.session.apps.by_name) == [f"b{at}" for at in range(5)]
    engine.run_until(lambda: not engine.scheduler.requests)
    assert len(engine.answers) == 12
