"""Policies that are other people's code, where this process makes and plays them itself."""

from __future__ import annotations

from collections.abc import Iterable

from ..traces.console.supervisor import supervise
from .registry import is_ours


def supervise_foreign(specs: Iterable[str]) -> None:
    """Before policies are made in this process: other people's may end it, and that must be no success."""
    if not all(is_ours(spec) for spec in specs):
        supervise()
