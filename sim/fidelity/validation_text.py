"""A validation for people: a table a policy, and lines on parity and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from ...traces.results.metric import metric_value
from .validation import CRITERIA

SHOWN = (
    ("makespan, s", "makespan_s"),
    ("application latency, mean, s", "app_latency_s.mean"),
    ("TTFT, mean, s", "ttft_s.mean"),
    ("TPOT, mean, s", "tpot_s.mean"),
    ("queueing, mean, s", "queue_s.mean"),
    ("steps", "steps"),
    ("prompt tokens computed", "prefill_tokens.computed"),
    ("  hit on the GPU", "prefill_tokens.gpu_hit"),
    ("  hit on the host", "prefill_tokens.host_hit"),
    ("recomputed tokens", "recomputed_tokens"),
    ("preemptions", "preemptions"),
    ("GPU blocks in use", "gpu_usage_mean"),
    ("effective utilisation", "effective_utilisation"),
    ("held by stalled agents", "stalled_share"),
    ("offloaded, bytes", "offload_bytes"),
    ("uploaded and loaded, bytes", "upload_bytes"),
    ("critical inversions", "critical_inversions"),
)
COLUMNS = ("simulated", "live", "error", "spread")
LABEL_WIDTH, COLUMN_WIDTH, GAP = 28, 9, 2  # characters


def tables(report: Mapping[str, Any], width: int) -> Group:
    """A table for each policy that did not fail: what was simulated, what was live, and how far apart they are.

    Where not all columns fit beside the names of the rows, they come in parts.
    """
    fitting = max(1, (width - LABEL_WIDTH) // (COLUMN_WIDTH + GAP))
    parts = [range(len(COLUMNS))[start : start + fitting] for start in range(0, len(COLUMNS), fitting)]
    return Group(*(_table(run, part) for run in report["runs"] if not run["failed"] for part in parts))


def _table(run: Mapping[str, Any], part: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    table.add_column(run["policy"], overflow="fold", min_width=LABEL_WIDTH)
    for at in part:
        table.add_column(COLUMNS[at], justify="right", no_wrap=True, min_width=COLUMN_WIDTH)
    for label, path in SHOWN:
        values = [metric_value(run["simulated"], path), metric_value(run["live"], path)]
        if not any(values):
            continue
        cells = [*map(_number, values), _percent(run["error"][path], "+"), _percent(run["spread"][path])]
        table.add_row(label, *(cells[at] for at in part))
    table.add_row("")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def _percent(share: float | None, sign: str = "") -> str:
    return "-" if share is None else f"{100 * share:{sign}.1f}%"


AGREEMENT = {
    True: "the verdicts agree",
    False: "the verdicts DISAGREE",
    None: "too few or too noisy repeats to tell whether the verdicts agree",
}


def words(report: Mapping[str, Any], *, verdicts: bool = True) -> list[str]:
    """Parity of decisions, a line a policy; who failed; then who wins, on both sides, a line a policy and metric.

    Without `verdicts`, all but the latter.
    """
    verdict, runs = report["verdict"], report["runs"]
    lines = [_parity(run) for run in runs]
    lines += [f"{run['policy']} failed, and has no verdict: {run['failed']}" for run in runs if run["failed"]]
    if not verdicts:
        return lines
    if len(runs) > 1 and runs[0]["failed"]:
        lines.append(f"there is no verdict: {runs[0]['policy']}, which the others are held against, failed")
    for policy in verdict["live"]:
        for criterion in CRITERIA:
            sides = (verdict[side][policy][criterion.path] for side in ("simulated", "live"))
            lines.append(f"{policy} against {runs[0]['policy']}, {criterion.label}: {_sides(*sides)}")
    if verdict["live"]:
        lines.append(AGREEMENT[verdict["agree"]])
    return lines


def _sides(simulated: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    noise = "one run, no interval" if live["margin"] is None else f"±{_percent(live['margin'])}"
    return (
        f"simulated {simulated['outcome']} ({_percent(simulated['change'], '+')}),"
        f" live {live['outcome']} ({_percent(live['change'], '+')}, {noise})"
    )


def _parity(run: Mapping[str, Any]) -> str:
    parity, runs = run["parity"], len(run["repeats"])
    plans = f"{_counted(parity['plans'], 'plan')} of {_counted(runs, 'live run')} replayed"
    records = (
        f"{_counted(parity['admissions'], 'admission')} and {_counted(parity['records'], 'record')}"
        " with the live step times simulated"
    )
    line = f"{run['policy']}: {plans}, {_differ(plan=parity['different'] + parity['not_replayed'])}; {records}, "
    line += _differ(admission=parity["admissions_different"], record=parity["records_different"])
    return line + (f" (given up {parity['ended']})" if parity["ended"] else "")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _differ(**different: int) -> str:
    """How many of each kind differ: all of them, so that nobody has to ask of which kind none does."""
    counts = [_counted(count, noun) if count else f"no {noun}" for noun, count in different.items()]
    return f"{' and '.join(counts)} {'differ' if sum(different.values()) > 1 else 'differs'}"
