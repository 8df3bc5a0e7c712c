"""Azure's LLM inference traces: CSV with `TIMESTAMP`, `ContextTokens` and `GeneratedTokens`.

Format: https://github.com/Azure/AzurePublicDataset. Lengths and times only, so no content is shared.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from .apps import Application, Segment
from .errors import TraceError
from .fields import MAX_SECONDS
from .foreign import Entry, read_lines
from .one_call import one_call_application

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def from_azure(path: Path) -> Iterator[Application]:
    """One application a request; the first arrives at 0. Streams. Raises TraceError, naming line and field."""
    first: datetime | None = None
    before_s = 0.0
    for index, entry in enumerate(_rows(path)):
        at = _time(entry)
        first = first or at
        if (at.tzinfo is None) != (first.tzinfo is None):
            entry.refuse("TIMESTAMP", "a time zone in all times or in none")
        arrival_s = (at - first).total_seconds()
        if not before_s <= arrival_s < MAX_SECONDS:
            entry.refuse("TIMESTAMP", "a time that is not before the previous request's, and at most 30 years later")
        before_s = arrival_s
        app = f"r{index}"
        prompt = Segment(f"{app}/prompt", 0, entry.whole("ContextTokens", low=1))
        yield one_call_application(app, arrival_s, (prompt,), entry.whole("GeneratedTokens", low=1))


def _rows(path: Path) -> Iterator[Entry]:
    rows = csv.reader(line for _, line in read_lines(path))
    try:
        header = next(rows, [])
        if missing := [name for name in COLUMNS if name not in header]:
            raise TraceError(f"{path}:1: expected the columns {', '.join(COLUMNS)}, found no {', '.join(missing)}")
        for row in rows:
            if row:
                yield Entry(f"{path}:{rows.line_num}", _values(header, row))
    except csv.Error as error:
        raise TraceError(f"{path}:{rows.line_num}: expected CSV, but {error}") from None


def _values(header: list[str], row: list[str]) -> Mapping[str, object]:
    """The columns that are there; digits as whole numbers, so that lengths are checked as those of any other format."""
    texts = dict(zip(header, row, strict=False))
    return {name: int(text) if text.isdecimal() and len(text) < 19 else text for name, text in texts.items()}


def _time(entry: Entry) -> datetime:
    value = entry.values.get("TIMESTAMP")
    try:
        return datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        entry.refuse("TIMESTAMP", "a time such as 2023-11-16 18:17:03.9799600")
