"""The same applications, policy and machine in the simulator and on vLLM's own scheduler with our adapter: equal facts.

Every fact, down to the microsecond: what was admitted, hit, preempted, copied, refused and cancelled, and when the
policy was asked. The simulator's rules for copies and plans are what vLLM does with them, or this fails.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import hard_workload
from differential.workloads import Workload, capped, hybrid
from shares import check_shares
from untied import POLICIES, untied
from virtual_engine import Virtual

from tokencake.policies.interface import Extent, Plan, Policy, View
from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.engine.simulate import simulate
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment

SEEDS = range(24)
Plain = tuple[str, float, str]  # a fact as text


def plain(fact: object) -> Plain | None:
    """A fact as it is compared; None for those that only one side has, or that are averages over time."""
    if isinstance(fact, e.RunStarted | e.Occupied):
        return None
    assert isinstance(fact, tuple)
    at_s, *rest = fact
    if isinstance(fact, e.Polled):
        rest = []  # steps and gauges: a stretch of the simulator counts otherwise
    told = [round(value, 6) if isinstance(value, float) else value for value in rest]
    return type(fact).__name__, round(at_s, 6), repr(told)


def told(facts: list[object]) -> list[Plain]:
    """Facts in the order of time; those of one moment in the order of their text."""
    return sorted((one for fact in facts if (one := plain(fact)) is not None), key=lambda one: (one[1], one[0], one[2]))


def both(workload: Workload, live: Policy, simulated: Policy, name: str) -> tuple[list[Plain], list[Plain]]:
    """The facts of both engines."""
    applications, machine = workload
    facts: list[object] = []
    engine = Virtual(machine)
    engine.adapter.load_policy = lambda spec, seed: live
    engine.play(applications, RunSettings(policy=name, costs=machine.beliefs()), [facts.append])
    assert engine.leaked_blocks() == 0
    expected: list[object] = []
    simulate(applications, simulated, machine, [expected.append])
    check_shares(facts)
    return told(facts), told(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", POLICIES)
def test_every_fact_is_equal(name: str, seed: int) -> None:
    workload = untied(hard_workload(seed), seed)
    live, simulated = both(workload, load_policy(name), load_policy(name), name)
    assert live == simulated


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", POLICIES)
def test_every_fact_is_equal_where_long_prompts_are_cut(name: str, seed: int) -> None:
    """Also for those whom a policy holds back, which vLLM does not see."""
    workload = untied(hard_workload(seed, capped), seed)
    live, simulated = both(workload, load_policy(name), load_policy(name), name)
    assert live == simulated


def attention_alone(seed: int) -> Workload:
    """A hard workload on a model with windows or chunks: the `seed`-th of those without states."""
    found = (hard_workload(at, hybrid) for at in count())
    alike = (one for one in found if all(group.kind != "mamba" for group in one.machine.kv_groups))
    return next(islice(alike, seed, None))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", POLICIES)
def test_every_fact_is_equal_where_the_kv_cache_has_several_groups(name: str, seed: int) -> None:
    workload = untied(attention_alone(seed), seed)
    live, simulated = both(workload, load_policy(name), load_policy(name), name)
    assert live == simulated


SMALL: dict[str, Any] = {
    "gpu_blocks": 30,
    "block_tokens": 4,
    "kv_bytes_per_token": 25_000_000,
    "host_gib": 10.0,
    "link_gbps": 1.0,
    "copy_s": 0.0,
    "step_budget_tokens": 32,
    "long_prefill_token_threshold": 0,
    "max_running": 8,
    "asynchronous": False,
    "client_s": 0.0,
    "step_s": 1.0,
}


class AdmitsNobody:
    """The engine starts every call against its will, and writes it through."""

    listens_to = frozenset({e.CallArrived})

    def __init__(self, save: Extent) -> None:
        self._save = save

    def plan(self, view: View) -> Plan:
        return Plan(admit=(), write_through=self._save)


class AdmitsSome:
    """Any calls in any order, and nobody at times: then, if nothing runs, the engine starts whom it finds first."""

    listens_to = frozenset({e.CallArrived, e.CallFinished, e.LoadStarted})

    def __init__(self, seed: int, at_once: bool, save: Extent) -> None:
        self._rng = random.Random(seed)
        self._at_once = at_once
        self._save = save

    def plan(self, view: View) -> Plan:
        waiting = sorted(view.waiting)
        most = len(waiting) if self._at_once else min(1, len(waiting))
        admit = self._rng.sample(waiting, self._rng.randint(0, most))
        return Plan(admit=tuple(admit), skip=self._at_once, write_through=self._save)


def loading(seed: int) -> Workload:
    """A hard workload with a host that has room for all that is written through."""
    applications, machine = untied(hard_workload(seed), seed)
    return Workload(applications, replace(machine, host_gib=1.0))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("save", ["prompts", "contexts"])
def test_what_was_loaded_starts_as_loaded_against_the_plan(save: Extent, seed: int) -> None:
    live, simulated = both(loading(seed), AdmitsNobody(save), AdmitsNobody(save), "admits nobody")
    assert live == simulated


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("at_once", [False, True], ids=["one", "several"])
def test_every_fact_is_equal_where_loads_wait_for_what_the_plan_admits(at_once: bool, seed: int) -> None:
    """What is loaded gives its room up for calls that the plan admits, and starts before others if there is none."""
    one, other = AdmitsSome(seed, at_once, "contexts"), AdmitsSome(seed, at_once, "contexts")
    live, simulated = both(loading(seed), one, other, "admits some")
    assert live == simulated


@pytest.mark.parametrize("save", ["prompts", "contexts"])
def test_what_starts_against_the_plan_is_written_through(save: Extent) -> None:
    """Two prompts of 69 and 40 tokens, one after the other, in steps of 32. All their full blocks are stored."""
    machine = replace(hard_workload(0).machine, **SMALL)
    applications = tuple(
        Application(name, at_s, (Call(f"{name}/1", name, f"{name}/agent", "agent", prompt, 3, 3),))
        for name, at_s, tokens in (("a", 0.001, 69), ("b", 30.0, 40))
        for prompt in (Prompt((Segment(name, 0, tokens),), tokens=tokens),)
    )
    live, simulated = both(Workload(applications, machine), AdmitsNobody(save), AdmitsNobody(save), "admits nobody")
    assert live == simulated
    stores = [rest for kind, _, rest in live if kind == "StoreStarted"]
    assert stores == ["['a/1', 8]", "['a/1', 8]", "['a/1', 1]", "['b/1', 8]", "['b/1', 2]"]
