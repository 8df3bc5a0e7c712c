"""Waiting calls in the order of what they need at least: only those that may fit are looked at, however many wait."""

from __future__ import annotations

from bisect import bisect_right, insort
from itertools import count
from operator import itemgetter
from typing import Generic, TypeVar

Call = TypeVar("Call")

_BLOCKS = itemgetter(0)


class ByNeed(Generic[Call]):
    """A bag of calls, sorted by a number of blocks that may change.

    Adding, moving and removing take a binary search; `upto` takes one too, and what it finds.
    """

    __slots__ = ("_entries", "_of", "_serial")

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Call]] = []  # blocks; a number that is nobody else's; the call
        self._of: dict[Call, tuple[int, int, Call]] = {}
        self._serial = count()

    def put(self, call: Call, blocks: int) -> None:
        """Add a call, or move it."""
        before = self._of.get(call)
        if before is not None:
            if before[0] == blocks:
                return
            self._delete(before)
        entry = self._of[call] = (blocks, next(self._serial), call)
        insort(self._entries, entry)

    def remove(self, call: Call) -> None:
        """Take a call out."""
        self._delete(self._of.pop(call))

    def upto(self, blocks: int) -> list[Call]:
        """The calls with at most so many blocks, the smallest first."""
        entries = self._entries
        if not entries or entries[0][0] > blocks:
            return []
        return [entry[2] for entry in entries[: bisect_right(entries, blocks, key=_BLOCKS)]]

    def _delete(self, entry: tuple[int, int, Call]) -> None:
        del self._entries[bisect_right(self._entries, entry) - 1]
