"""Runs of a real engine, from the reports that `tokencake live --repeat` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...traces.errors import TraceError
from ..report import SCHEMA

WORKLOAD = ("sha256", "rate", "arrivals", "time_scale", "shrink", "applications")  # what has to be equal to be compared


@dataclass(slots=True)
class LiveRuns:
    """What was played, and the metrics of each policy's runs, in the order in which they are found."""

    about: Mapping[str, Any]
    runs: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def read_live_reports(paths: Sequence[Path]) -> LiveRuns:
    """The runs of all reports together.

    Raises TraceError, naming the file, for one that is no report of a live comparison, or whose trace, rate or engine
    is not that of the first.
    """
    reports = [_read(path) for path in paths]
    first = reports[0]
    for path, report in zip(paths, reports, strict=True):
        if (different := _difference(report, first)) is not None:
            raise TraceError(f"{path}: {different}: expected that of {paths[0]}: other runs cannot be compared with it")
    names = ("version", "engine", "engine_version", "trace", "machine")
    found = LiveRuns({name: first[name] for name in names})
    for path, report in zip(paths, reports, strict=True):
        for run in report["runs"]:
            found.runs.setdefault(run["policy"], []).append(run["metrics"])
            for error in run.get("errors", ()):
                found.failed.setdefault(run["policy"], f"{path}: {error}")
    for policy in found.failed:
        del found.runs[policy]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(f"{path}: expected a report in JSON: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise TraceError(f"{path}: schema: expected {SCHEMA!r}")
    if "engine" not in report:
        raise TraceError(f"{path}: engine: expected a report of `tokencake live`; this is a simulation")
    names = ("version", "engine_version", "trace", "machine", "runs")
    if missing := [name for name in names if name not in report]:
        raise TraceError(f"{path}: {missing[0]}: is missing")
    if not report["runs"]:
        raise TraceError(f"{path}: runs: expected one at least")
    return report


def _difference(report: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    """What keeps two reports from being compared."""
    for name in WORKLOAD:
        if report["trace"].get(name) != first["trace"].get(name):
            return f"trace.{name}"
    for name in ("engine", "engine_version"):
        if report[name] != first[name]:
            return name
    return None if report["machine"].get("name") == first["machine"].get("name") else "machine.name"
