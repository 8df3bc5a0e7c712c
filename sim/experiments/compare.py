"""Plays a trace many times under several policies, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...policies.registry import ROWS, is_bound
from ...traces.errors import EngineError
from ...traces.limits import problem
from ...traces.results.live_reports import read_live_reports
from ...traces.results.metric import check_judged
from ...traces.results.played import played_record
from ...traces.results.run_counts import check_count, check_repeats
from .comparison_report import ComparisonError, ComparisonRuns, Method, build
from .executors import announced, run_on_workers
from .lower_bound import lower_bounds
from .preflight import preflight
from .run import RunSpec, played, run_specs
from .workers import cores

Progress = Callable[[str, int, int], None]  # the policy that has just been played, how many runs are done, of how many


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """A comparison as it is asked for."""

    spec: RunSpec  # what all runs have in common: its policy and its repeat stand for nothing
    policies: tuple[str, ...]  # the first that is no bound is what the others are compared with
    repeats: int
    metric: str
    method: Method
    jobs: int | None = None  # processes; None: as many as there are cores
    policy_timeout_s: float | None = None  # for a policy to be made, and for a plan

    def bounds(self) -> Mapping[str, bool]:
        """Of each policy, whether it sees the future. Raises PolicyError for one that cannot be made."""
        return preflight(self.policies, self.spec.seed, self.policy_timeout_s)

    @property
    def run_count(self) -> int:
        return len(self.policies) * self.repeats


def default_policies() -> tuple[str, ...]:
    """All that have a name here, as they are listed; those that see the future last."""
    return tuple(sorted(ROWS, key=is_bound))


def check(request: ComparisonRequest) -> None:
    """Finds what is wrong before the work begins: raises the TokencakeError that names it."""
    check_judged(request.metric)
    check_repeats(request.repeats)
    check_count(request.run_count, "--policy, --repeat")
    applications, _ = played(request.spec)
    for application in applications:
        if (text := problem(application, request.spec.machine)) is not None:
            raise EngineError(text)
    if all(request.bounds().values()):
        raise ComparisonError("policies: expected one at least that does not see the future: nobody can run the others")


def announcement(request: ComparisonRequest) -> str | None:
    """What is said before very many runs begin."""
    first = replace(request.spec, policy=request.policies[0])
    return announced(request.run_count, first, request.jobs or cores(), request.policy_timeout_s)


def run(request: ComparisonRequest, runs: ComparisonRuns, progress: Progress) -> None:
    """Play all repeats, into `gathered` as they finish. A policy that fails once is not tried again."""
    total = request.run_count
    wanted = runs.wanted(run_specs(request.spec, request.policies, request.repeats))
    for outcome in run_on_workers(wanted, min(request.jobs or cores(), total), request.policy_timeout_s):
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
        lower=[lower_bounds(played(replace(spec, repeat=repeat))[0], spec.machine) for repeat in repeats],
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
    _, counts = played(spec)
    return {
        "trace": played_record(spec.trace, counts, spec.rate, spec.arrivals),
        "machine": spec.machine.settings(),
        "variation": str(spec.variation),
        "seed": spec.seed,
    }
