"""Which policy is better, by how much, and how sure: the report of many repeats under several policies.

The report has the schema `tokencake.comparison/1`. For one metric, and under `also` for others, it has the policies,
best first: `mean` over the repeats with its interval; `against_first` and `against_best`, each the ratio of means, its
interval and a verdict, see `verdict.py`; and `oracle_gain`, which share of what the oracle gains over the first policy
this one gains, if an oracle is there. A `bound` sees the future: it is shown, and never wins. `lower_bound` is what no
policy can better, see `lower_bound.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any

from ...traces.errors import TokencakeError
from ...traces.results.csv_table import csv_table
from ...traces.results.metric import higher_is_better, metric_value
from ...traces.results.verdict import (
    MeanComparison,
    interval_of_mean,
    judge_paired,
    judge_unpaired,
    noise_floor,
    share_of_gain,
)
from .lower_bound import has_bound
from .run import Outcome, RunSpec

SCHEMA = "tokencake.comparison/1"
STANDARD_METRICS = (
    "app_latency_s.mean",
    "app_latency_s.p95",
    "app_latency_s.p99",
    "makespan_s",
    "ttft_s.mean",
    "ttft_s.p99",
)
Metrics = Mapping[str, Any]  # of one run


class ComparisonError(TokencakeError):
    """There is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Method:
    """How verdicts are made."""

    confidence: float = 0.95
    margin: float = 0.02  # ratios within 1 ± this are no difference that anybody would act on
    seed: int = 0
    paired: bool = True  # whether repeats of the same number have the same chance

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise ComparisonError(f"--confidence: expected a number from 0.5 to below 1, got {self.confidence}")
        if not 0 <= self.margin <= 0.5:
            raise ComparisonError(f"--margin: expected a number from 0 to 0.5, got {self.margin}")


@dataclass(slots=True)
class ComparisonRuns:
    """What has come in so far of the runs of a comparison, in whatever order."""

    policies: tuple[str, ...]
    runs: dict[tuple[str, int], Metrics] = field(default_factory=dict)
    lower: dict[int, Metrics] = field(default_factory=dict)  # lower bounds of repeats, as far as they came with a run
    failed: dict[str, str] = field(default_factory=dict)  # policies that could not play a repeat, and why
    outcomes: int = 0

    def add(self, outcome: Outcome) -> None:
        spec = outcome.spec
        self.outcomes += 1
        if outcome.metrics is None:
            self.failed.setdefault(spec.policy, f"repeat {spec.repeat}: {outcome.error}")
        else:
            self.runs[spec.policy, spec.repeat] = outcome.metrics
        if outcome.lower is not None:
            self.lower[spec.repeat] = outcome.lower

    def wants(self, spec: RunSpec) -> bool:
        """Whether a run is worth playing: one that is there is not, nor another of a policy that has failed."""
        return (spec.policy, spec.repeat) not in self.runs and spec.policy not in self.failed

    def repeats(self) -> list[int]:
        """Those that every policy has finished, except policies that failed."""
        left = [policy for policy in self.policies if policy not in self.failed]
        seen = sorted({repeat for _, repeat in self.runs})
        return [repeat for repeat in seen if left and all((policy, repeat) in self.runs for policy in left)]

    def finished(self) -> dict[str, list[Metrics]]:
        """By policy, the metrics of these repeats."""
        repeats = self.repeats()
        left = [policy for policy in self.policies if policy not in self.failed]
        return {policy: [self.runs[policy, repeat] for repeat in repeats] for policy in left} if repeats else {}


def build(
    about: Mapping[str, object],
    metric: str,
    runs: Mapping[str, Sequence[Metrics]],
    method: Method,
    *,
    bounds: Collection[str] = (),
    lower: Sequence[Metrics] = (),
    failed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The report. `about` is what was played: version, trace, machine, variation, seed.

    `runs` has the metrics of each policy's repeats; the first that is no bound is what the others are compared with.
    `bounds` are the policies that see the future, `lower` the lower bounds of each repeat, if there are any. Raises
    `ComparisonError` if no policy is left that is no bound.
    """
    if all(policy in bounds for policy in runs):
        reason = next(iter((failed or {}).values()), "expected a policy that does not see the future")
        raise ComparisonError(f"nothing to compare: {reason}")
    others = [path for path in STANDARD_METRICS if path != metric]
    return {
        "schema": SCHEMA,
        **about,
        "metric": metric,
        "repeats": min(len(repeats) for repeats in runs.values()),
        "confidence": method.confidence,
        "margin": method.margin,
        "first": next(policy for policy in runs if policy not in bounds),
        **_judged_by(metric, runs, method, bounds, lower),
        "also": [{"metric": path, **_judged_by(path, runs, method, bounds, lower)} for path in others],
        "failed": [{"policy": policy, "error": error} for policy, error in (failed or {}).items()],
    }


@dataclass(frozen=True, slots=True)
class _Field:
    """The values of one metric under all policies, and how they are judged."""

    values: Mapping[str, Sequence[float]]
    method: Method
    higher: bool
    floor: float

    def judge(self, policy: str, base: str, comparisons: int) -> dict[str, Any]:
        method = self.method
        judge: Callable[..., MeanComparison] = (
            judge_paired if method.paired else partial(judge_unpaired, floor=self.floor)
        )
        return _record(
            judge(
                self.values[policy],
                self.values[base],
                confidence=method.confidence,
                margin=method.margin,
                comparisons=comparisons,
                higher_is_better=self.higher,
                seed=method.seed,
            )
        )


def _judged_by(
    metric: str,
    runs: Mapping[str, Sequence[Metrics]],
    method: Method,
    bounds: Collection[str],
    lower: Sequence[Metrics],
) -> dict[str, Any]:
    """What one metric says of all policies."""
    values = {policy: _values(repeats, metric) for policy, repeats in runs.items()}
    measured = {policy: found for policy, found in values.items() if found}
    floor = 0.0 if method.paired else noise_floor(list(measured.values()))
    judging = _Field(measured, method, higher_is_better(metric), floor)
    contenders = [policy for policy in runs if policy not in bounds]
    oracle = next((policy for policy in runs if policy in bounds and policy in measured), None)
    ranked = _ranked(list(runs), judging)
    best = next((policy for policy in ranked if policy in contenders and policy in measured), None)
    record: dict[str, Any] = {"policies": [_row(policy, contenders, best, oracle, judging) for policy in ranked]}
    if not method.paired:
        record["noise_floor"] = floor
    if lower and has_bound(metric):
        record["lower_bound"] = _mean(_values(lower, metric), method)
    return record


def _ranked(policies: Sequence[str], judging: _Field) -> list[str]:
    """Best first; those without a value last; equal ones as they were asked for."""

    def key(policy: str) -> tuple[bool, float, int]:
        found = judging.values.get(policy)
        mean = sum(found) / len(found) if found else 0.0
        return not found, -mean if judging.higher else mean, policies.index(policy)

    return sorted(policies, key=key)


def _row(
    policy: str, contenders: Sequence[str], best: str | None, oracle: str | None, judging: _Field
) -> dict[str, Any]:
    method, first = judging.method, contenders[0]
    bound, others = policy not in contenders, len(contenders) - 1
    row: dict[str, Any] = {"policy": policy, "bound": bound, **_mean(judging.values.get(policy, ()), method)}
    against = {"against_first": (first, max(others, 1)), "against_best": (best, max(others * (others + 1) // 2, 1))}
    for name, (base, comparisons) in against.items():
        known = base in judging.values and policy in judging.values
        row[name] = judging.judge(policy, base, comparisons) if base is not None and known else None
        if bound and row[name] is not None:
            row[name]["verdict"] = None  # nobody can run it: it does not take part
    if oracle is not None and method.paired:
        row["oracle_gain"] = _gain(policy, first, oracle, judging)
    return row


def _gain(policy: str, first: str, oracle: str, judging: _Field) -> dict[str, Any] | None:
    values = judging.values
    if policy not in values or first not in values or policy == first:
        return None
    found = share_of_gain(values[policy], values[first], values[oracle], judging.method.confidence, judging.method.seed)
    return None if found is None else {"share": found.share, "interval": list(found.interval)}


def _mean(values: Sequence[float], method: Method) -> dict[str, Any]:
    if not values:
        return {"mean": None, "interval": None}
    interval = interval_of_mean(values, method.confidence, method.seed)
    return {"mean": sum(values) / len(values), "interval": list(interval)}


def _values(repeats: Sequence[Metrics], metric: str) -> list[float]:
    """One for each repeat; none at all if one of them has none."""
    found = [value for metrics in repeats if (value := metric_value(metrics, metric)) is not None]
    return found if len(found) == len(repeats) else []


def _record(judged: MeanComparison) -> dict[str, Any]:
    low, high = judged.interval
    return {"ratio": finite(judged.ratio), "interval": [finite(low), finite(high)], "verdict": judged.verdict}


def finite(value: float) -> float | None:
    """JSON has no infinity: what cannot be divided has no ratio."""
    return value if isfinite(value) else None


# -- as a table of values

COLUMNS = (
    *("metric", "policy", "bound", "repeats", "mean", "mean_low", "mean_high"),
    *("ratio", "ratio_low", "ratio_high", "verdict", "oracle_share", "oracle_share_low", "oracle_share_high"),
)


def csv_text(report: Mapping[str, Any]) -> str:
    """One line for each metric and policy. What is absent is empty."""
    return csv_table(
        COLUMNS,
        (_csv_row(report, judged, row) for judged in (report, *report["also"]) for row in judged["policies"]),
    )


def _csv_row(report: Mapping[str, Any], judged: Mapping[str, Any], row: Mapping[str, Any]) -> list[object]:
    against, gain = row["against_first"] or {}, row.get("oracle_gain") or {}
    return [
        judged["metric"],
        row["policy"],
        str(row["bound"]).lower(),
        report["repeats"],
        row["mean"],
        *(row["interval"] or ("", "")),
        against.get("ratio"),
        *(against.get("interval") or ("", "")),
        against.get("verdict"),
        gain.get("share"),
        *(gain.get("interval") or ("", "")),
    ]
