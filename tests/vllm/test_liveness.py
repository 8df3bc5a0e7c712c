"""Whatever policies want and clients do: each call is served, each block comes back, none has what it should not.

The workers of `virtual_engine` check every token that is computed and every copy, so a wrong block fails
these tests as well.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from itertools import count

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import Adversary, Hoarder, hard_workload
from random_clients import Clients, machine
from virtual_engine import Virtual

from tokencake.live.engine.control.metadata import KEY
from tokencake.policies.interface import EVERYTHING, Plan, Policy, View
from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces import events as e
from tokencake.traces.events import Fact

OPERATIONS = 1000


class Raises:
    """Plans like Tokencake, until it does not."""

    listens_to = EVERYTHING

    def __init__(self, after: int) -> None:
        self._left = after
        self._policy = load_policy("tokencake-time")

    def plan(self, view: View) -> Plan:
        self._left -= 1
        if self._left < 0:
            raise ValueError("out of ideas")
        return self._policy.plan(view)


def begin(engine: Virtual, policy: Policy, facts: list[object]) -> None:
    engine.adapter.load_policy = lambda spec, seed: policy
    engine.adapter.begin(RunSettings(costs=engine.machine.beliefs()), [facts.append])


def end(engine: Virtual) -> None:
    """End the run; what was held is free again, but for copies under way, and those end."""
    engine.adapter.end()
    engine.come_to_rest()
    assert engine.leaked_blocks() == 0
    assert engine.adapter.copies.host_free == engine.machine.host_blocks
    assert engine.adapter.copies.held_blocks == 0


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("seed", range(12))
def test_a_thousand_random_operations(seed: int, asynchronous: bool) -> None:
    rng = random.Random(seed)
    engine = Virtual(machine(rng, asynchronous))
    policy: Policy = Adversary(seed) if seed % 3 else load_policy("tokencake")
    facts: list[object] = []
    begin(engine, policy, facts)
    clients = Clients(engine, rng)
    for _ in range(OPERATIONS):
        clients.operate()
    clients.come_to_an_end()
    end(engine)
    assert not engine.adapter.errors
    assert {type(fact) for fact in facts} >= {e.CallAborted, e.CallFinished, e.AppFinished, e.ToolStarted}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("seed", range(40))
def test_every_application_finishes_under_a_policy_that_wants_nonsense(seed: int, asynchronous: bool) -> None:
    applications, hard = hard_workload(seed)
    engine = Virtual(replace(hard, asynchronous=asynchronous))
    engine.adapter.load_policy = lambda spec, seed: Adversary(seed)
    facts: list[object] = []
    engine.play(applications, RunSettings(policy="adversary", seed=seed), [facts.append])
    assert sum(isinstance(fact, e.CallFinished) for fact in facts) == sum(len(app.calls) for app in applications)
    assert engine.leaked_blocks() == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_policy_that_hoards_all_memory_starves_nobody(seed: int) -> None:
    applications, hard = hard_workload(seed)
    engine = Virtual(hard)
    engine.adapter.load_policy = lambda spec, seed: Hoarder()
    facts: list[object] = []
    engine.play(applications, RunSettings(policy="hoarder"), [facts.append])
    assert sum(isinstance(fact, e.CallFinished) for fact in facts) == sum(len(app.calls) for app in applications)
    assert engine.leaked_blocks() == 0


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("after", [0, 1, 20, 150])
def test_the_engine_goes_on_without_a_policy_that_raises(
    after: int, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(after)
    engine = Virtual(machine(rng, asynchronous))
    facts: list[object] = []
    begin(engine, Raises(after), facts)
    clients = Clients(engine, rng)
    with caplog.at_level(logging.ERROR, "tokencake.live.engine.session"):
        for _ in range(OPERATIONS):
            clients.operate()
    clients.come_to_an_end()
    end(engine)
    (error,) = engine.adapter.errors
    assert "plan() raised ValueError: out of ideas (test_liveness.py:" in error
    told = [record for record in caplog.records if record.name == "tokencake.live.engine.session"]
    assert [record.levelname for record in told] == ["ERROR"]


def test_an_application_of_which_nothing_is_heard_ends_in_the_end() -> None:
    """A tool never returns, and its agent's client has gone: without an end, its host copy would stay for ever."""
    rng = random.Random(1)
    engine = Virtual(machine(rng, False))
    facts: list[object] = []
    engine.adapter.load_policy = lambda spec, seed: load_policy("vllm")
    engine.adapter.begin(RunSettings(app_timeout_s=5.0), [facts.append])
    said = {"app": "a", "agent": "g", "tools": [{"kind": "t"}]}
    engine.add("r1", [1, 2, 3], 2, 0.0, {KEY: said})
    engine.run_until(lambda: bool(engine.session.steps > 1))
    engine.now_ps += 6 * PS_PER_S
    engine.add("r2", [1, 2, 3], 2, engine.adapter.now_s(), {KEY: {"app": "b", "agent": "g"}})
    engine.run_until(lambda: any(isinstance(fact, e.AppFinished) for fact in facts))
    (ended,) = [fact for fact in facts if isinstance(fact, e.AppFinished)]
    assert ended.app == "a"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_the_engine_goes_on_where_a_fact_has_no_place(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours, made on purpose: every 50th fact is told twice."""
    rng = random.Random(7)
    engine = Virtual(machine(rng, asynchronous))
    facts: list[object] = []
    begin(engine, load_policy("tokencake"), facts)
    ledger, told = engine.session.controller._ledger, count(1)
    fold = ledger.fold

    def twice(fact: Fact) -> None:
        fold(fact)
        if next(told) % 50 == 0 and isinstance(fact, e.CallArrived | e.CallAdmitted | e.CallFinished):
            fold(fact)

    monkeypatch.setattr(ledger, "fold", twice)
    clients = Clients(engine, rng)
    for _ in range(OPERATIONS):
        clients.operate()
    clients.come_to_an_end()
    end(engine)
    (error,) = engine.adapter.errors
    assert "expected" in error
    assert sum(isinstance(fact, e.CallFinished) for fact in facts) > 50
