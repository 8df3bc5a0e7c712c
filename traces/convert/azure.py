"""Azure's LLM inference traces: CSV with `TIMESTAMP`, `ContextTokens` and `GeneratedTokens`.

Format: https://github.com/Azure/AzurePublicDataset. Lengths and times only, so no content is shared.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from ..apps import Application, Segment
from ..errors import TraceError
from ..files.fields import MAX_SECONDS
from ..generate.single_call import one_call_application
from .conversion import Conversion, FieldLists, answer_tokens, known_entries
from .foreign import Entry, read_lines
from .recorded_times import RecordedTimes

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
FIELDS = FieldLists(frozenset(COLUMNS))


def from_azure(entries: Iterable[Entry], conversion: Conversion) -> Iterator[Application]:
    """One application a request; the first arrives at 0. Streams. Raises TraceError, naming line and field."""
    times = _Times(conversion)
    before_s = 0.0
    known = known_entries(entries, "azure", conversion, lambda entry: conversion.look_at(entry, FIELDS))
    for index, entry in enumerate(known):
        conversion.rows += 1
        arrival_s = times.seconds(entry)
        if not before_s <= arrival_s < MAX_SECONDS:
            entry.refuse("TIMESTAMP", "a time that is not before the previous request's, and at most 30 years later")
        before_s = arrival_s
        if output_tokens := answer_tokens(conversion, entry, "ContextTokens", "GeneratedTokens"):
            app = f"r{index}"
            prompt = Segment(f"{app}/prompt", 0, entry.whole("ContextTokens", low=1))
            yield one_call_application(app, arrival_s, (prompt,), output_tokens)
    if conversion.rows:
        conversion.assume(times.words())
        conversion.assume("each request is an application of its own: what follows what is not recorded")


def csv_rows(path: Path) -> Iterator[Entry]:
    """The rows of a table, each by its columns. Raises TraceError."""
    rows = csv.reader(line for _, line in read_lines(path))
    try:
        header = next(rows, [])
        if missing := [name for name in COLUMNS if name not in header]:
            raise TraceError(f"{path}:1: expected the columns {', '.join(COLUMNS)}, found no {', '.join(missing)}")
        if len(set(header)) < len(header):
            raise TraceError(f"{path}:1: expected columns of different names")
        for row in rows:
            if row and len(row) != len(header):
                raise TraceError(f"{path}:{rows.line_num}: expected {len(header)} columns, got {len(row)}")
            if row:
                yield Entry(f"{path}:{rows.line_num}", _values(header, row))
    except csv.Error as error:
        raise TraceError(f"{path}:{rows.line_num}: expected CSV, but {error}") from None


def _values(header: list[str], row: list[str]) -> Mapping[str, object]:
    """The columns; an empty one is absent. Digits are whole numbers, so that lengths are checked as everywhere."""
    texts = dict(zip(header, row, strict=True))
    return {name: int(text) if text.isdecimal() and len(text) < 20 else text for name, text in texts.items() if text}


class _Times:
    """The times of a table: dates, or numbers whose unit is known. They count from the first row."""

    def __init__(self, conversion: Conversion) -> None:
        self._numbers = RecordedTimes(conversion.options.time_unit, documented=None)
        self._asked = conversion.options.time_unit is not None
        self._first: datetime | None = None

    def seconds(self, entry: Entry) -> float:
        value = _number(entry.values.get("TIMESTAMP"))
        if value is not None and self._first is None:
            return self._numbers.seconds(entry, "TIMESTAMP", value)
        if self._asked or self._numbers.unit is not None:
            entry.refuse("TIMESTAMP", "a number, as --time-unit or the rows before say")
        at = _date(entry)
        self._first = self._first or at
        if (at.tzinfo is None) != (self._first.tzinfo is None):
            entry.refuse("TIMESTAMP", "a time zone in all times or in none")
        return (at - self._first).total_seconds()

    def words(self) -> str:
        if self._first is None:
            return self._numbers.words()
        return f"times are dates, and count from the first, {self._first}"


def _number(value: object) -> float | None:
    if isinstance(value, int):
        return value
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _date(entry: Entry) -> datetime:
    value = entry.values.get("TIMESTAMP")
    try:
        return datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        entry.refuse("TIMESTAMP", "a time such as 2023-11-16 18:17:03.9799600")
