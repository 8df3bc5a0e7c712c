"""The tables of a report: metrics as rows and policies as columns, then the distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..metric import metric_value
from ..number_formats import SAME, milliseconds, number, percent, seconds, share, significant, size
from .repeats import averaged, change, named

LEAST_LABEL_WIDTH = 8  # characters; where there is no room for more, labels go over several lines
LABEL_WIDTH, VALUE_WIDTH, CHANGE_WIDTH, GAP = 25, 9, 8, 2  # characters in the summary


class ReportRow(NamedTuple):
    """A line of the summary: a value of a run, and which direction is the good one. None: not worth a percentage."""

    label: str
    path: str  # keys from the run's record down, joined by dots
    show: Callable[[float], str]
    better: Literal["lower", "higher", "neither"] | None = "neither"


SUMMARY = (
    ReportRow("makespan", "metrics.makespan_s", seconds, "lower"),
    ReportRow("application latency, mean", "metrics.app_latency_s.mean", seconds, "lower"),
    ReportRow("TTFT, mean", "metrics.ttft_s.mean", seconds, "lower"),
    ReportRow("TPOT, mean", "metrics.tpot_s.mean", milliseconds, "lower"),
    ReportRow("queueing, mean", "metrics.queue_s.mean", seconds, "lower"),
    ReportRow("prompt tokens computed", "metrics.prefill_tokens.computed", number, "lower"),
    ReportRow("  hit on the GPU", "metrics.prefill_tokens.gpu_hit", number),
    ReportRow("  hit on the host", "metrics.prefill_tokens.host_hit", number),
    ReportRow("recomputed tokens", "metrics.recomputed_tokens", number, "lower"),
    ReportRow("preemptions", "metrics.preemptions", number, "lower"),
    ReportRow("GPU blocks in use", "metrics.gpu_usage_mean", share),
    ReportRow("effective utilisation", "metrics.effective_utilisation", share, "higher"),
    ReportRow("held by stalled agents", "metrics.stalled_share", share),
    ReportRow("offloaded", "metrics.offload_bytes", size),
    ReportRow("  in jobs", "metrics.offload_jobs", number),
    ReportRow("uploaded and loaded", "metrics.upload_bytes", size),
    ReportRow("  jobs ahead of calls", "metrics.upload_jobs", number),
    ReportRow("  jobs on demand", "metrics.load_jobs", number),
    ReportRow("uploads on time", "metrics.uploads.on_time", number),
    ReportRow("  early", "metrics.uploads.early", number),
    ReportRow("  late", "metrics.uploads.late", number),
    ReportRow("  cancelled", "metrics.uploads.cancelled", number),
    ReportRow("idle upload, block-s", "metrics.upload_idle_block_s", number, "lower"),
    ReportRow("critical inversions", "metrics.critical_inversions", number, "lower"),
    ReportRow("time in the policy", "policy_s", seconds, None),
    ReportRow("simulated calls/s", "calls_per_s", number, None),
)
LIVE_SUMMARY = (*SUMMARY[:-1], ReportRow("calls/s", "calls_per_s", number, None))
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
COLUMN_WIDTH = 7  # characters
DISTRIBUTIONS = (
    ("application latency, s", "app_latency_s", 1.0),
    ("TTFT, s", "ttft_s", 1.0),
    ("TPOT, ms", "tpot_s", 1000.0),
    ("queueing, s", "queue_s", 1.0),
)
DISTRIBUTION_WIDTH = max(len(label) for label, _, _ in DISTRIBUTIONS)


def tables(report: Mapping[str, Any], width: int) -> Group:
    """Metrics as rows and policies as columns, then the distributions. Readable from 40 characters on.

    Where not all policies fit side by side, the summary comes in parts, each beginning with the first policy.
    """
    runs = averaged(report["runs"])
    first, *others = runs
    rows = LIVE_SUMMARY if "engine" in report else SUMMARY
    room = width - LABEL_WIDTH - GAP - _width(first, VALUE_WIDTH)
    parts = [_summary(rows, first, part, width) for part in _parts(others, room)]
    return Group(*parts, *_distributions(runs, width))


def _width(run: Mapping[str, Any], least: int) -> int:
    """Characters of a policy's column; a heading that is much longer is folded."""
    longest = max(len(line) for line in _heading(named(run)).splitlines())
    return max(least, min(longest, VALUE_WIDTH + CHANGE_WIDTH))


def _parts(runs: Sequence[Mapping[str, Any]], room: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Runs whose columns fit into `room`, at least one at a time."""
    part: list[Mapping[str, Any]] = []
    left = room
    for run in runs:
        needed = GAP + _width(run, VALUE_WIDTH + CHANGE_WIDTH)
        if part and needed > left:
            yield part
            part, left = [], room
        part.append(run)
        left -= needed
    yield part


def _summary(
    rows: Sequence[ReportRow], first: Mapping[str, Any], others: Sequence[Mapping[str, Any]], width: int
) -> Table:
    columns = [(first, VALUE_WIDTH), *((run, VALUE_WIDTH + CHANGE_WIDTH) for run in others)]
    widths = [_width(run, least) for run, least in columns]
    gap = GAP if LABEL_WIDTH + sum(GAP + column for column in widths) <= width else 1
    label_width = min(LABEL_WIDTH, max(LEAST_LABEL_WIDTH, width - sum(gap + column for column in widths)))
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column("", min_width=label_width, max_width=label_width, overflow="fold")
    for (run, _), column in zip(columns, widths, strict=True):
        title = Text(_heading(named(run)), overflow="fold")
        table.add_column(title, justify="right", vertical="bottom", min_width=column, max_width=column)
    for row in rows:
        base = _figure(first, row.path)
        cells = [_cell(row, _figure(run, row.path), base) for run in others]
        table.add_row(row.label, "-" if base is None else row.show(base), *cells)
    table.add_row("")
    return table


def _heading(policy: str) -> str:
    """A policy with its options on lines of their own."""
    return policy.replace(":", ":\n", 1).replace(",", ",\n")


def _cell(row: ReportRow, value: float | None, base: float | None) -> Text:
    text = Text("-" if value is None else row.show(value))
    difference = change(value, base) if row.better else None
    share_of_base = "" if difference is None else percent(difference)
    style = "dim"
    if difference is not None and row.better != "neither" and abs(difference) >= SAME:
        style = "green" if (difference < 0) == (row.better == "lower") else "red"
    return text.append(f"{share_of_base:>{CHANGE_WIDTH}}", style=style)


def _figure(run: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of some runs' mean, if they are the policy's own."""
    return None if run["failed"] else metric_value(run, path)


def _distributions(runs: Sequence[Mapping[str, Any]], width: int) -> Iterator[Table]:
    """Where not all columns fit beside the names of the rows, they come in parts."""
    fitting = max(1, (width - DISTRIBUTION_WIDTH) // (COLUMN_WIDTH + 1))
    for start in range(0, len(COLUMNS), fitting):
        yield _distribution(runs, COLUMNS[start : start + fitting])


def _distribution(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", overflow="fold", min_width=DISTRIBUTION_WIDTH)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True, min_width=COLUMN_WIDTH)
    for label, key, factor in DISTRIBUTIONS:
        table.add_row(Text(label, style="bold"))
        for run in runs:
            values = (_figure(run, f"metrics.{key}.{name}") for name in names)
            cells = ("-" if value is None else significant(factor * value) for value in values)
            table.add_row("  " + named(run), *cells)
    return table
