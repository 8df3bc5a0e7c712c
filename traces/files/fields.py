"""Values of a JSON or TOML file, checked one by one. A check returns the value with its type, or says what it expected.

The checks lie on the hot path of the reader, so they are given bare names; the place in the file is put together only
when something is wrong, while the error travels upwards (`WrongField.inside`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set

MAX_TOKENS = 2**31 - 1
MAX_SECONDS = 1e9  # exclusive; about 32 years
MAX_NAME = 200  # characters
SHOWN = 60  # characters of a value in a message


class WrongField(Exception):
    """A value is wrong. `field` is its place, `reason` what was expected and what was found. Never leaves `traces`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def inside(self, outer: str) -> WrongField:
        """The same error, its place told from one level further out."""
        separator = "." if self.field and not self.field.startswith("[") else ""
        return WrongField(f"{outer}{separator}{self.field}", self.reason)

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


def shown(value: object) -> str:
    """A value as it stands in the file, in at most `SHOWN` characters of printable ASCII. Any value has such a text."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"  # Python refuses to write very long ones
    if value is None or isinstance(value, str | int | float):
        text = json.dumps(value[:SHOWN] if isinstance(value, str) else value)
        cut = isinstance(value, str) and len(value) > SHOWN
    else:  # TOML has dates and times
        text, cut = ascii(str(value))[1:-1], False
    return f"{text[: SHOWN - 3]}..." if cut or len(text) > SHOWN else text


def whole(value: object, field: str, low: int, high: int = MAX_TOKENS) -> int:
    """A whole number from `low` to `high`. `true` is none, and neither is 3.0."""
    if type(value) is int and low <= value <= high:
        return value
    raise WrongField(field, f"expected a whole number from {low} to {high}, got {shown(value)}")


def number(value: object, field: str, high: float) -> float:
    """A number from 0 to below `high`."""
    if (type(value) is float or type(value) is int) and 0 <= value < high:
        return float(value)
    raise WrongField(field, f"expected a number, at least 0 and below {high:g}, got {shown(value)}")


def seconds(value: object, field: str) -> float:
    if (type(value) is float or type(value) is int) and 0 <= value < MAX_SECONDS:
        return float(value)
    raise WrongField(field, f"expected seconds, at least 0 and below {MAX_SECONDS:g}, got {shown(value)}")


def flag(value: object, field: str) -> bool:
    if type(value) is bool:
        return value
    raise WrongField(field, f"expected true or false, got {shown(value)}")


def text(value: object, field: str) -> str:
    """Printable text, so that it fits into a table and into a message of one line; not empty."""
    if type(value) is str and 0 < len(value) <= MAX_NAME and value.isprintable():
        return value
    raise WrongField(field, f"expected 1 to {MAX_NAME} printable characters, got {shown(value)}")


def name(value: object, field: str) -> str:
    """An id that is unique in its application or trace; `/` is kept for joining the two."""
    if type(value) is str and 0 < len(value) <= MAX_NAME and value.isprintable() and "/" not in value:
        return value
    raise WrongField(field, f'expected 1 to {MAX_NAME} printable characters without "/", got {shown(value)}')


def items(value: object, field: str) -> list[object]:
    if type(value) is list:
        return value
    raise WrongField(field, f"expected a list, got {shown(value)}")


def members(value: object, known: Set[str], required: tuple[str, ...] = ()) -> Mapping[str, object]:
    """An object that has all `required` fields and none that is not `known`."""
    if type(value) is not dict:
        raise WrongField("", f"expected an object, got {shown(value)}")
    if not value.keys() <= known:
        raise WrongField("", unknown_field(min(value.keys() - known), known))
    for field in required:
        if field not in value:
            raise WrongField("", f'the field "{field}" is missing')
    return value


def unknown_field(stranger: str, known: Iterable[str]) -> str:
    """Says that there is no such field, which one may have been meant, and which there are."""
    from difflib import get_close_matches  # only an error needs it

    names = sorted(known)
    near = get_close_matches(stranger[:MAX_NAME], names, n=1)
    guess = f' (did you mean "{near[0]}"?)' if near else ""
    return f"unknown field {shown(stranger)}{guess}; known are {', '.join(names)}"
