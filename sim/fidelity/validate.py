"""A workload, simulated and played on an engine under each policy: what both came to, and whether decisions agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...policies.registry import DEFAULT_POLICIES, load_policy, options_of
from ...policies.replay.replay import replay_file
from ...policies.run_settings import RunSettings
from ...policies.runs.doubts import doubts
from ...policies.runs.playable import Playable, Progress
from ...policies.runs.workload_runs import RunTurn, WorkloadRuns, turns
from ...traces.apps import Application
from ...traces.console.progress import Bar, no_bar, runs_watched
from ...traces.console.terminal import say
from ...traces.files.outputs import prepare_folder
from ...traces.results.reports.report import Run
from ...traces.results.run_files import events_name
from ...traces.variants.workload import Counts, Workload
from ...traces.version import __version__
from ..calibration.host_load import HostLoad, loaded_words
from ..calibration.twin import twin_of
from ..experiments.simulate_policies import Contender, simulate_each
from ..machine.machine import Machine
from . import rerun
from .validation import Trial, build

REPEATS = 3


def validate(
    engine: Playable,
    workload: Workload,
    policies: Sequence[str] = DEFAULT_POLICIES,
    *,
    machine: Machine | None = None,
    repeats: int = REPEATS,
    events: Path | None = None,
    link_gbps: float | None = None,
    bar: Bar = no_bar,
    publish: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Play the workload `repeats` times under each policy, and simulate it: the report, `tokencake.validation/1`.

    Simulated is the `machine`, with the engine's limits; without one, a machine that is fitted to the engine first,
    whose copies are slowed down to `link_gbps` if they are. The folder `events` keeps a file of each live run. What is
    doubtful about a run is said on stderr.

    `publish` gets the report, too: also where something ends a run early, if any has come to something by then. Raises
    EngineError, TraceError, PolicyError or MachineError for what a user can mend, and RunError for a run that failed in
    the engine.
    """
    how = {"time_scale": workload.time_scale, "shrink": workload.shrink, "seed": workload.seed}
    about: dict[str, Any] = {"version": __version__, "trace": str(workload.trace.path), **how}
    if events is not None:
        prepare_folder(events)
    contenders = [Contender(spec, options_of(spec), load_policy(spec, seed=workload.seed)) for spec in policies]
    runs = WorkloadRuns(engine, workload)
    trials: list[Trial] = []

    def report() -> dict[str, Any]:
        return build(about, trials, [run.record() for run, _ in runs.cut_off])

    try:
        with nullcontext(events) if events else TemporaryDirectory() as folder:
            twin = twin_of(engine, workload, machine, bar, link_gbps)
            about |= {"engine": dict(engine.info()), "machine": twin.settings()}
            trials += [Trial(run.policy, run.metrics) for run, _ in simulate_each(workload, contenders, twin)]
            watching = runs_watched(bar, [*policies] * repeats, workload.trace.header.applications, "played")
            for turn in turns(policies, repeats):
                run, file = _play(runs, turn, repeats, workload.seed, twin, Path(folder), watching(turn.run_index))
                applications = workload.play(engine.limits, Counts())
                _compare(trials[turn.run_index % len(trials)], run, file, applications, twin)
    except BaseException:
        if runs.cut_off or any(trial.live for trial in trials):
            publish(report())
        raise
    publish(report())
    return report()


def _play(
    runs: WorkloadRuns, turn: RunTurn, repeats: int, seed: int, twin: Machine, folder: Path, progress: Progress
) -> tuple[Run, Path]:
    """One live run, and the file of what happened. Warns if the host was loaded meanwhile."""
    events = folder / events_name(turn.run_index, turn.policy)
    settings = RunSettings(policy=turn.policy, seed=seed, costs=twin.beliefs(), steps=True)
    began = HostLoad.now()
    run = runs.play(settings, repeat=turn.repeat if repeats > 1 else None, events=events, progress=progress)
    for words in loaded_words(began.until(HostLoad.now())):
        say(f"warning: {turn.policy}, live run {turn.run_index + 1}: {words}", err=True)
    for line in doubts(run):
        say(line, err=True)
    return run, events


def _compare(trial: Trial, run: Run, events: Path, applications: Iterable[Application], twin: Machine) -> None:
    """Add a live run to those of its policy: its metrics, and whether its decisions come out again."""
    trial.failed = trial.failed or run.more["failed"]
    again = rerun.play_recorded(events, applications, twin, trial.policy)
    trial.live.append(run.metrics)
    trial.parity.append({**replay_file(events, trial.policy)[1].record(), **again.record()})


def same_decisions(run: Mapping[str, Any]) -> bool:
    """Whether the simulator decided as the engine did, in all live runs of a policy: `run` is one of a report's."""
    parity = run["parity"]
    counts = ("different", "not_replayed", "admissions_different")
    return not any(parity.get(name) for name in counts) and parity.get("ended") is None
