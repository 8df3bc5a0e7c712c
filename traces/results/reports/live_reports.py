"""Runs of a real engine, from the reports that `tokencake live --repeat` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import TraceError
from ...files.fields import WrongField, shown
from ...files.json_file import read_json
from ...files.schema import (
    free,
    free_object,
    inner,
    list_of,
    measured,
    nullable,
    one_of,
    printable,
    record,
    string,
    whole_from,
)
from ..metric import run_metrics
from ..run_counts import MOST_RUNS
from .played import check_played
from .report import SCHEMA

WORKLOAD = ("sha256", "rate", "arrivals", "time_scale", "shrink", "applications")  # what has to be equal to be compared


@dataclass(slots=True)
class LiveRuns:
    """What was played, and the metrics of each policy's runs, in the order in which they are found."""

    about: Mapping[str, Any]
    runs: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def read_live_reports(paths: Sequence[Path]) -> LiveRuns:
    """The runs of all reports together.

    Raises TraceError, naming the file, for one that is no report of a live comparison, whose trace, rate or engine
    is not that of the first, or whose runs are those of one before: counted twice, they would seem to be surer.
    """
    reports = [read_json(path, _report) for path in paths]
    first = reports[0]
    for index, (path, report) in enumerate(zip(paths, reports, strict=True)):
        if (different := _difference(report, first)) is not None:
            raise TraceError(f"{path}: {different}: expected that of {paths[0]}: other runs cannot be compared with it")
        for earlier, other in zip(paths[:index], reports, strict=False):
            if report["runs"] == other["runs"]:
                raise TraceError(f"{path}: expected other runs, got those of {earlier} once more")
    names = ("version", "engine", "engine_version", "trace", "machine")
    found = LiveRuns({name: first[name] for name in names})
    for path, report in zip(paths, reports, strict=True):
        for run in report["runs"]:
            found.runs.setdefault(run["policy"], []).append(run["metrics"])
            for reason in (run.get("failed"), *run.get("errors", ())):
                if reason:
                    found.failed.setdefault(run["policy"], f"{path}: {reason}")
            if failed := run.get("failed_calls"):  # what came behind them was not played: it is another workload
                found.failed.setdefault(run["policy"], f"{path}: {failed} calls failed")
    for policy in found.failed:
        del found.runs[policy]
    return found


def _machine(value: object, field: str) -> dict[str, Any]:
    """The engine as it told of itself, or a machine's settings."""
    found = free_object(value, field)
    _words(found.get("name"), inner(field, "name"))
    return found


_count, _words = whole_from(0), printable(4096)
_RUN = record(
    {
        "policy": _words,
        "options": free_object,
        "seed": _count,
        "wall_s": measured,
        "calls_per_s": nullable(measured),
        "policy_s": measured,
        "metrics": run_metrics,
    },
    optional={
        "repeat": whole_from(1),
        "failed": nullable(string()),
        "errors": list_of(string()),
        "failed_calls": _count,
    },
    others=free,  # what an engine has to say beside
)
_REPORT = record(
    {
        "schema": one_of(SCHEMA),
        "version": _words,
        "engine": _words,
        "engine_version": _words,
        "trace": check_played,
        "machine": _machine,
        "runs": list_of(_RUN, least=1, most=MOST_RUNS),
    },
    optional={"partial": list_of(free_object)},  # runs that were cut off: nothing is said of their policies
)


def _report(value: object, field: str) -> dict[str, Any]:
    """A check, see `traces.files.schema`: the report of a live comparison."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise WrongField("schema", f"expected {SCHEMA!r}")
    if "engine" not in value:
        raise WrongField("engine", "expected a report of `tokencake live`; this is a simulation")
    found: dict[str, Any] = _REPORT(value, field)
    for index, run in enumerate(found["runs"]):
        for name in ("applications", "calls"):
            there, played = found["trace"][name], run["metrics"][name]
            if played is None or played > there:
                raise WrongField(
                    f"runs[{index}].metrics.{name}", f"expected at most the {there} of the trace, got {shown(played)}"
                )
    return found


def _difference(report: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    """What keeps two reports from being compared."""
    for name in WORKLOAD:
        if report["trace"].get(name) != first["trace"].get(name):
            return f"trace.{name}"
    for name in ("engine", "engine_version"):
        if report[name] != first[name]:
            return name
    return None if report["machine"].get("name") == first["machine"].get("name") else "machine.name"
