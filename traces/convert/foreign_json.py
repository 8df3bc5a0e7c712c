"""JSON that others wrote, one value after another: one a line, the elements of a list, or one for a whole file.

Read as a stream: what is in memory is one value, however long the list is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO, NoReturn

from ..errors import TraceError
from ..files.fields import WrongField, shown
from ..files.input_limits import BLANK_BYTES
from ..files.long_numbers import long_number
from ..files.source_file import opened
from .foreign import Entry

# Of one value. Conversations with hashes of 64 bits take tens of megabytes, most of them numbers, which are small in
# memory; lists and objects are not, so there may be fewer of them than in a line of a trace.
VALUE_CHARACTERS = 48_000_000
VALUE_PARTS = 500_000  # lists and objects
VALUE_ENTRIES = 5_000_000  # of all its lists and objects

CHUNK_BYTES = 2**20  # most recorded conversations are smaller, and are decoded at the first try
_CUT = 16  # characters: an error so near the end of what was read may be gone once more is read
_BLANKS = re.compile(r"[ \t\r\n]*")


def json_objects(path: Path, file_is_first: bool = False) -> Iterator[Entry]:
    """The objects of a file and where each stands: `FILE:LINE`, or `FILE: [INDEX]` in a list.

    `file_is_first`: the first one is named by the file alone, since files of this kind mostly hold one. Raises
    TraceError, also while the result is consumed.
    """
    with opened(path) as content:
        for place, value in _Values(path, content, file_is_first):
            if not isinstance(value, dict):
                raise TraceError(f"{place}: expected an object, got {shown(value)}")
            yield Entry(place, value)


class _Values:
    """The values of a file. What was read and not used is at most one value and one chunk."""

    def __init__(self, path: Path, content: BinaryIO, file_is_first: bool) -> None:
        self._path = path
        self._content = content
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0  # in the text: what lies before is used
        self._line = 1
        self._ended = False
        self._blank = 0
        self._file_is_first = file_is_first

    def __iter__(self) -> Iterator[tuple[str, object]]:
        if self._next() == "[":
            yield from self._elements()
            if self._next():
                self._refuse("nothing behind the list")
        first = self._file_is_first
        while self._next():
            place = str(self._path) if first else f"{self._path}:{self._line}"
            yield place, self._value(place)
            first = False

    def _elements(self) -> Iterator[tuple[str, object]]:
        self._pass(1)
        if self._next() == "]":
            self._pass(1)
            return
        for index in count():
            place = f"{self._path}: [{index}]"
            yield place, self._value(place)
            sign = self._next()
            if sign not in (",", "]"):
                self._refuse(f"a comma or the end of the list behind [{index}]")
            self._pass(1)
            if sign == "]":
                return
            self._next()

    def _next(self) -> str:
        """The sign that follows after blanks; none at the end of the file."""
        while True:
            end = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._blank += end - self._at
            if self._blank > BLANK_BYTES:
                raise TraceError(f"{self._path}:{self._line}: expected at most {BLANK_BYTES} blanks in all, got more")
            self._pass(end - self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(CHUNK_BYTES):
                return ""

    def _value(self, place: str) -> object:
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except RecursionError:
                raise TraceError(
                    f"{place}: expected JSON of reasonable depth, got lists or objects nested too deep"
                ) from None
            except json.JSONDecodeError as error:
                if self._may_go_on(error) and self._grow(place):
                    continue
                raise TraceError(f"{place}: expected JSON, but {error.msg}{self._column(error)}") from None
            except WrongField as error:
                raise TraceError(f"{place}: expected JSON, but {error}") from None
            except ValueError:
                number = long_number(self._text[self._at :], _decode, json.JSONDecodeError)
                if self._at + number.end == len(self._text) and self._grow(place):
                    continue  # to know how long it is
                line = self._line + self._text.count("\n", self._at, self._at + number.start)
                raise TraceError(f"{place}: {number}: line {line}") from None
            self._pass(end - self._at)
            return value

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        return error.pos > len(self._text) - _CUT or error.msg.startswith("Unterminated string")

    def _grow(self, place: str) -> bool:
        """Reads as much again as there is: so a long value is tried a few times only. False at the end of the file."""
        length = len(self._text) - self._at
        if length > VALUE_CHARACTERS:
            raise TraceError(f"{place}: expected at most {VALUE_CHARACTERS} characters, got more")
        grown = self._read(min(max(CHUNK_BYTES, length), VALUE_CHARACTERS + CHUNK_BYTES - length))
        parts = self._text.count("[", self._at) + self._text.count("{", self._at)
        if parts > VALUE_PARTS:
            raise TraceError(f"{place}: expected at most {VALUE_PARTS} lists and objects, got more")
        if self._text.count(",", self._at) > VALUE_ENTRIES:
            raise TraceError(f"{place}: expected at most {VALUE_ENTRIES} entries of lists and objects, got more")
        return grown

    def _read(self, count: int) -> bool:
        if self._ended:
            return False
        try:
            piece = self._content.read(count)
            self._ended = len(piece) < count
            self._text = self._text[self._at :] + self._characters.decode(piece, self._ended)
        except UnicodeError:
            raise TraceError(f"{self._path}: expected UTF-8 text, but it holds other bytes") from None
        self._at = 0
        return True

    def _pass(self, count: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def _column(self, error: json.JSONDecodeError) -> str:
        """Where: the line of the file, and the column there, or in what of it was not used yet."""
        line = self._line + self._text.count("\n", self._at, error.pos)
        start = max(self._at, self._text.rfind("\n", self._at, error.pos) + 1)
        return f": line {line} column {error.pos - start + 1}"

    def _refuse(self, expected: str) -> NoReturn:
        found = shown(self._text[self._at]) if self._at < len(self._text) else "the end of the file"
        raise TraceError(f"{self._path}:{self._line}: expected {expected}, got {found}")


def _refuse_constant(name: str) -> NoReturn:
    raise WrongField("", f"it holds {name}, which is no number")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        again = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise WrongField("", f"it holds the field {shown(again)} twice in one object")
    return fields


_decode = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique).raw_decode
