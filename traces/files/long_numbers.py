"""Whole numbers that Python refuses to read: where in a text the first one is, for a message of our own."""

from __future__ import annotations

import re
import sys
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

_NUMBER = re.compile(r"([0-9_]+)(?:\.[0-9_]+)?(?:[eE][+-]?[0-9_]+)?")  # of JSON or TOML; real ones may be of any length


class LongNumber(NamedTuple):
    """Where it is in a text, and how long."""

    start: int  # its first digit
    end: int
    digits: int

    def __str__(self) -> str:
        return f"expected numbers of at most {sys.get_int_max_str_digits()} digits, got one of {self.digits}"


def long_number(text: str, parse: Callable[[str], object], wrong: type[ValueError]) -> LongNumber:
    """The number for which `parse` raised a `ValueError` that is not `wrong`, the error for text that is malformed.

    Digits in strings and comments are told from it by `parse`: a text that is cut behind them is malformed at most.
    """
    limit = sys.get_int_max_str_digits()
    runs = [found for found in _NUMBER.finditer(text) if _digits(found[1]) > limit]

    def refused(run: re.Match[str]) -> bool:
        try:
            parse(text[: run.end()])
        except ValueError as error:
            return not isinstance(error, wrong)
        except Exception:
            return False
        return False

    run = runs[bisect_left(runs, True, key=refused)]  # whatever is cut behind the first one is refused, too
    return LongNumber(run.start(), run.end(), _digits(run[1]))


def _digits(run: str) -> int:
    return len(run) - run.count("_")
