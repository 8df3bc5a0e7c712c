"""A live case of a suite, played on both sides: simulated once under each policy, and some times on an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...policies.registry import load_policy
from ...policies.run_settings import RunSettings
from ...policies.runs.doubts import doubts
from ...policies.runs.playable import Playable
from ...policies.runs.workload_runs import WorkloadRuns, turns
from ...traces.console.progress import Bar, no_bar, runs_watched
from ...traces.console.terminal import say
from ...traces.format.reader import read_trace
from ...traces.results.reports.report import Run
from ...traces.variants.workload import Workload
from ..calibration.twin import twin_of
from ..experiments.simulate_policies import Contender, simulate_each
from .live_verdict import REPEATS, EngineRuns, live_policies
from .suite.suite import Case, Suite


def play_both_sides(
    suite: Suite,
    case: Case,
    engine: Playable,
    *,
    bar: Bar = no_bar,
    cut_off: Callable[[Run], None] = lambda run: None,
) -> tuple[dict[str, Mapping[str, Any]], dict[str, EngineRuns]]:
    """The metrics of a simulated run of each of the case's policies and rivals, and their runs on the engine, in turns.

    What is doubtful about a run is said on stderr. `cut_off` gets the run that something ends early, if a call of it
    had ended. Errors as `sim.fidelity.validate.validate`.
    """
    how = case.live or {}
    scale, shrink = how.get("time_scale", 1.0), how.get("shrink", 1)
    trace = read_trace(suite.paths.path(case.trace))
    workload = Workload(trace, case.seed, case.rate, case.arrivals, case.skip_oversized, scale, shrink)
    runs = WorkloadRuns(engine, workload)
    named = suite.paths.machine(how["machine"]) if "machine" in how else None
    twin = twin_of(engine, workload, named, bar, how.get("link_gbps"))
    specs = {policy: suite.paths.policy(policy) for policy in live_policies(case)}
    contenders = [Contender(name, {}, load_policy(spec, seed=case.seed)) for name, spec in specs.items()]
    simulated = {run.policy: run.metrics for run, _ in simulate_each(workload, contenders, twin)}
    live = {name: EngineRuns() for name in specs}
    repeats = how.get("repeats", REPEATS)
    watching = runs_watched(bar, [*specs] * repeats, trace.header.applications, "played")
    try:
        for turn in turns([*specs], repeats):
            settings = RunSettings(policy=specs[turn.policy], seed=case.seed, costs=twin.beliefs())
            run = runs.play(settings, repeat=turn.repeat, progress=watching(turn.run_index))
            for line in doubts(run):
                say(line, err=True)
            of_policy = live[turn.policy]
            of_policy.metrics.append(run.metrics)
            of_policy.failed = of_policy.failed or run.more["failed"]
    except BaseException:
        for ended, _ in runs.cut_off:
            cut_off(ended)
        raise
    return simulated, live
