"""JSON as its standard has it: UTF-8, no NaN, and no field given twice, of which others take the last in silence."""

from __future__ import annotations

import json
from collections import Counter
from typing import NoReturn

from .fields import WrongField, shown
from .input_limits import PARTS
from .long_numbers import long_number


def strict_json(data: bytes) -> object:
    """The value of a line, or of a file. Raises WrongField for what is no strict JSON, and for a field given twice.

    More lists and objects than `PARTS` are refused before memory is spent on them; brackets in texts count, too.
    """
    if (parts := most_parts(data)) > PARTS:
        raise WrongField("", f"expected at most {PARTS} lists and objects, got {parts}")
    try:
        return _decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise WrongField(
            "", f"expected text in UTF-8, got byte 0x{data[error.start]:02x} in column {error.start + 1}"
        ) from None
    except json.JSONDecodeError as error:
        cut = "" if data.endswith(b"\n") else "; the file seems to be cut off"
        line = f"line {error.lineno}, " if b"\n" in data[:-1] else ""
        raise WrongField("", f"expected JSON: {error.msg} in {line}column {error.colno}{cut}") from None
    except RecursionError:
        raise WrongField("", "expected at most a few levels of lists and objects, got them nested too deeply") from None
    except ValueError:
        raise WrongField("", _too_long(data.decode("utf-8"))) from None


def most_parts(data: bytes) -> int:
    """At least as many as there are lists and objects in a text. Its length where that is few enough."""
    return len(data) if len(data) <= PARTS else data.count(b"[") + data.count(b"{")


def _too_long(text: str) -> str:
    number = long_number(text, _decode, json.JSONDecodeError)
    start = text.rfind("\n", 0, number.start) + 1
    line = f"line {text.count(chr(10), 0, start) + 1}, " if "\n" in text[:-1] else ""
    return f"{number} in {line}column {number.start - start + 1}"


def _no_constant(constant: str) -> NoReturn:
    raise WrongField("", f"expected JSON, which has no {constant}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        given = Counter(key for key, _ in pairs)
        again = min(key for key, times in given.items() if times > 1)
        raise WrongField("", f"expected each field once, got {shown(again)} twice")
    return fields


_decode = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique).decode
