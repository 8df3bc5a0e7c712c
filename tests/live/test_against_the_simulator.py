"""The same applications, policy and machine in the simulator and on vLLM's own scheduler with our adapter: equal facts.

Every fact, down to the microsecond: what was admitted, hit, preempted, copied, refused and cancelled, and when the
policy was asked. The simulator's rules for copies and plans are what vLLM does with them, or this fails.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import hard_workload
from differential.workloads import Workload, capped
from test_occupancy import check_shares
from virtual_engine import Virtual

from tokencake.live.settings import RunSettings
from tokencake.policies.interface import Policy
from tokencake.policies.registry import load_policy
from tokencake.sim.simulate import simulate
from tokencake.traces import events as e
from tokencake.traces.apps import AgentId, Application, Call, CallId

POLICIES = (
    "vllm",
    "tokencake",
    "tokencake-space",
    "tokencake-time:upload=demand",
    "tokencake-time:upload=pause",
    "tokencake-time:rules=published,upload=predictive",
    "tokencake:rules=published",
    "native-offload",
    "native-offload:save=prompts",
    "native-offload:evict=arc",
    "prefetch-at-pause",
    "infercept",
    "continuum",
    "autellix",
    "kvflow",
    "saga",
    "thunderagent",
    "mori",
)
SEEDS = range(24)
Plain = tuple[str, float, str]  # a fact as text


def untied(workload: Workload, seed: int) -> Workload:
    """The workload without two things at the same time, since who comes first then differs; one context an agent."""
    rng = random.Random(seed)
    arrival_s = 0.0
    applications = []
    for application in workload.applications:
        arrival_s += rng.uniform(1e-5, 1e-3)
        calls = tuple(_untied(call, rng) for call in _one_context_an_agent(application))
        applications.append(replace(application, arrival_s=application.arrival_s + arrival_s, calls=calls))
    return Workload(tuple(applications), replace(workload.machine, client_s=0.0, asynchronous=False))


def _untied(call: Call, rng: random.Random) -> Call:
    tools = tuple(replace(tool, duration_s=tool.duration_s + rng.uniform(0, 1e-3)) for tool in call.tools)
    return replace(call, tools=tools, pause_s=call.pause_s + rng.uniform(0, 1e-3) if call.pause_s else 0.0)


def _one_context_an_agent(application: Application) -> list[Call]:
    """Calls whose agent goes on where its latest call ended; any other call is an agent's first."""
    agents: dict[CallId, AgentId] = {}
    latest: dict[AgentId, CallId] = {}
    calls = []
    for call in application.calls:
        extended = call.prompt.extends
        goes_on = extended is not None and call.agent != call.id and latest[agents[extended]] == extended
        agent = agents[extended] if goes_on and extended is not None else call.id
        agents[call.id] = agent
        latest[agent] = call.id
        calls.append(replace(call, agent=agent))
    return calls


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
