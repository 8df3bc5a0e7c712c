"""`tokencake live`: policies compared on vLLM, in this process or on a server; and the command of such a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...policies.foreign_code import supervise_foreign
from ...policies.registry import DEFAULT_POLICIES, load_policy
from ...policies.run_settings import RunSettings
from ...policies.runs.doubts import doubts
from ...policies.runs.workload_runs import WorkloadRuns
from ...traces.console.progress import progress_bar, runs_watched
from ...traces.console.terminal import say
from ...traces.results.reports.publishing import Outputs
from ...traces.results.reports.run_report import publish_report
from ...traces.results.run_counts import check_repeats
from ...traces.variants.workload import WorkloadOptions
from ..engine.control.versions import for_cpus
from .engine_options import EngineOptions, settled
from .engine_source import EngineSource
from .options import Serving
from .remote.cache_policy_args import cache_policy_args
from .remote.serve_args import serve_args, serve_command


def run_live(
    source: EngineSource,
    trace: Path,
    policies: Sequence[str],
    settings: RunSettings,
    workload: WorkloadOptions,
    outputs: Outputs,
    *,
    inputs: Sequence[Path],
    repeats: int = 1,
    progress: bool = False,
) -> int:
    """Play the trace under each policy on an engine, and report what finished before an interrupt or a failure.

    Without policies: `DEFAULT_POLICIES`. `settings`: of all runs, but for the policy; `inputs`: files that no output
    may overwrite; `progress`: shown even if stderr is no terminal. Returns the exit code: 1 if a policy did not last to
    the end of a run. Raises TokencakeError for whatever a user can mend: before the engine starts, if it can be found
    then.
    """
    check_repeats(repeats)
    policies = list(policies or DEFAULT_POLICIES)
    source.check_policies(policies, settings.seed)
    workload.check()
    outputs.check(inputs, policies * repeats)
    played = workload.of(trace)
    settings = replace(settings, steps=outputs.events is not None)
    runs: WorkloadRuns | None = None
    try:
        with progress_bar(progress, outputs.quiet) as bar, source.start() as engine:
            runs = WorkloadRuns(engine, played)
            watching = runs_watched(bar, policies * repeats, played.trace.header.applications, "played")
            runs.play_in_turns(policies, settings, repeats, events=outputs.events_file, progress=watching)
    finally:
        if runs is not None and (runs.finished or runs.cut_off):
            publish_report(runs.report(), outputs)
    for run, _ in runs.finished:
        for line in doubts(run):
            say(line, err=True)
    return 1 if any(run.more["failed"] for run, _ in runs.finished) else 0


def print_serve_command(options: EngineOptions, settings: RunSettings, serving: Serving) -> None:
    """Print the command that starts a server with such an engine, whose own run has the settings."""
    supervise_foreign([settings.policy])
    load_policy(settings.policy, seed=settings.seed)
    on_cpu = for_cpus()
    options = settled(options, on_cpu=on_cpu)
    if serving.as_cache_policy:
        args = cache_policy_args(options, settings, on_cpu=on_cpu)
        say(serve_command(args, {}, model_runner=options.model_runner))
        return
    args = serve_args(options, settings, on_cpu=on_cpu, control=serving.control)
    say(serve_command(args, on_cpu=on_cpu, model_runner=options.model_runner))
