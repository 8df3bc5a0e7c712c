"""Plays one trace under several policies, one after another, and keeps what each run came to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...policies.interface import Policy
from ...policies.registry import is_ours, load_policy
from ...policies.replay import began
from ...traces.apps import Application
from ...traces.errors import TraceError
from ...traces.events_file import EventsWriter
from ...traces.format.reader import Trace
from ...traces.generate.arrivals import ArrivalProcess, retime
from ...traces.limits import Limits, fits
from ...traces.results.metrics import Metrics
from ...traces.results.report import Run
from ...traces.variants.scale import scaled
from ...traces.variants.shrink import shrunk
from ..engine.simulate import Progress, simulate
from ..machine.machine import Machine
from .try_out import tried
from .workers import Worker, tell


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy as it was asked for, ready to run once. A bound is made anew when it is known what is played.

    Without a policy it is made in another process, and plays there: nothing that it does ends this one.
    """

    spec: str
    options: Mapping[str, str]
    policy: Policy | None
    bound: bool = False
    timeout_s: float | None = None  # without a policy: for it to be made, and for a plan

    @classmethod
    def all_of(cls, specs: Sequence[str], seed: int, policy_timeout_s: float | None = None) -> list[Contender]:
        """What the specs ask for. Those of other people's code, and all if they may time out, play apart.

        Errors as `load_policy`.
        """
        bounds = tried(tuple(specs), seed, policy_timeout_s)
        return [
            cls(
                spec,
                options_of(spec),
                load_policy(spec, seed=seed, applications=()) if is_ours(spec) and policy_timeout_s is None else None,
                bounds[spec],
                policy_timeout_s,
            )
            for spec in specs
        ]


@dataclass(slots=True)
class Counts:
    """What was played of a trace, and what was left out."""

    applications: int = 0
    calls: int = 0
    oversized: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace, and how it is played."""

    trace: Trace
    seed: int = 0
    rate: float | None = None  # applications a second instead of the arrivals that the trace has
    arrivals: ArrivalProcess = "even"
    skip_oversized: bool = False  # whether applications that the engine cannot hold are left out, or an error
    time_scale: float = 1.0  # arrivals, tools and pauses last so many times as long
    shrink: int = 1  # of each source only one in so many tokens is there

    def play(self, limits: Limits, counts: Counts) -> Iterator[Application]:
        """The applications as they arrive, counted into `counts`. Those that are left out do not slow the rate."""
        fitting = self._fitting(self.trace if self.shrink == 1 else shrunk(self.trace, self.shrink), limits, counts)
        applications = fitting if self.rate is None else retime(fitting, self.rate, self.arrivals, self.seed)
        for application in scaled(applications, self.time_scale):
            counts.applications += 1
            counts.calls += len(application.calls)
            yield application

    def _fitting(self, applications: Iterable[Application], limits: Limits, counts: Counts) -> Iterator[Application]:
        for application in applications:
            if self.skip_oversized and not fits(application, limits):
                counts.oversized += 1
            else:
                yield application


def compare(
    workload: Workload,
    policies: Sequence[Contender],
    machine: Machine,
    events: Path | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Iterator[tuple[Run, Counts]]:
    """Each policy's run, in order, as soon as it has come to its end.

    With `events`, a folder, each run's facts are written into a file of it, see `events_name`. `progress` is told
    which run starts, from 0, and answers with what is then told how far it has come: finished applications and
    simulated seconds. Raises `TraceError` if nothing is left to be played, and what `simulate` raises.
    """
    for index, contender in enumerate(policies):
        path = events / events_name(index, contender.spec) if events else None
        run = _run if contender.policy is not None else _run_apart
        yield run(workload, contender, machine, path, progress(index) if progress else None)


class _Apart(NamedTuple):
    """What another process plays."""

    workload: Workload
    contender: Contender
    machine: Machine
    events: Path | None


def _run_apart(
    workload: Workload, contender: Contender, machine: Machine, events: Path | None, progress: Progress | None
) -> tuple[Run, Counts]:
    worker = Worker(contender.timeout_s)
    try:
        asked = _Apart(workload, contender, machine, events)
        return worker.ask_of(contender.spec, _play_apart, asked, lambda done: progress(*done) if progress else None)
    finally:
        worker.end()


def _play_apart(asked: _Apart) -> tuple[Run, Counts]:
    return _run(*asked, lambda applications, at_s: tell((applications, at_s)))


def _run(
    workload: Workload, contender: Contender, machine: Machine, events: Path | None, progress: Progress | None
) -> tuple[Run, Counts]:
    counts, metrics = Counts(), Metrics()
    applications: Iterable[Application] = workload.play(machine, counts)
    policy = contender.policy
    if contender.bound or policy is None:
        played = tuple(applications) if contender.bound else None
        applications = applications if played is None else played
        policy = load_policy(contender.spec, seed=workload.seed, applications=played)
    with EventsWriter(events) if events else nullcontext() as writer:
        journal = writer.add if writer else None
        if journal:
            journal(began(contender.spec, workload.seed, machine.beliefs()))
        stats = simulate(applications, policy, machine, [metrics.add], journal=journal, progress=progress)
        if not counts.applications:
            raise TraceError(nothing_to_play(counts))
    more = {"bound": True} if contender.bound else {}
    run = Run(contender.spec, contender.options, workload.seed, stats.wall_s, stats.policy_s, metrics.result(), more)
    return run, counts


def nothing_to_play(counts: Counts) -> str:
    """Why there is nothing to do."""
    if counts.oversized:
        return f"all {counts.oversized} applications need more than the machine has: nothing is left to play"
    return "the trace has no application: nothing to simulate"


def events_name(index: int, spec: str) -> str:
    """The file of a run's facts: `2-tokencake-upload-demand.jsonl` of `tokencake:upload=demand`, asked for second."""
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", spec).strip("-.")
    return f"{index + 1}-{safe[:100]}.jsonl"


def options_of(spec: str) -> dict[str, str]:
    """A policy's options as they were asked for: `{"upload": "demand"}` of `tokencake:upload=demand`."""
    named = spec.rpartition(".py:")[2]  # a path may have colons, too
    written = named.partition(":")[2]
    pairs = (option.partition("=") for option in written.split(",") if option)
    return {key: value for key, _, value in pairs}
