"""What a report says in words: who wins, and which runs were cut off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..metric import metric_value
from ..number_formats import SAME, percent, seconds
from .repeats import averaged, change, named, spread


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


def cut_off_lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each run that was cut off: how far it came, and why no further."""
    return [_cut_off(run) for run in report.get("partial", ())]


def _cut_off(run: Mapping[str, Any]) -> str:
    repeat = f", repeat {run['repeat']}," if "repeat" in run else ""
    calls, applications = run["metrics"]["calls"], run["metrics"]["applications"]
    came = f"ended after {seconds(run['wall_s'])}, when {calls:,} calls and {applications:,} applications had finished"
    return f"{run['policy']}{repeat} {came}, and is left out: {run['partial']}"


def _verdict(run: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    if first["failed"]:
        return f"{named(run)}: no verdict against {named(first)}"
    latency = _outcome("mean application latency", "metrics.app_latency_s.mean", run, first)
    makespan = _outcome("makespan", "metrics.makespan_s", run, first)
    if latency.word == makespan.word:
        said = f"{latency.word} on {latency.what} and {makespan.what}"
    else:
        said = f"{latency.word} on {latency.what}, {makespan.word} on {makespan.what}"
    return f"{named(run)} {said} against {named(first)} ({_certainty(run, first)})"


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


class _Outcome(NamedTuple):
    word: str
    what: str


def _outcome(label: str, path: str, run: Mapping[str, Any], first: Mapping[str, Any]) -> _Outcome:
    value, base = metric_value(run, path), metric_value(first, path)
    difference = change(value, base)
    if value is None or base is None or difference is None:
        return _Outcome("says nothing", f"{label} (nothing to measure)")
    if abs(difference) < SAME:
        return _Outcome("changes nothing", f"{label} ({seconds(value)})")
    if abs(difference) <= max(spread(run["repeats"], path), spread(first["repeats"], path)):
        word = "is within the noise"
    else:
        word = "wins" if difference < 0 else "loses"
    return _Outcome(word, f"{label} ({percent(difference)}: {seconds(value)} instead of {seconds(base)})")
