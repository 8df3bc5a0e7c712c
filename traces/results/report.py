"""The report of a comparison: one dictionary, and what is shown of it as tables, as CSV and in words.

The dictionary has the schema `tokencake.report/1`: what was simulated (`version`, `trace`, `machine`), and `runs`, one
for each policy in the order asked for. All but `wall_s`, `calls_per_s` and `policy_s` of a run are the same whenever
the same is simulated again. The keys of `metrics` are those of `traces.metrics.Metrics`.

The report of a live comparison has the same shape, and `engine`, which says which engine that was. Its policies may
have several runs each, told apart by `repeat`; tables and verdict are then about their means. A run with `failed`, a
line that says why, was not the policy's to its end: a policy with such a run has no figures and no verdict. A run that
an interrupt or the engine ended is none of `runs`: it is one of `partial`, with the metrics of what had happened until
then, and says there why it ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any, Literal, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .csv_table import csv_table

SCHEMA = "tokencake.report/1"
SAME = 0.0005  # relative changes below this show as 0.0 %: nobody wins by them

LEAST_LABEL_WIDTH = 8  # characters; where there is no room for more, labels go over several lines
LABEL_WIDTH, VALUE_WIDTH, CHANGE_WIDTH, GAP = 25, 9, 8, 2  # characters in the summary


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's run, as far as it came."""

    policy: str  # as it was asked for, options included
    options: Mapping[str, object]
    seed: int
    wall_s: float
    policy_s: float | None  # of it: spent in the policy; None: nobody knows
    metrics: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)  # what only some engines have to say

    def record(self) -> dict[str, Any]:
        calls = self.metrics["calls"]
        return {
            "policy": self.policy,
            "options": dict(self.options),
            "seed": self.seed,
            "wall_s": self.wall_s,
            "calls_per_s": calls / self.wall_s if self.wall_s > 0 else None,
            "policy_s": self.policy_s,
            "metrics": dict(self.metrics),
            **self.more,
        }


def build(
    version: str,
    trace: Mapping[str, object],
    machine: Mapping[str, object],
    runs: Sequence[Run],
    engine: Mapping[str, object] | None = None,
    partial: Sequence[Run] = (),
) -> dict[str, Any]:
    """The report. `trace` has at least path, sha256, applications and calls; `machine` its name and settings.

    `engine` has the name and the version of the engine if it is a real one. `partial`: runs that were cut off.
    """
    return {
        "schema": SCHEMA,
        "version": version,
        **({"engine": engine["name"], "engine_version": engine["version"]} if engine else {}),
        "trace": dict(trace),
        "machine": dict(machine),
        "runs": [run.record() for run in runs],
        **({"partial": [run.record() for run in partial]} if partial else {}),
    }


class Row(NamedTuple):
    """A line of the summary: a value of a run, and which direction is the good one. None: not worth a percentage."""

    label: str
    path: str  # keys from the run's record down, joined by dots
    show: Callable[[float], str]
    better: Literal["lower", "higher", "neither"] | None = "neither"


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10_000 else f"{significant(value)} s"


def milliseconds(value: float) -> str:
    return f"{significant(1000 * value)} ms"


def number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else scaled(value)


def scaled(value: float) -> str:
    """Four digits and a thousands prefix: 5.871 M."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{significant(value / factor)} {prefix}"
    return f"{value:,.0f} "


def size(value: float) -> str:
    return f"{scaled(value)}B"


def share(value: float) -> str:
    return f"{value:.3f}"


def significant(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.2f}" if value >= 10 else f"{value:.3f}"


SUMMARY = (
    Row("makespan", "metrics.makespan_s", seconds, "lower"),
    Row("application latency, mean", "metrics.app_latency_s.mean", seconds, "lower"),
    Row("TTFT, mean", "metrics.ttft_s.mean", seconds, "lower"),
    Row("TPOT, mean", "metrics.tpot_s.mean", milliseconds, "lower"),
    Row("queueing, mean", "metrics.queue_s.mean", seconds, "lower"),
    Row("prompt tokens computed", "metrics.prefill_tokens.computed", number, "lower"),
    Row("  hit on the GPU", "metrics.prefill_tokens.gpu_hit", number),
    Row("  hit on the host", "metrics.prefill_tokens.host_hit", number),
    Row("recomputed tokens", "metrics.recomputed_tokens", number, "lower"),
    Row("preemptions", "metrics.preemptions", number, "lower"),
    Row("GPU blocks in use", "metrics.gpu_usage_mean", share),
    Row("effective utilisation", "metrics.effective_utilisation", share, "higher"),
    Row("held by stalled agents", "metrics.stalled_share", share),
    Row("offloaded", "metrics.offload_bytes", size),
    Row("  in jobs", "metrics.offload_jobs", number),
    Row("uploaded and loaded", "metrics.upload_bytes", size),
    Row("  jobs ahead of calls", "metrics.upload_jobs", number),
    Row("  jobs on demand", "metrics.load_jobs", number),
    Row("uploads on time", "metrics.uploads.on_time", number),
    Row("  early", "metrics.uploads.early", number),
    Row("  late", "metrics.uploads.late", number),
    Row("  cancelled", "metrics.uploads.cancelled", number),
    Row("idle upload, block-s", "metrics.upload_idle_block_s", number, "lower"),
    Row("critical inversions", "metrics.critical_inversions", number, "lower"),
    Row("time in the policy", "policy_s", seconds, None),
    Row("simulated calls/s", "calls_per_s", number, None),
)
LIVE_SUMMARY = (*SUMMARY[:-1], Row("calls/s", "calls_per_s", number, None))
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
COLUMN_WIDTH = 7  # characters
DISTRIBUTIONS = (
    ("application latency, s", "app_latency_s", 1.0),
    ("TTFT, s", "ttft_s", 1.0),
    ("TPOT, ms", "tpot_s", 1000.0),
    ("queueing, s", "queue_s", 1.0),
)
DISTRIBUTION_WIDTH = max(len(label) for label, _, _ in DISTRIBUTIONS)


def value_at(record: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of a run's record."""
    found: Any = record
    for key in path.split("."):
        found = found[key]
    number: float | None = found
    return number


def change(value: float | None, base: float | None) -> float | None:
    """How much more `value` is, as a share of `base`; None where that says nothing."""
    return None if value is None or not base else value / base - 1


def _figure(run: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of some runs' mean, if they are the policy's own."""
    return None if run["failed"] else value_at(run, path)


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


def averaged(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record for all repeats of a run: the means of their numbers, and `repeats`, the records themselves."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    seen: Counter[tuple[str, object]] = Counter()  # a policy that was asked for twice has two runs in each repeat
    for run in runs:
        asked = (run["policy"], run.get("repeat"))
        groups.setdefault((run["policy"], seen[asked]), []).append(run)
        seen[asked] += 1
    return [{**_mean(repeats), "failed": _failed(repeats), "repeats": repeats} for repeats in groups.values()]


def _failed(repeats: Sequence[Mapping[str, Any]]) -> str | None:
    """Why there are no figures of a policy: what the first of its runs that failed says."""
    for run in repeats:
        if failed := run.get("failed"):
            return f"in repeat {run['repeat']}: {failed}" if "repeat" in run else str(failed)
    return None


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: _mean_value([record[key] for record in records]) for key in records[0]}


def _mean_value(values: Sequence[Any]) -> Any:
    """The mean of numbers, and of what is in mappings; None if a number is missing; else the first value."""
    if isinstance(values[0], Mapping):
        return _mean(values)
    if any(value is None for value in values):
        return None
    if isinstance(values[0], int | float) and len(values) > 1:
        return fsum(values) / len(values)
    return values[0]


def _width(run: Mapping[str, Any], least: int) -> int:
    """Characters of a policy's column; a heading that is much longer is folded."""
    longest = max(len(line) for line in heading(_named(run)).splitlines())
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


def _summary(rows: Sequence[Row], first: Mapping[str, Any], others: Sequence[Mapping[str, Any]], width: int) -> Table:
    columns = [(first, VALUE_WIDTH), *((run, VALUE_WIDTH + CHANGE_WIDTH) for run in others)]
    widths = [_width(run, least) for run, least in columns]
    gap = GAP if LABEL_WIDTH + sum(GAP + column for column in widths) <= width else 1
    label_width = min(LABEL_WIDTH, max(LEAST_LABEL_WIDTH, width - sum(gap + column for column in widths)))
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column("", min_width=label_width, max_width=label_width, overflow="fold")
    for (run, _), column in zip(columns, widths, strict=True):
        title = Text(heading(_named(run)), overflow="fold")
        table.add_column(title, justify="right", vertical="bottom", min_width=column, max_width=column)
    for row in rows:
        base = _figure(first, row.path)
        cells = [_cell(row, _figure(run, row.path), base) for run in others]
        table.add_row(row.label, "-" if base is None else row.show(base), *cells)
    table.add_row("")
    return table


def heading(policy: str) -> str:
    """A policy with its options on lines of their own."""
    return policy.replace(":", ":\n", 1).replace(",", ",\n")


def _named(run: Mapping[str, Any]) -> str:
    """A run's policy as it is shown. What sees the future is marked wherever it appears, and so is what failed."""
    marks = [mark for mark in ("bound", "failed") if run.get(mark)]
    return f"{run['policy']} ({', '.join(marks)})" if marks else str(run["policy"])


def _cell(row: Row, value: float | None, base: float | None) -> Text:
    text = Text("-" if value is None else row.show(value))
    difference = change(value, base) if row.better else None
    percent = "" if difference is None else _percent(difference)
    style = "dim"
    if difference is not None and row.better != "neither" and abs(difference) >= SAME:
        style = "green" if (difference < 0) == (row.better == "lower") else "red"
    return text.append(f"{percent:>{CHANGE_WIDTH}}", style=style)


def _percent(difference: float) -> str:
    """A change, in 7 characters unless it is ten thousand fold."""
    if abs(difference) < SAME:
        return "0.0%"
    return f"{100 * difference:+.1f}%" if difference < 9 else f"x{difference + 1:.1f}"


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
            table.add_row("  " + _named(run), *cells)
    return table


def verdict(report: Mapping[str, Any]) -> list[str]:
    """For each policy after the first, one line on who wins, by mean application latency and by makespan.

    Before them a line for each policy that failed, the first included: nothing is said of those, nor against them.
    """
    runs = averaged(report["runs"])
    if not runs:
        return []
    first, *others = runs
    failed = [f"{run['policy']} failed, and its figures are left out: {run['failed']}" for run in runs if run["failed"]]
    return [*failed, *(_verdict(run, first) for run in others if not run["failed"])]


def cut_off(report: Mapping[str, Any]) -> list[str]:
    """A line for each run that was cut off: how far it came, and why no further."""
    return [_cut_off(run) for run in report.get("partial", ())]


def _cut_off(run: Mapping[str, Any]) -> str:
    repeat = f", repeat {run['repeat']}," if "repeat" in run else ""
    calls, applications = run["metrics"]["calls"], run["metrics"]["applications"]
    came = f"ended after {seconds(run['wall_s'])}, when {calls:,} calls and {applications:,} applications had finished"
    return f"{run['policy']}{repeat} {came}, and is left out: {run['partial']}"


def _verdict(run: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    if first["failed"]:
        return f"{_named(run)}: no verdict against {_named(first)}"
    latency = _outcome("mean application latency", "metrics.app_latency_s.mean", run, first)
    makespan = _outcome("makespan", "metrics.makespan_s", run, first)
    if latency.word == makespan.word:
        said = f"{latency.word} on {latency.what} and {makespan.what}"
    else:
        said = f"{latency.word} on {latency.what}, {makespan.word} on {makespan.what}"
    return f"{_named(run)} {said} against {_named(first)} ({_certainty(run, first)})"


def _certainty(run: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """How much the repeats of a run differ among themselves."""
    counts = sorted({len(run["repeats"]), len(first["repeats"])})
    if counts[-1] == 1:
        return "one run, no interval"
    wide = max(
        spread(one["repeats"], path)
        for one in (run, first)
        for path in ("metrics.app_latency_s.mean", "metrics.makespan_s")
    )
    return f"means of {' and '.join(map(str, counts))} runs, which lie up to {100 * wide:.1f}% apart"


def spread(repeats: Sequence[Mapping[str, Any]], path: str) -> float:
    """How far the values of some runs lie apart, as a share of their mean; 0 if there is nothing to compare."""
    values = [value for run in repeats if (value := value_at(run, path)) is not None]
    mean = fsum(values) / len(values) if values else 0.0
    return (max(values) - min(values)) / mean if mean else 0.0


class _Outcome(NamedTuple):
    word: str
    what: str


def _outcome(label: str, path: str, run: Mapping[str, Any], first: Mapping[str, Any]) -> _Outcome:
    value, base = value_at(run, path), value_at(first, path)
    difference = change(value, base)
    if value is None or base is None or difference is None:
        return _Outcome("says nothing", f"{label} (nothing to measure)")
    if abs(difference) < SAME:
        return _Outcome("changes nothing", f"{label} ({seconds(value)})")
    if abs(difference) <= max(spread(run["repeats"], path), spread(first["repeats"], path)):
        word = "is within the noise"
    else:
        word = "wins" if difference < 0 else "loses"
    return _Outcome(word, f"{label} ({_percent(difference)}: {seconds(value)} instead of {seconds(base)})")


def csv_text(report: Mapping[str, Any]) -> str:
    """One line a run; nested names are joined by dots, what is absent is empty."""
    rows = [dict(_flat(run)) for run in report["runs"]]
    names = list(dict.fromkeys(name for row in rows for name in row if not name.startswith("options.")))
    return csv_table(names, ([row.get(name) for name in names] for row in rows))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in record.items():
        name = prefix + key
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, "; ".join(map(str, value))
        else:
            yield name.removeprefix("metrics."), value
