"""Numbers of a benchmark's command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import inf
from typing import TypeVar

NUMBER = TypeVar("NUMBER", int, float)


def count(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    return _checked(int, text, 1, "a whole number from 1 on")


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    return _checked(float, text, 5e-324, "a number above 0")


def _checked(kind: Callable[[str], NUMBER], text: str, least: float, expected: str) -> NUMBER:
    try:
        value = kind(text)
    except ValueError:
        value = kind("0")
    if not least <= value < inf:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
