"""Workloads on which an engine and the simulator can be compared fact by fact, and the policies that are.

Two things at the same time would come in one order here and in another there.
"""

from __future__ import annotations

import random
from dataclasses import replace

from differential.workloads import Workload

from tokencake.live.engine.control.versions import check_vllm
from tokencake.sim.machine.engine_versions import simulated_version
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


def untied(workload: Workload, seed: int) -> Workload:
    """The workload without two things at the same time, since who comes first then differs; one context an agent."""
    rng, version = random.Random(seed), simulated_version(check_vllm())
    arrival_s = 0.0
    applications = []
    for application in workload.applications:
        arrival_s += rng.uniform(1e-5, 1e-3)
        calls = tuple(_untied(call, rng) for call in _one_context_an_agent(application))
        applications.append(application._replace(arrival_s=application.arrival_s + arrival_s, calls=calls))
    machine = replace(workload.machine, client_s=0.0, asynchronous=False, engine_version=version)
    return Workload(tuple(applications), machine)


def _untied(call: Call, rng: random.Random) -> Call:
    tools = tuple(tool._replace(duration_s=tool.duration_s + rng.uniform(0, 1e-3)) for tool in call.tools)
    return call._replace(tools=tools, pause_s=call.pause_s + rng.uniform(0, 1e-3) if call.pause_s else 0.0)


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
        calls.append(call._replace(agent=agent))
    return calls
