"""Files of facts to fit a machine to: what the engine tells of itself, then the facts, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...traces.errors import TraceError
from ...traces.files.fields import WrongField
from ...traces.files.schema import free, map_of, one_of, printable, record
from ...traces.files.source_file import lines
from ...traces.files.strict_json import strict_json
from ...traces.format.events_file import Record, decode, encode

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
        found: dict[str, Any] = _HEAD(strict_json(line), "")["engine"]
    except WrongField as wrong:
        expected = f'expected {{"schema": "{SCHEMA}", "engine": {{…}}}}, as calibrate --samples writes it'
        raise TraceError(f"{path}:1: {expected}: {wrong}") from None
    return found


def _engine_field(value: object, field: str) -> Any:
    """A value that an engine says of itself: it is shown, and is in a comment of a machine's file."""
    return printable(1000)(value, field) if isinstance(value, str) else free(value, field)


_HEAD = record({"schema": one_of(SCHEMA), "engine": map_of(_engine_field)})
