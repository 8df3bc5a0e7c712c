"""A line of a trace, read: at once where it is as nearly all lines are, else by the parser that can explain it."""

from __future__ import annotations

import json
from typing import NoReturn

from ..apps import Application
from ..files.fields import WrongField
from ..files.input_limits import PARTS
from ..files.strict_json import most_parts, strict_json
from .parser import parse_application
from .well_formed_calls import Unusual, WellFormedCalls

MOST_TEXTS = 4096  # that are remembered

_NOT_AS_EXPECTED = (Unusual, WrongField, LookupError, TypeError, ValueError, RecursionError)


class ApplicationLines:
    """Reads one line after another. Texts that come again and again (agents' types, tools' kinds) are kept once."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def read(self, data: bytes) -> Application:
        """The application of a line. Raises `WrongField`."""
        return self.well_formed(data) or parse_application(strict_json(data))

    def well_formed(self, data: bytes) -> Application | None:
        """The application of a line where there is nothing to explain; None if `parser` has to look at it.

        What `parser` refuses is not read here, and neither is what is rare: calls that stand before what they wait
        for, fields that may stand twice. Whatever is read here `parser` reads as the same application; it takes more
        than twice the time, since it can say at every step what was expected.
        """
        if most_parts(data) > PARTS:
            return None
        if len(self._texts) > MOST_TEXTS:
            self._texts.clear()
        calls = WellFormedCalls(self._texts)
        try:
            application = calls.application(_decode(data.decode()))
        except _NOT_AS_EXPECTED:
            return None
        return application if _each_field_once(data, calls.fields) else None


def _no_constant(constant: str) -> NoReturn:
    raise Unusual


_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def _each_field_once(data: bytes, fields: int) -> bool:
    """Whether the objects of a line, in which so many fields were found, surely have none of them twice.

    Each field has a colon, so there are no more fields than colons. Where texts have colons, too: than colons that
    follow a quotation mark, if none follows a space.
    """
    if data.count(b":") == fields:
        return True
    return data.count(b'":') == fields and not any(space in data for space in (b" :", b"\t:", b"\r:", b"\n:"))
