"""Reading files that others wrote: what is asked of their content is answered, or a TraceError says where it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..errors import TraceError
from ..files.fields import MAX_SECONDS, WrongField, items, name, number, shown, whole
from ..files.source_file import lines


@dataclass(frozen=True, slots=True)
class Entry:
    """A JSON object of somebody else's format, and where it stands. Each method checks one of its fields."""

    where: str  # "file.jsonl:12" or "file.json: requests[3]"
    values: Mapping[str, object]

    def has(self, field: str) -> bool:
        return self.values.get(field) is not None

    def whole(self, field: str, low: int = 0) -> int:
        """A whole number from `low` to 2**31 − 1."""
        try:
            return whole(self.values.get(field), field, low)
        except WrongField as error:
            raise self._wrong(error) from None

    def number(self, field: str, high: float = MAX_SECONDS) -> float:
        """A number from 0 to below `high`."""
        try:
            return number(self.values.get(field), field, high)
        except WrongField as error:
            raise self._wrong(error) from None

    def name(self, field: str) -> str:
        """Printable text that can be an id."""
        try:
            return name(self.values.get(field), field)
        except WrongField as error:
            raise self._wrong(error) from None

    def texts(self, field: str) -> list[str]:
        """A list of texts; an absent one is empty."""
        value = self.values.get(field, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.refuse(field, "a list of texts")
        return value

    def ids(self, field: str, high: int) -> list[int]:
        """A list of whole numbers from 0 to `high`."""
        value = self.values.get(field)
        if not isinstance(value, list) or not set(map(type, value)) <= {int}:
            self.refuse(field, "a list of whole numbers")
        if value and not 0 <= min(value) <= max(value) <= high:
            self.refuse(field, f"whole numbers from 0 to {high}")
        return value

    def entries(self, field: str) -> Iterator[Entry]:
        """The JSON objects of a list, one after another."""
        try:
            values = items(self.values.get(field), field)
        except WrongField as error:
            raise self._wrong(error) from None
        for index, value in enumerate(values):
            yield _entry(self.place(f"{field}[{index}]"), value)

    def refuse(self, field: str, expected: str) -> NoReturn:
        """Raise the TraceError that names this field and what was expected."""
        raise self._wrong(WrongField(field, f"expected {expected}, got {shown(self.values.get(field))}"))

    def _wrong(self, error: WrongField) -> TraceError:
        return TraceError(f"{self.place(error.field)}: {error.reason}")

    def place(self, field: str) -> str:
        """Where a field of this object stands."""
        return f"{self.where}.{field}" if self.where.endswith("]") else f"{self.where}: {field}"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """A text file's lines with their numbers, from 1, as a stream. Raises TraceError if it cannot be read."""
    for line_number, line in lines(path):
        yield line_number, _text(path, line)


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeError:
        raise TraceError(f"{path}: expected UTF-8 text, but it holds other bytes") from None


def _entry(where: str, value: object) -> Entry:
    if not isinstance(value, dict):
        raise TraceError(f"{where}: expected an object, got {shown(value)}")
    return Entry(where, value)
