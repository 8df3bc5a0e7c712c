"""Waiting calls in the order of a key that does not change while they wait; however many there are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from ...traces.apps import CallId
from ..interface import QueueOrder

RankKey = tuple[float, ...]


class RankedQueue:
    """A sorted list of calls, smallest key first. Nothing is sorted anew when a plan is made.

    No two keys are equal: a key ends with the number of its call.
    """

    def __init__(self) -> None:
        self._keys: list[RankKey] = []
        self._calls: list[CallId] = []  # in the order of their keys
        self._key_of: dict[CallId, RankKey] = {}
        self._names: tuple[CallId, ...] | None = ()  # None: no longer true

    def __contains__(self, call: CallId) -> bool:
        return call in self._key_of

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, call: CallId, key: RankKey) -> None:
        """Add a call, or give it another place."""
        before = self._key_of.get(call)
        if before is not None:
            if before == key:
                return
            self.remove(call)
        self._key_of[call] = key
        at = bisect_left(self._keys, key)
        self._keys.insert(at, key)
        self._calls.insert(at, call)
        self._names = None

    def remove(self, call: CallId) -> None:
        """Take a call out, if it is in."""
        key = self._key_of.pop(call, None)
        if key is not None:
            at = bisect_left(self._keys, key)
            del self._keys[at], self._calls[at]
            self._names = None

    def __iter__(self) -> Iterator[CallId]:
        """The names in order, one after another."""
        yield from self._calls

    def names(self) -> tuple[CallId, ...]:
        """The calls in order."""
        if self._names is None:
            self._names = QueueOrder(self._calls)
        return self._names
