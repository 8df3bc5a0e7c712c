"""TOML files: read whole, bounded in size, and made of what every reader of TOML understands alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TokencakeError
from .fields import MAX_NAME, shown
from .input_limits import TOML_BYTES
from .long_numbers import long_number
from .schema import DEEPEST, inner
from .source_file import whole

LONGEST_KEY = 100  # parts between dots: tomllib takes a time and a memory that grow with their square
_NOT_IN_NAMES = str.maketrans("", "", "\"' \t")


class TomlFile(NamedTuple):
    """What a file holds, and its lines."""

    path: Path
    table: dict[str, Any]
    lines: tuple[str, ...]

    def headers(self) -> dict[str, int]:
        """The line of each table's header, by its name without quotes and blanks."""
        found: dict[str, int] = {}
        for number, line in enumerate(self.lines, 1):
            if name := header(line):
                found.setdefault(name, number)
        return found


def read_toml(path: Path, kind: type[TokencakeError]) -> TomlFile:
    """Reads a file. Raises an error of this kind, in one line that names the file and, if one is to blame, the line."""
    import tomllib

    text = _text(path, kind)
    lines = tuple(text.splitlines())
    for number, line in enumerate(lines, 1):
        if line.count(".") > LONGEST_KEY and line.partition("=")[0].partition("#")[0].count(".") > LONGEST_KEY:
            raise kind(f"{path}:{number}: expected keys of at most {LONGEST_KEY} parts")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise kind(f"{path}: expected a table of settings, got values nested too deep") from None
    except tomllib.TOMLDecodeError as error:
        raise kind(_not_toml(path, lines, str(error))) from None
    except ValueError:
        endless = long_number(text, tomllib.loads, tomllib.TOMLDecodeError)
        raise kind(f"{path}:{text.count(chr(10), 0, endless.start) + 1}: {endless}") from None
    for place, problem in _strangers(table):
        raise kind(f"{path}: {place}: {problem}")
    return TomlFile(path, table, lines)


def header(line: str) -> str | None:
    """The name of the table that a line begins, without quotes and blanks; None if it begins none."""
    line = line.strip()
    name, closed, _ = line.lstrip("[").partition("]")
    return name.translate(_NOT_IN_NAMES) if line.startswith("[") and closed and "[" not in name else None


def key_of(line: str) -> str:
    """What stands before a line's `=`, without quotes and blanks."""
    return line.partition("=")[0].translate(_NOT_IN_NAMES)


def _text(path: Path, kind: type[TokencakeError]) -> str:
    content = whole(path, TOML_BYTES, kind)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise kind(f"{path}:{line}: expected TOML in UTF-8, got byte 0x{content[error.start]:02x}") from None


def _not_toml(path: Path, lines: tuple[str, ...], message: str) -> str:
    """tomllib's message, its "(at line 3, column 5)" moved to where a file's line is looked for."""
    reason, _, place = message.partition(" (at ")
    reason = reason[:MAX_NAME]  # of a key that is there twice, tomllib tells all
    if place.startswith("line "):
        return f"{path}:{place.removeprefix('line ').partition(',')[0]}: not TOML: {reason}"
    if place:  # the end of the document
        return f"{path}:{len(lines) or 1}: not TOML: {reason} at its end"
    return f"{path}: not TOML: {message[:MAX_NAME]}"


def _strangers(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Values that TOML promises nobody, and values that are nested deeper than any that mean something here."""
    left: list[tuple[str, int, object]] = [("", 0, table)]
    while left:
        place, depth, value = left.pop()
        if depth > DEEPEST:
            yield place, f"expected at most {DEEPEST} levels of tables and lists"
        elif isinstance(value, dict):
            left += [(inner(place, key), depth + 1, one) for key, one in value.items()]
        elif isinstance(value, list):
            left += [(f"{place}[{index}]", depth + 1, one) for index, one in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield place, f"expected a whole number of 64 bits, got {shown(value)}"
