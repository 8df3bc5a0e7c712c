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
from .cell import Cell, cells, played
from .comparison_report import ComparisonError, Gathered, Method, build
from .executors import announced, run_on_workers
from .lower_bound import lower_bounds
from .try_out import tried
from .workers import cores

Progress = Callable[[str, int, int], None]  # the policy that has just been played, how many runs are done, of how many


@dataclass(frozen=True, slots=True)
class Asked:
    """A comparison as it is asked for."""

    cell: Cell  # what all runs have in common: its policy and its repeat stand for nothing
    policies: tuple[str, ...]  # the first that is no bound is what the others are compared with
    repeats: int
    metric: str
    method: Method
    jobs: int | None = None  # processes; None: as many as there are cores
    policy_timeout_s: float | None = None  # for a policy to be made, and for a plan

    def bounds(self) -> Mapping[str, bool]:
        """Of each policy, whether it sees the future. Raises PolicyError for one that cannot be made."""
        return tried(self.policies, self.cell.seed, self.policy_timeout_s)

    @property
    def runs(self) -> int:
        return len(self.policies) * self.repeats


def default_policies() -> tuple[str, ...]:
    """All that have a name here, as they are listed; those that see the future last."""
    return tuple(sorted(ROWS, key=is_bound))


def check(asked: Asked) -> None:
    """Finds what is wrong before the work begins: raises the TokencakeError that names it."""
    check_judged(asked.metric)
    check_repeats(asked.repeats)
    check_count(asked.runs, "--policy, --repeat")
    applications, _ = played(asked.cell)
    for application in applications:
        if (text := problem(application, asked.cell.machine)) is not None:
            raise EngineError(text)
    if all(asked.bounds().values()):
        raise ComparisonError("policies: expected one at least that does not see the future: nobody can run the others")


def announcement(asked: Asked) -> str | None:
    """What is said before very many runs begin."""
    first = replace(asked.cell, policy=asked.policies[0])
    return announced(asked.runs, first, asked.jobs or cores(), asked.policy_timeout_s)


def run(asked: Asked, gathered: Gathered, progress: Progress) -> None:
    """Play all repeats, into `gathered` as they finish. A policy that fails once is not tried again."""
    total = asked.runs
    wanted = gathered.wanted(cells(asked.cell, asked.policies, asked.repeats))
    for outcome in run_on_workers(wanted, min(asked.jobs or cores(), total), asked.policy_timeout_s):
        gathered.add(outcome)
        progress(outcome.cell.policy, gathered.outcomes, total)


def report(asked: Asked, gathered: Gathered, version: str) -> dict[str, Any]:
    """What the repeats say that all policies have finished. Raises `ComparisonError` if there are none."""
    cell, repeats = asked.cell, gathered.repeats()
    if not repeats:
        reason = next(iter(gathered.failed.values()), "no repeat was finished by every policy")
        raise ComparisonError(f"nothing to compare: {reason}")
    return build(
        {"version": version, **_about(cell)},
        asked.metric,
        gathered.finished(),
        asked.method,
        bounds=[policy for policy, bound in asked.bounds().items() if bound],
        lower=[lower_bounds(played(replace(cell, repeat=repeat))[0], cell.machine) for repeat in repeats],
        failed=gathered.failed,
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


def _about(cell: Cell) -> Mapping[str, object]:
    """What was played."""
    _, counts = played(cell)
    return {
        "trace": played_record(cell.trace, counts, cell.rate, cell.arrivals),
        "machine": cell.machine.settings(),
        "variation": str(cell.variation),
        "seed": cell.seed,
    }
