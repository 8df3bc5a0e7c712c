"""Waiting calls in the order of a key that does not change while they wait; however many there are."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from ...traces.apps import CallId

RankKey = tuple[float, ...]


class RankedQueue:
    """A sorted list of calls, smallest key first. Nothing is sorted anew when a plan is made.

    No two keys are equal: a key ends with the number of its call, or a tie would be broken by an id.
    """

    def __init__(self) -> None:
        self._ranked: list[tuple[RankKey, CallId]] = []
        self._key_of: dict[CallId, RankKey] = {}
        self._names: tuple[CallId, ...] | None = ()  # None: no longer true

    def __contains__(self, call: CallId) -> bool:
        return call in self._key_of

    def put(self, call: CallId, key: RankKey) -> None:
        """Add a call, or give it another place."""
        self.remove(call)
        self._key_of[call] = key
        insort(self._ranked, (key, call))
        self._names = None

    def remove(self, call: CallId) -> None:
        """Take a call out, if it is in."""
        key = self._key_of.pop(call, None)
        if key is not None:
            del self._ranked[bisect_left(self._ranked, (key, call))]
            self._names = None

    def __iter__(self) -> Iterator[str]:
        """The names in order, one after another."""
        for _, name in self._ranked:
            yield name

    def names(self) -> tuple[CallId, ...]:
        """The calls in order."""
        if self._names is None:
            self._names = tuple([call for _, call in self._ranked])
        return self._names
