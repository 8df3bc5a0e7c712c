"""What a sweep found: as data with the schema `tokencake.sweep/1`, as CSV, and a line a point in words.

All of it depends on what was played and on nothing else: not on who played it, how long it took, or in which order.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ....traces.results.csv_table import csv_table
from ....traces.results.metric import higher_is_better, metric_value, shown
from ....traces.results.reports.played import trace_record
from ....traces.results.verdict import interval_of_mean, judge_paired
from ....traces.version import __version__
from ..comparison_report import STANDARD_METRICS, Method, finite
from ..comparison_text import BOUND, percent
from .grid import Point
from .plan import Sweep
from .result_log import Result

SCHEMA = "tokencake.sweep/1"
METHOD = Method()
SHOWN = (
    "app_latency_s.mean",
    "app_latency_s.p50",
    "app_latency_s.p95",
    "app_latency_s.p99",
    "makespan_s",
    "ttft_s.mean",
    "ttft_s.p99",
    "tpot_s.mean",
    "queue_s.mean",
    "prefill_tokens.computed",
    "prefill_tokens.gpu_hit",
    "prefill_tokens.host_hit",
    "recomputed_tokens",
    "preemptions",
    "gpu_usage_mean",
    "effective_utilisation",
    "offload_bytes",
    "upload_bytes",
)

Results = Mapping[str, Result]


def build(sweep: Sweep, results: Results, metric: str) -> dict[str, Any]:
    """The report: all points in the order of the grid, also those of which nothing is there yet.

    `metric` is the one that the sweep is about: it is among those that are shown and judged.
    """
    grid = sweep.grid
    return {
        "schema": SCHEMA,
        "version": __version__,
        "trace": trace_record(sweep.trace),
        "machine": grid.points[0].machine.settings(),  # of the first point
        "rate": grid.points[0].rate,
        "arrivals": sweep.arrivals,
        "variation": asdict(sweep.variation),
        "seed": sweep.seed,
        "skip_oversized": sweep.skip_oversized,
        "repeats": sweep.repeats,
        "confidence": METHOD.confidence,
        "margin": METHOD.margin,
        "metric": metric,
        "axes": [{"key": axis.key, "values": list(axis.values)} for axis in grid.axes],
        "points": [_point(sweep, results, point, metric) for point in grid.points],
        "missing": sum(sweep.key(cell) not in results for point in grid.points for cell in sweep.cells_at(point)),
        "failures": [failure for point in grid.points for failure in _failures(sweep, results, point)],
    }


def _point(sweep: Sweep, results: Results, point: Point, metric: str) -> dict[str, Any]:
    runs = _runs_at(sweep, results, point)
    paths, judged = dict.fromkeys((*SHOWN, metric)), {*STANDARD_METRICS, metric}
    left_out = [result.oversized for of_policy in runs.values() for result in of_policy.values()]
    return {
        "at": dict(point.at),
        "oversized": left_out[0] if left_out else None,
        "policies": [_policy(sweep, runs, policy, paths, judged) for policy in sweep.policies],
    }


Runs = Mapping[int, Result]  # by repeat, those that came to their end


def _runs_at(sweep: Sweep, results: Results, point: Point) -> Mapping[str, Runs]:
    """What is there of each policy."""
    runs: dict[str, dict[int, Result]] = {policy: {} for policy in sweep.policies}
    for cell in sweep.cells_at(point):
        result = results.get(sweep.key(cell))
        if result is not None and result.metrics is not None:
            runs[cell.policy][cell.repeat] = result
    return runs


def _policy(
    sweep: Sweep, runs: Mapping[str, Runs], policy: str, paths: Iterable[str], judged: Container[str]
) -> dict[str, Any]:
    return {
        "policy": policy,
        "bound": sweep.bounds()[policy],
        "repeats": len(runs[policy]),
        "metrics": {
            path: {
                **_mean(_values(runs[policy], path), sweep.seed),
                **({"against_first": _against_first(sweep, runs, policy, path)} if path in judged else {}),
            }
            for path in paths
        },
    }


def _values(runs: Runs, path: str) -> dict[int, float]:
    """A metric by repeat, where it has a meaning."""
    return {
        repeat: value
        for repeat, result in sorted(runs.items())
        if result.metrics is not None and (value := metric_value(result.metrics, path)) is not None
    }


def _mean(by_repeat: Mapping[int, float], seed: int) -> dict[str, Any]:
    values = list(by_repeat.values())
    interval = list(interval_of_mean(values, METHOD.confidence, seed)) if len(values) > 1 else None
    return {"mean": math.fsum(values) / len(values) if values else None, "interval": interval, "values": values}


def _against_first(sweep: Sweep, runs: Mapping[str, Runs], policy: str, path: str) -> dict[str, Any] | None:
    """How a policy compares with the first, in the repeats that both have.

    One repeat has neither interval nor verdict, and a bound has no verdict: it is no contender. The confidence holds
    for all comparisons of a metric in the sweep together.
    """
    first = sweep.policies[0]
    values, base = _values(runs[policy], path), _values(runs[first], path)
    both = sorted(values.keys() & base.keys())
    if policy == first or not both:
        return None
    judged = judge_paired(
        [values[repeat] for repeat in both],
        [base[repeat] for repeat in both],
        confidence=METHOD.confidence,
        margin=METHOD.margin,
        comparisons=(len(sweep.policies) - 1) * len(sweep.grid.points),
        higher_is_better=higher_is_better(path),
        seed=sweep.seed,
    )
    several = len(both) > 1
    return {
        "ratio": finite(judged.ratio),
        "interval": [finite(end) for end in judged.interval] if several else None,
        "verdict": judged.verdict if several and not sweep.bounds()[policy] else None,
    }


def _failures(sweep: Sweep, results: Results, point: Point) -> Iterator[dict[str, Any]]:
    for cell in sweep.cells_at(point):
        result = results.get(sweep.key(cell))
        if result is not None and result.error is not None:
            yield {"at": dict(point.at), "policy": cell.policy, "repeat": cell.repeat, "error": result.error}


def csv_text(report: Mapping[str, Any]) -> str:
    """A row a point and policy. What is absent is empty; names of metrics are those of the JSON, with what follows."""
    rows = [
        {**point["at"], "oversized": point["oversized"], **dict(_cells(policy))}
        for point in report["points"]
        for policy in point["policies"]
    ]
    return csv_table(list(rows[0]), (list(row.values()) for row in rows))


def _cells(policy: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield from ((key, policy[key]) for key in ("policy", "bound", "repeats"))
    for path, found in policy["metrics"].items():
        yield path, found["mean"]
        yield from zip((f"{path}.low", f"{path}.high"), found["interval"] or (None, None), strict=True)
        if "against_first" in found:
            against = found["against_first"] or {}
            yield f"{path}.ratio", against.get("ratio")
            ends = against.get("interval") or (None, None)
            yield from zip((f"{path}.ratio_low", f"{path}.ratio_high"), ends, strict=True)
            yield f"{path}.verdict", against.get("verdict")


def point_line(sweep: Sweep, results: Results, point: Point, metric: str) -> str:
    """`qps=0.5: vllm 871.4 s, tokencake 481.4 s (-44.8%, wins)`."""
    runs = _runs_at(sweep, results, point)
    policies = [_policy(sweep, runs, policy, [metric], [metric]) for policy in sweep.policies]
    return f"{point.label()}: {', '.join(_said(policy, metric) for policy in policies)}"


def _said(policy: Mapping[str, Any], metric: str) -> str:
    name = policy["policy"] + (BOUND if policy["bound"] else "")
    found = policy["metrics"][metric]
    if found["mean"] is None:
        return f"{name} {'failed' if not policy['repeats'] else '-'}"
    said = f"{name} {shown(metric, found['mean'])}"
    if (against := found["against_first"]) is None or against["ratio"] is None:
        return said
    words = [percent(against["ratio"]), *([against["verdict"]] if against["verdict"] else [])]
    return f"{said} ({', '.join(words)})"


def problems(report: Mapping[str, Any]) -> list[str]:
    """What somebody should know who reads the figures, a line each."""
    lines = []
    if failures := report["failures"]:
        lines.append(f"{_counted(len(failures), 'failed, and is', 'failed, and are')} played again next time")
    if report["missing"]:
        lines.append(f"{_counted(report['missing'], 'is', 'are')} missing: the same command goes on")
    if report["repeats"] == 1:
        lines.append("one repeat: no intervals and no verdicts")
    if len({point["oversized"] for point in report["points"]} - {None}) > 1:
        lines.append("applications that a machine cannot hold are left out: not all points play the same ones")
    return lines


def _counted(cells: int, one: str, several: str) -> str:
    return f"1 cell {one}" if cells == 1 else f"{cells:,} cells {several}"
