"""What is marked, how often: contents and blocks that copies are under way for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

Mark = TypeVar("Mark", int, bytes)


class Marks(Generic[Mark]):
    """What is marked at least once. `len` counts each once."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[Mark, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, one: Mark) -> bool:
        return one in self._counts

    def any_of(self, several: Sequence[Mark]) -> bool:
        """Whether one of these is marked."""
        return bool(self._counts) and not self._counts.keys().isdisjoint(several)

    def add(self, several: Iterable[Mark]) -> None:
        counts = self._counts
        for one in several:
            counts[one] = counts.get(one, 0) + 1

    def remove(self, several: Iterable[Mark]) -> None:
        """Take one mark off each of these."""
        counts = self._counts
        for one in several:
            left = counts[one] - 1
            if left:
                counts[one] = left
            else:
                del counts[one]
