"""Policies that want nonsense, but valid nonsense: what an engine must bear from any policy. And workloads to match."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from differential.workloads import Workload, workload

from tokencake.policies.interface import EVERYTHING, Extent, Move, Plan, View
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import AgentId, Application, Call, CallId
from tokencake.traces.events import Copied
from tokencake.traces.format.derive import with_hints

T = TypeVar("T")
FARTHEST_S = 2.0
LIVE_ALONE = {Copied}  # the simulator tells of none, so hearing it would change nothing but the draws


class Adversary:
    """Random plans, the same for the same seed and the same facts. How it is inclined is random, too."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        kinds = sorted(EVERYTHING - LIVE_ALONE, key=lambda kind: kind.__name__)
        self._hears = EVERYTHING if rng.random() < 0.5 else frozenset(rng.sample(kinds, rng.randint(1, len(kinds))))
        self._holds_back = rng.choice((0.0, 0.3, 1.0))
        self._copies = rng.choice((0.0, 0.2, 0.8))
        self._pins = rng.choice((0.0, 0.2, 0.8))
        self._wakes = rng.choice((0.0, 0.3, 1.0))
        self._reorders = rng.choice((0.0, 0.5))
        self._through: Extent | None = rng.choice((None, None, "prompts", "contexts"))

    @property
    def listens_to(self) -> frozenset[type]:
        return self._hears

    def plan(self, view: View) -> Plan:
        if not view.agents:
            return Plan()  # nothing to spoil; and a wish to be woken would never end
        rng = self._rng
        agents = list(view.agents)
        for call in self._some(list(view.waiting), 0.2):
            view.hits(call)
            view.shared_blocks(call)
        return Plan(
            admit=self._admit(list(view.waiting)),
            skip=rng.random() < 0.5,
            preempt=self._some(list(view.running), self._reorders),
            evict=self._some(agents, self._reorders),
            offload=tuple(self._move(agent) for agent in self._some(agents, self._copies)),
            upload=tuple(self._move(agent) for agent in self._some(agents, self._copies)),
            cancel=self._some(agents, self._copies / 2),
            forget=self._some(agents, self._copies / 2),
            pin={agent: view.now_s + self._seconds() for agent in self._some(agents, self._pins)},
            write_through=self._through if rng.random() < 0.9 else None,
            wake_at_s=view.now_s + self._seconds() if rng.random() < self._wakes else None,
        )

    def _admit(self, waiting: list[str]) -> tuple[str, ...] | None:
        if self._rng.random() >= self._holds_back:
            return None
        return self._some(waiting, self._rng.random())

    def _move(self, agent: str) -> Move:
        return Move(agent, self._rng.choice((0, 1, self._rng.randint(0, 40), 10**6)), self._rng.random() < 0.5)

    def _some(self, items: Sequence[T], share: float) -> tuple[T, ...]:
        """About this share of the items, in any order."""
        chosen = [item for item in items if self._rng.random() < share]
        self._rng.shuffle(chosen)
        return tuple(chosen)

    def _seconds(self) -> float:
        return self._rng.choice((-1.0, 0.0, 0.01, self._rng.uniform(0.0, FARTHEST_S)))


class Hoarder:
    """Wants all memory for contexts that nobody waits for, asks to be asked all the time, and starts nothing."""

    listens_to = EVERYTHING

    def plan(self, view: View) -> Plan:
        if not view.agents:
            return Plan()
        everything = tuple(Move(agent, 10**6) for agent in view.agents)
        return Plan(
            admit=(),
            preempt=tuple(view.running),
            offload=everything,
            upload=everything,
            pin=dict.fromkeys(view.agents, view.now_s + FARTHEST_S),
            wake_at_s=view.now_s + 0.05,
        )


def hard_workload(seed: int, make: Callable[[int], Workload] = workload) -> Workload:
    """A workload with agents of several calls, a small host and a link that is anything from hopeless to instant."""
    rng = random.Random(seed)
    applications, machine = make(seed)
    return Workload(tuple(_with_agents(app, rng) for app in applications), _with_host(machine, rng))


def _with_host(machine: Machine, rng: random.Random) -> Machine:
    block_bytes = 2**20 * machine.block_tokens
    return replace(
        machine,
        kv_bytes_per_token=2**20,
        host_gib=rng.choice((0, 1, 3, 10, 100)) * block_bytes / 2**30,
        link_gbps=rng.choice((0.01, 0.1, 1.0, 100.0)),
        copy_s=rng.choice((0.0, 0.001, 0.01, 0.3)),
        max_context_tokens=10**6,
    )


def _with_agents(application: Application, rng: random.Random) -> Application:
    """Most calls that continue another one are the same agent's, and some declare more tokens than they answer with."""
    agents: dict[CallId, AgentId] = {}
    latest: dict[AgentId, CallId] = {}  # an agent's calls follow each other: of two branches one is another agent's
    calls: list[Call] = []
    for call in application.calls:
        extended = call.prompt.extends
        follows = extended is not None and latest[agents[extended]] == extended
        agents[call.id] = agents[extended] if extended is not None and follows and rng.random() < 0.8 else call.agent
        latest[agents[call.id]] = call.id
        budget = call.output_tokens + rng.choice((0, 0, 5))
        calls.append(call._replace(agent=agents[call.id], max_output_tokens=budget))
    return with_hints(application._replace(calls=tuple(calls)))
