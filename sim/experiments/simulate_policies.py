"""Plays one trace under several policies, one after another, and keeps what each run came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...policies.interface import Policy
from ...policies.registry import DEFAULT_POLICIES, is_ours, load_policy, options_of
from ...traces.apps import Application
from ...traces.console.progress import progress_bar, runs_watched
from ...traces.errors import TraceError
from ...traces.results.metrics import Metrics
from ...traces.results.reports.publishing import Outputs
from ...traces.results.reports.report import Run
from ...traces.results.reports.run_report import publish_report, report_of
from ...traces.results.run_files import events_name
from ...traces.variants.workload import Counts, Workload, WorkloadOptions, nothing_to_play
from ..engine.simulate import Progress, simulate
from ..machine.files import MachineChoice, inputs_of
from ..machine.machine import Machine
from .kept_applications import KeptApplications
from .preflight import preflight

if TYPE_CHECKING:
    from ...traces.format.events_file import Record


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
        bounds = preflight(tuple(specs), seed, policy_timeout_s)
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


def simulate_policies(
    trace: Path,
    policies: Sequence[str],
    machine: MachineChoice,
    workload: WorkloadOptions,
    outputs: Outputs,
    *,
    policy_timeout_s: float | None = None,
    progress: bool = False,
) -> None:
    """Play the trace under each policy, and report what finished before an interrupt or a failure.

    Without policies: `DEFAULT_POLICIES`. `policy_timeout_s`: for a policy to be made, and for a plan; `progress`: shown
    even if stderr is no terminal. Raises TokencakeError for whatever a user can mend: before the first run, if it can
    be found then.
    """
    policies = policies or DEFAULT_POLICIES
    played_on = machine.load()
    contenders = Contender.all_of(policies, workload.seed, policy_timeout_s)
    workload.check()
    outputs.check(inputs_of(trace, machine=machine.name, policies=policies), policies)
    played = workload.of(trace)
    finished: list[tuple[Run, Counts]] = []
    try:
        with progress_bar(progress, outputs.quiet) as bar:
            watching = runs_watched(bar, policies, played.trace.header.applications, "simulated")
            for outcome in simulate_each(played, contenders, played_on, outputs.events, watching):
                finished.append(outcome)
    finally:
        if finished:
            publish_report(report_of(finished, played, played_on.settings()), outputs)


def simulate_each(
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
    written = KeptApplications(workload.trace) if len(policies) > 1 else None
    for index, contender in enumerate(policies):
        path = events / events_name(index, contender.spec) if events else None
        told = progress(index) if progress else None
        if contender.policy is None:
            yield _run_apart(workload, contender, machine, path, told)
        else:
            yield _run(workload, contender, machine, path, told, written)


class _Apart(NamedTuple):
    """What another process plays."""

    workload: Workload
    contender: Contender
    machine: Machine
    events: Path | None


def _run_apart(
    workload: Workload, contender: Contender, machine: Machine, events: Path | None, progress: Progress | None
) -> tuple[Run, Counts]:
    from .processes.worker import Worker

    worker = Worker(contender.timeout_s)
    try:
        asked = _Apart(workload, contender, machine, events)
        return worker.ask_of(contender.spec, _play_apart, asked, lambda done: progress(*done) if progress else None)
    finally:
        worker.end()


def _play_apart(asked: _Apart) -> tuple[Run, Counts]:
    from .processes.worker import tell

    return _run(*asked, lambda applications, at_s: tell((applications, at_s)))


def _run(
    workload: Workload,
    contender: Contender,
    machine: Machine,
    events: Path | None,
    progress: Progress | None,
    written: Iterable[Application] | None = None,
) -> tuple[Run, Counts]:
    counts, metrics = Counts(), Metrics()
    applications: Iterable[Application] = workload.play(machine, counts, written)
    policy = contender.policy
    if contender.bound or policy is None:
        played = tuple(applications) if contender.bound else None
        applications = applications if played is None else played
        policy = load_policy(contender.spec, seed=workload.seed, applications=played)
    with _journal(contender.spec, workload.seed, machine, events) if events else nullcontext() as journal:
        stats = simulate(applications, policy, machine, [metrics.add], journal=journal, progress=progress)
        if not counts.applications:
            raise TraceError(nothing_to_play(counts))
    more = {"bound": True} if contender.bound else {}
    run = Run(contender.spec, contender.options, workload.seed, stats.wall_s, stats.policy_s, metrics.result(), more)
    return run, counts


@contextmanager
def _journal(spec: str, seed: int, machine: Machine, path: Path) -> Iterator[Callable[[Record], None]]:
    """What takes the records of a run, into an events file."""
    from ...policies.replay.replay import began
    from ...traces.format.events_file import EventsWriter

    with EventsWriter(path) as writer:
        writer.add(began(spec, seed, machine.beliefs()))
        yield writer.add
