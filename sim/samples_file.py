"""Files of facts to fit a machine to: what the engine tells of itself, then the facts, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..traces.errors import TraceError
from ..traces.events_io import Record, decode, encode
from ..traces.source_file import lines

SCHEMA = "tokencake.samples/1"


def samples_text(engine: Mapping[str, object], facts: Iterable[Record]) -> str:
    """A file's text."""
    first = json.dumps({"schema": SCHEMA, "engine": dict(engine)}, allow_nan=False)
    return "\n".join([first, *(encode(fact) for fact in facts)]) + "\n"


def read_samples(path: Path) -> tuple[dict[str, Any], Iterator[Record]]:
    """The engine, and the facts, which are read as they are taken. Raises TraceError with file and line."""
    records = _records(path)
    engine = next(records)
    assert isinstance(engine, dict)
    return engine, records


def _records(path: Path) -> Iterator[Any]:
    """The engine, then each fact."""
    coming = lines(path)
    yield _engine(next(coming, (1, b""))[1], path)
    for number, line in coming:
        yield decode(line, f"{path}:{number}")


def _engine(line: bytes, path: Path) -> dict[str, Any]:
    try:
        head = json.loads(line)
        if head["schema"] == SCHEMA and isinstance(head["engine"], dict):
            engine: dict[str, Any] = head["engine"]
            return engine
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise TraceError(f'{path}:1: expected {{"schema": "{SCHEMA}", "engine": {{…}}}}, as calibrate --samples writes it')
