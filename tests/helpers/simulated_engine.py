"""A simulated engine that is measured like a live one: its steps are reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from measuring import limits_of, steps_of
from stepped_runs import play_stepped

from tokencake.live.client.in_process import LiveStats
from tokencake.policies.controller import Sink
from tokencake.policies.registry import load_policy
from tokencake.policies.replay.replay import began
from tokencake.policies.run_settings import RunSettings
from tokencake.policies.runs.playable import Progress
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, Application

JOURNAL_ONLY = (e.Asked, e.AskedShared, e.Planned)  # what a replay needs and no sink gets


class SimulatedEngine:
    """Plays on a synchronous machine, and reports what a live engine does.

    `ends`: what ends a run when its second call ends, by the number of the run, from 1.
    """

    def __init__(self, machine: Machine, ends: Mapping[int, BaseException] | None = None) -> None:
        self.limits = machine
        self.ends = ends or {}
        self.errors: list[str] = []  # what policies are said to have raised
        self.played: list[RunSettings] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def info(self) -> dict[str, object]:
        limits = limits_of(self.limits)
        told = {name: getattr(limits, name) for name in type(limits).__slots__}
        return {**told, "model": "some/model", "vllm": "0.32.0"}

    def play(
        self,
        applications: Iterable[Application],
        settings: RunSettings,
        sinks: Sequence[Sink] = (),
        journal: Sink | None = None,
        progress: Progress | None = None,
    ) -> LiveStats:
        self.played.append(settings)
        end, finished = self.ends.get(len(self.played)), 0
        policy = load_policy(settings.policy, seed=settings.seed)
        if journal is not None:
            journal(began(settings.policy, settings.seed, self.limits.beliefs()))
        for record in play_stepped([*applications], policy, self.limits):
            if isinstance(record, e.Stepped) and not settings.steps:
                continue
            if journal is not None:
                journal(record)
            if not isinstance(record, JOURNAL_ONLY):
                for sink in sinks:
                    sink(record)
            finished += isinstance(record, e.CallFinished)
            if end is not None and finished == 2:
                raise end
        return LiveStats(0.0, 1.0, 1, finished, 0, {}, {}, (), self.errors)


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
