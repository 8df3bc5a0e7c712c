"""The file of a phase's result, and what all of them come to.

A result is plain data: `phase`, `title`, `status`, `began` (UTC), `seconds`, what was `found`, and of a phase that
failed `error` in a line with the `traceback`. Files are replaced whole: whoever reads finds a complete one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokencake.traces.files.fields import WrongField
from tokencake.traces.files.schema import Check, list_of, number_from, one_of, record, string
from tokencake.traces.files.whole_file import written

from .plan import Phase, Process, phases_of

SCHEMA = "tokencake.gpu-session/1"
DONE, FAILED, RUNNING = "done", "failed", "running"
OUT_OF_TIME = "out of time"  # ended before it was through; what it had found is kept
LEFT_OUT = "left out"  # not begun
PREDICTIONS = "predictions.json"  # written before what it speaks of was played
CALIBRATED, PRESET = "calibrated", "preset"  # the machines that it was said by
ENDED = (DONE, FAILED, OUT_OF_TIME)

Result = dict[str, Any]


def anything(value: object, field: str) -> Any:
    return value


RESULT = record(
    {"phase": string(), "title": string(), "status": one_of(*ENDED, RUNNING, LEFT_OUT)},
    {"seconds": number_from(0, 1e9), "found": record({}, {"warnings": list_of(string(100_000))}, others=anything)},
    others=anything,
)


def utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def path_of(out: Path, phase: str) -> Path:
    return out / f"{phase}.json"


def fresh(phase: Phase, status: str, **more: object) -> Result:
    return {"phase": phase.name, "title": phase.title, "status": status, "began": utc(), **more}


def read(out: Path, phase: str) -> Result | None:
    """What is written of a phase; None if nothing is, or nothing that this session can use."""
    found = read_json(path_of(out, phase), RESULT)
    return found if found is not None and found["phase"] == phase else None


def read_json(path: Path, check: Check[Result]) -> Result | None:
    """A file of a session; None if there is none, or another one's."""
    try:
        return check(json.loads(path.read_text(encoding="utf-8")), "")
    except (FileNotFoundError, ValueError, WrongField):
        return None


def write(out: Path, result: Result) -> None:
    write_json(path_of(out, result["phase"]), result)


def write_json(path: Path, content: object) -> None:
    with written(path) as file:  # what JSON has no word for is told by its own: a phase is not lost over that
        file.write((json.dumps(content, indent=1, default=str) + "\n").encode())


def is_done(out: Path, phase: str) -> bool:
    result = read(out, phase)
    return result is not None and result["status"] == DONE


def all_results(out: Path, processes: Sequence[Process]) -> list[Result]:
    """Of every phase in the order of the plan; of those that nothing is known of, that they were left out."""
    return [
        read(out, name) or {"phase": name, "title": phase.title, "status": LEFT_OUT}
        for name, phase in phases_of(processes).items()
    ]


def found(out: Path, phase: str) -> dict[str, Any]:
    """What a phase that is done has found; empty if it is not done."""
    result = read(out, phase)
    return result.get("found", {}) if result is not None and result["status"] == DONE else {}


def table(results: list[Result]) -> str:
    """A line for each phase: its status, its seconds, and what it says or why it says nothing."""
    width = max(len(result["phase"]) for result in results)
    lines = []
    for result in results:
        seconds = result.get("seconds")
        took = "" if seconds is None else f"{seconds:.1f} s"
        said = result.get("error") or result.get("found", {}).get("said") or result["title"]
        lines.append(f"{result['phase']:{width}s}  {result['status']:11s}  {took:>8s}  {said}")
    return "\n".join(lines)
