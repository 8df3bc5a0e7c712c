"""What a file may hold, said as data: checks for single values, put together to checks for lists, maps and objects.

    RUN = record({"policy": text, "seed": whole_from(0), "errors": list_of(text)}, optional={"repeat": whole_from(1)})
    run = RUN(value, "runs[0]")

A check takes a value and its place, gives the value back in its type, or raises WrongField with the place down to the
last level, what was expected there, and what was found. The checks of `fields` are such checks, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from .fields import MAX_NAME, WrongField, shown, unknown_field, whole

T = TypeVar("T")
Check: TypeAlias = Callable[[object, str], T]

LARGEST = 2.0**63  # of a number that is measured or counted: beyond it, sums and squares could leave what floats hold
LEAST = 1e-30  # of one that is not 0: below it, ratios could
DEEPEST = 20  # levels of lists and objects in a value that has no schema of its own


def whole_from(low: int, high: int = 2**63 - 1) -> Check[int]:
    """A whole number; `true` is none, and neither is 3.0."""
    return lambda value, field: whole(value, field, low, high)


def number_from(low: float, high: float, *, above: bool = False, below: bool = False) -> Check[float]:
    """A number from `low` (or `above` it) to `high` (or `below` it)."""
    least = f"above {low:g}" if above else f"at least {low:g}"
    most = f"below {high:g}" if below else f"at most {high:g}"

    def holds(value: float) -> bool:
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    def check(value: object, field: str) -> float:
        if (type(value) is int or type(value) is float) and holds(value):
            return float(value)
        raise WrongField(field, f"expected a number, {least} and {most}, got {shown(value)}")

    return check


def measured(value: object, field: str) -> float:
    """Something that was counted or measured: 0, or a number that can be divided by and squared."""
    if (type(value) is int or type(value) is float) and (LEAST <= value <= LARGEST or value == 0):
        return value
    raise WrongField(field, f"expected 0 or a number from {LEAST:g} to {LARGEST:g}, got {shown(value)}")


def one_of(*words: str) -> Check[str]:
    def check(value: object, field: str) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise WrongField(field, f"expected {' or '.join(words)}, got {shown(value)}")

    return check


def string(most: int = 10_000) -> Check[str]:
    """Any text that UTF-8 can hold, empty or of several lines."""

    def check(value: object, field: str) -> str:
        if isinstance(value, str) and len(value) <= most and not any("\ud800" <= sign <= "\udfff" for sign in value):
            return value
        raise WrongField(field, f"expected text of at most {most} characters, got {shown(value)}")

    return check


def printable(most: int) -> Check[str]:
    """Text of one line, not empty."""

    def check(value: object, field: str) -> str:
        if isinstance(value, str) and 0 < len(value) <= most and value.isprintable():
            return value
        raise WrongField(field, f"expected 1 to {most} printable characters, got {shown(value)}")

    return check


def digest(characters: int) -> Check[str]:
    """The first characters of a digest, or all of them: hexadecimal."""

    def check(value: object, field: str) -> str:
        if isinstance(value, str) and len(value) == characters and set(value) <= set("0123456789abcdef"):
            return value
        raise WrongField(field, f"expected {characters} hexadecimal digits, got {shown(value)}")

    return check


def ruled(problem: Callable[[object], str | None]) -> Check[Any]:
    """What a rule finds nothing wrong with; `problem` says what was expected and found."""

    def check(value: object, field: str) -> Any:
        if said := problem(value):
            raise WrongField(field, said)
        return value

    return check


def nullable(check: Check[T]) -> Check[T | None]:
    return lambda value, field: None if value is None else check(value, field)


def list_of(check: Check[T], least: int = 0, most: int = 1_000_000) -> Check[list[T]]:
    def checked(value: object, field: str) -> list[T]:
        if not isinstance(value, list):
            raise WrongField(field, f"expected a list, got {shown(value)}")
        if not least <= len(value) <= most:
            raise WrongField(field, f"expected a list of {least} to {most} values, got {len(value)}")
        return [check(one, f"{field}[{index}]") for index, one in enumerate(value)]

    return checked


def map_of(check: Check[T], key: Check[object] | None = None, most: int = 100_000) -> Check[dict[str, T]]:
    """An object whose keys are names, as `key` has them."""

    def checked(value: object, field: str) -> dict[str, T]:
        entries = _object(value, field)
        if len(entries) > most:
            raise WrongField(field, f"expected at most {most} fields, got {len(entries)}")
        found: dict[str, T] = {}
        for name, one in entries.items():
            place = inner(field, name)
            if key is not None:
                key(name, place)
            found[name] = check(one, place)
        return found

    return checked


def record(
    required: Mapping[str, Check[Any]],
    optional: Mapping[str, Check[Any]] | None = None,
    others: Check[Any] | None = None,
) -> Check[Any]:
    """An object that has all the `required` fields, and of others those that are `optional`.

    Further ones are refused, or are as `others` has them.
    """
    known = {**required, **(optional or {})}

    def checked(value: object, field: str) -> dict[str, Any]:
        entries = _object(value, field)
        for name in entries:
            if name not in known and others is None:
                raise WrongField(field, unknown_field(name, known))
        for name in required:
            if name not in entries:
                raise WrongField(inner(field, name), "is missing")
        checks = {**dict.fromkeys(entries, others), **known}
        return {name: check(one, inner(field, name)) for name, one in entries.items() if (check := checks[name])}

    return checked


def free(value: object, field: str, levels: int = DEEPEST) -> Any:
    """A value that has no schema: text, finite numbers, true, false, null, and at most so many levels of them."""
    if not levels:
        raise WrongField(field, f"expected at most {DEEPEST} levels of lists and objects, got more")
    if isinstance(value, list):
        return [free(one, f"{field}[{index}]", levels - 1) for index, one in enumerate(value)]
    if isinstance(value, dict):
        return {name: free(one, inner(field, name), levels - 1) for name, one in value.items()}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return string(1_000_000)(value, field)
    if isinstance(value, int | float) and -LARGEST <= value <= LARGEST:
        return value
    raise WrongField(field, f"expected a finite number below {LARGEST:g}, or text, got {shown(value)}")


def free_object(value: object, field: str) -> dict[str, Any]:
    """An object of values as `free` has them."""
    _object(value, field)
    found: dict[str, Any] = free(value, field)
    return found


def plain_value(value: object, field: str) -> bool | float | str:
    """A switch, a finite number, or printable text: what a setting can be of which nothing else is known."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and -LARGEST <= value <= LARGEST:
        return value
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable():
        return value
    raise WrongField(field, f"expected true, false, a number or a name, got {shown(value)}")


def inner(field: str, name: str) -> str:
    """The place of a field of an object that is at `field`. A name that would not fit into a message is quoted."""
    told = name if 0 < len(name) <= MAX_NAME and name.isascii() and name.isprintable() else shown(name)
    return f"{field}.{told}" if field else told


def _object(value: object, field: str) -> dict[str, object]:
    if isinstance(value, dict):
        return value
    raise WrongField(field, f"expected an object, got {shown(value)}")
