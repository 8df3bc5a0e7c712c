"""Plays a trace many times under several policies, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...policies.registry import ROWS, is_bound
from ...traces.console.progress import progress_bar
from ...traces.console.terminal import say
from ...traces.errors import EngineError
from ...traces.limits import problem
from ...traces.results.metric import check_judged
from ...traces.results.reports.live_reports import read_live_reports
from ...traces.results.reports.played import played_record
from ...traces.results.reports.publishing import Outputs
from ...traces.results.run_counts import check_count, check_repeats
from ...traces.variants.vary import EVERYTHING, parse_variation
from ...traces.variants.workload import WorkloadOptions
from ...traces.version import __version__
from ..machine.files import MachineChoice, inputs_of
from ..machine.machine import Machine
from .comparison_report import ComparisonError, ComparisonRuns, Method, build, csv_text
from .comparison_text import words
from .executors import announced, run_on_workers
from .lower_bound import attempt_with_bound, lower_bounds_of
from .preflight import preflight
from .processes.workers import cores
from .run import RunSpec, applications_of, exit_code_for, run_specs

if TYPE_CHECKING:
    from rich.console import RenderableType

Progress = Callable[[str, int, int], None]  # the policy that has just been played, how many runs are done, of how many


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """A comparison as it is asked for."""

    spec: RunSpec  # what all runs have in common: its policy and its repeat stand for nothing
    policies: tuple[str, ...]  # the first that is no bound is what the others are compared with
    repeats: int
    metric: str
    method: Method
    workers: int | None = None  # processes; None: as many as there are cores
    policy_timeout_s: float | None = None  # for a policy to be made, and for a plan

    def bounds(self) -> Mapping[str, bool]:
        """Of each policy, whether it sees the future. Raises PolicyError for one that cannot be made."""
        return preflight(self.policies, self.spec.seed, self.policy_timeout_s)

    @property
    def run_count(self) -> int:
        return len(self.policies) * self.repeats


class CompareOptions(NamedTuple):
    """As they are given."""

    specs: tuple[str, ...] = ()  # policies as `load_policy` takes them; none: all that have a name, or that ran
    metric: str = "app_latency_s.mean"
    confidence: float = 0.95
    margin: float = 0.02
    repeat: int = 20
    vary: str | None = None  # as `parse_variation` takes it; None: everything
    policy_timeout: float | None = None
    workers: int | None = None

    def method(self, seed: int, paired: bool) -> Method:
        return Method(self.confidence, self.margin, seed, paired)

    def request(self, trace: Path, machine: Machine, workload: WorkloadOptions) -> ComparisonRequest:
        """What is asked for of this trace. Errors as `parse_variation`."""
        method = self.method(workload.seed, paired=True)
        variation = EVERYTHING if self.vary is None else parse_variation(self.vary)
        policies = tuple(dict.fromkeys(self.specs)) or default_policies()
        how = (workload.seed, workload.rate, workload.arrivals, workload.skip_oversized)
        spec = RunSpec(trace, machine, policies[0], variation, 0, *how)
        return ComparisonRequest(spec, policies, self.repeat, self.metric, method, self.workers, self.policy_timeout)


def compare(
    trace: Path,
    options: CompareOptions,
    machine: MachineChoice,
    workload: WorkloadOptions,
    outputs: Outputs,
    progress: bool = False,
) -> int:
    """Play the trace many times under each policy, and report the repeats that all finished, also at an interrupt.

    The exit code is 1 if a policy failed. `progress`: shown even if stderr is no terminal. Raises TokencakeError for
    whatever a user can mend, before the work begins.
    """
    outputs.check(inputs_of(trace, machine=machine.name, policies=options.specs))
    request = options.request(trace, machine.load(), workload)
    check(request)
    if line := announcement(request):
        say(line, err=True)
    runs = ComparisonRuns(request.policies)
    try:
        with progress_bar(progress, outputs.quiet) as bar:
            run(request, runs, lambda policy, done, total: bar("comparing", done, total, policy))
    except KeyboardInterrupt:
        if runs.repeats():
            _publish(report(request, runs, __version__), outputs)
        raise
    return _publish(report(request, runs, __version__), outputs)


def compare_live(reports: Sequence[Path], options: CompareOptions, seed: int, outputs: Outputs) -> int:
    """Compare runs of a real engine, of reports of `tokencake live`. As `compare`; errors as `report_live`."""
    outputs.check(inputs_of(*reports, policies=options.specs))
    method = options.method(seed, paired=False)
    return _publish(report_live(reports, options.specs, options.metric, method), outputs)


def _publish(report: Mapping[str, Any], outputs: Outputs) -> int:
    """Write and print a comparison. The exit code: 1 if a policy failed."""
    if left_out := report["trace"].get("oversized"):
        say(f"left out: {left_out} applications, larger than the engine", err=True)
    outputs.publish(report, words(report), partial(_tables, report), partial(csv_text, report))
    return exit_code_for([failure["error"] for failure in report["failed"]])


def _tables(report: Mapping[str, Any], width: int) -> RenderableType:
    from .comparison_tables import tables  # loads rich

    return tables(report, width)


def default_policies() -> tuple[str, ...]:
    """All that have a name here, as they are listed; those that see the future last."""
    return tuple(sorted(ROWS, key=is_bound))


def check(request: ComparisonRequest) -> None:
    """Finds what is wrong before the work begins: raises the TokencakeError that names it."""
    check_judged(request.metric)
    check_repeats(request.repeats)
    check_count(request.run_count, "--policy, --repeat")
    applications, _ = applications_of(request.spec)
    for application in applications:
        if (text := problem(application, request.spec.machine)) is not None:
            raise EngineError(text)
    if all(request.bounds().values()):
        raise ComparisonError("policies: expected one at least that does not see the future: nobody can run the others")


def announcement(request: ComparisonRequest) -> str | None:
    """What is said before very many runs begin."""
    first = replace(request.spec, policy=request.policies[0])
    return announced(request.run_count, first, request.workers or cores(), request.policy_timeout_s)


def run(request: ComparisonRequest, runs: ComparisonRuns, progress: Progress) -> None:
    """Play all repeats, into `runs` as they finish. A policy that fails once is not tried again."""
    total = request.run_count
    specs, count = run_specs(request.spec, request.policies, request.repeats), min(request.workers or cores(), total)
    act = partial(attempt_with_bound, request.policies[0])
    with closing(run_on_workers(specs, count, request.policy_timeout_s, runs.wants, act)) as outcomes:
        for outcome in outcomes:
            runs.add(outcome)
            progress(outcome.spec.policy, runs.outcomes, total)


def report(request: ComparisonRequest, runs: ComparisonRuns, version: str) -> dict[str, Any]:
    """What the repeats say that all policies have finished. Raises `ComparisonError` if there are none."""
    spec, repeats = request.spec, runs.repeats()
    if not repeats:
        reason = next(iter(runs.failed.values()), "no repeat was finished by every policy")
        raise ComparisonError(f"nothing to compare: {reason}")
    return build(
        {"version": version, **_about(spec)},
        request.metric,
        runs.finished(),
        request.method,
        bounds=[policy for policy, bound in request.bounds().items() if bound],
        lower=[runs.lower.get(repeat) or lower_bounds_of(replace(spec, repeat=repeat)) for repeat in repeats],
        failed=runs.failed,
    )


def report_live(paths: Sequence[Path], policies: Sequence[str], metric: str, method: Method) -> dict[str, Any]:
    """What repeated runs of a real engine say: of these policies, or of all that ran, the first ones first.

    Raises `ComparisonError` for a policy that is not in the reports, and what `read_live_reports` raises.
    """
    check_judged(metric)
    found = read_live_reports(paths)
    for policy in policies:
        if policy not in found.runs and policy not in found.failed:
            known = ", ".join(found.runs)
            raise ComparisonError(f"policy {policy}: is not in {paths[0]}: known are {known}")
    runs = {policy: found.runs[policy] for policy in policies or found.runs if policy in found.runs}
    about = {**found.about, "variation": None, "seed": method.seed}
    return build(about, metric, runs, method, failed=found.failed)


def _about(spec: RunSpec) -> Mapping[str, object]:
    """What was played."""
    _, counts = applications_of(spec)
    return {
        "trace": played_record(spec.trace, counts, spec.rate, spec.arrivals),
        "machine": spec.machine.settings(),
        "variation": str(spec.variation),
        "seed": spec.seed,
    }
