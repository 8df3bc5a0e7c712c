"""`tokencake validate`: what its options ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from ...policies.foreign_code import supervise_foreign
from ...policies.registry import DEFAULT_POLICIES, load_policy
from ...policies.runs.playable import Playable
from ...traces.console.progress import progress_bar
from ...traces.results.reports.publishing import Outputs
from ...traces.results.reports.report_text import cut_off_lines
from ...traces.results.run_counts import check_repeats
from ...traces.variants.workload import WorkloadOptions
from ..machine.files import inputs_of, load_machine
from .validate import REPEATS, same_decisions, validate
from .validation_text import tables, words


def run_validate(
    start: Callable[[], AbstractContextManager[Playable]],
    trace: Path,
    policies: Sequence[str],
    workload: WorkloadOptions,
    outputs: Outputs,
    *,
    machine_name: str | None = None,
    repeats: int = REPEATS,
    link_gbps: float | None = None,
    progress: bool = False,
) -> int:
    """Validate on the engine that `start` gives, and report what finished before an interrupt or a failure.

    Without policies: `DEFAULT_POLICIES`. `progress`: shown even if stderr is no terminal. Returns the exit code: 1 if a
    policy did not last to the end of a run, or if decisions differ. Raises TokencakeError for whatever a user can mend:
    before the engine starts, if it can be found then.
    """
    policies = policies or DEFAULT_POLICIES
    check_repeats(repeats)
    supervise_foreign(policies)
    for spec in policies:
        load_policy(spec, seed=workload.seed)
    workload.check()
    machine = None if machine_name is None else load_machine(machine_name)
    runs = [*policies] * repeats
    outputs.check(inputs_of(trace, machine=machine_name, policies=runs), runs)
    played = workload.of(trace)
    found: list[dict[str, Any]] = []
    try:
        with progress_bar(progress, outputs.quiet) as bar, start() as engine:
            validate(
                engine,
                played,
                policies,
                machine=machine,
                repeats=repeats,
                events=outputs.events,
                link_gbps=link_gbps,
                bar=bar,
                publish=found.append,
            )
    finally:
        for report in found:
            _publish(report, outputs)
    return 0 if all(same_decisions(run) and run["failed"] is None for report in found for run in report["runs"]) else 1


def _publish(report: Mapping[str, Any], outputs: Outputs) -> None:
    outputs.publish(report, [*words(report), *cut_off_lines(report)], partial(tables, report))
