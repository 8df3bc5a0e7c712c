"""What was played, as a report says it: which trace, how much of it, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files.schema import digest, measured, nullable, one_of, printable, record, whole_from
from ...format.reader import trace_digest
from ...generate.arrivals import ArrivalProcess
from ...variants.workload import Counts

_count = whole_from(0)
check_played = record(
    {
        "path": printable(4096),
        "sha256": digest(64),
        "applications": _count,
        "calls": _count,
        "oversized": _count,
        "rate": nullable(measured),
        "arrivals": nullable(one_of("even", "poisson")),
    },
    optional={"time_scale": measured, "shrink": whole_from(1)},
)
"""A check, see `traces.files.schema`: what `played_record` makes."""


def trace_record(path: Path) -> dict[str, object]:
    """The file of a trace: its path, and the SHA-256 of its content."""
    return {"path": str(path), "sha256": trace_digest(path)}


def played_record(
    path: Path,
    counts: Counts,
    rate: float | None,
    arrivals: ArrivalProcess,
    time_scale: float = 1.0,
    shrink: int = 1,
) -> dict[str, object]:
    """What was played of the trace at `path`. `time_scale` and `shrink` are there if they changed anything."""
    return {
        **trace_record(path),
        "applications": counts.applications,
        "calls": counts.calls,
        "oversized": counts.oversized,
        "rate": rate,  # applications a second; None: as the trace has them
        "arrivals": None if rate is None else arrivals,
        **({} if time_scale == 1.0 else {"time_scale": time_scale}),
        **({} if shrink == 1 else {"shrink": shrink}),
    }


def played_text(report: Mapping[str, Any]) -> str:
    """`48 calls of 24 applications on a800-qwen2.5-14b`: of a report with a `trace` and a `machine`."""
    trace, machine = report["trace"], report["machine"]
    return f"{trace['calls']:,} calls of {trace['applications']:,} applications on {machine['name']}"
