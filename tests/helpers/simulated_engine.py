"""A simulated engine that is measured like a live one: its steps are reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from measuring import limits_of, steps_of

from tokencake.live.client.in_process import LiveStats
from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings
from tokencake.policies.runs.playable import Progress
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, Application


class SimulatedEngine:
    """Plays on a machine. Runs whose steps are wanted are made of the steps alone, each with its true time."""

    def __init__(self, machine: Machine) -> None:
        self.limits = machine
        self.errors: list[str] = []  # what policies are said to have raised
        self.played: list[RunSettings] = []

    def info(self) -> dict[str, object]:
        limits = limits_of(self.limits)
        told = {name: getattr(limits, name) for name in type(limits).__slots__}
        return {**told, "model": "some/model", "vllm": "0.32.0"}

    def play(
        self,
        applications: Iterable[Application],
        settings: RunSettings,
        sinks: Sequence[Any] = (),
        journal: Any = None,
        progress: Progress | None = None,
    ) -> LiveStats:
        self.played.append(settings)
        if settings.steps:
            (application,) = applications
            for fact in step_facts(application, self.limits):
                for sink in sinks:
                    sink(fact)
        else:
            simulate(applications, load_policy(settings.policy), self.limits, sinks, journal=journal, progress=progress)
        return LiveStats(0.0, 1.0, 1, 1, 0, {}, {}, (), self.errors)


def step_facts(application: Application, machine: Machine) -> Iterable[object]:
    """What a fit needs of a live run of one application: its steps, one behind the other."""
    limits = limits_of(machine)
    yield e.RunStarted(0.0, limits.block_tokens, limits.gpu_blocks, limits.host_blocks, limits.block_bytes)
    yield e.CallArrived(0.0, e.Request("a/1", "a", "a/main", "main", 100, 10, (), NO_HINTS))
    now_s = 0.0
    for step in steps_of(application, machine):
        yield e.Stepped(now_s + step.seconds, now_s, *step[1:5])
        now_s += step.seconds
    for call in application.calls:
        yield e.CallFinished(now_s, call.id, call.output_tokens, 1)
