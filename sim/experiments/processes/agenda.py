"""Who of several plays what next: what shares a preparation by the same one, the longest first, nobody idle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from math import inf
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Agenda(Generic[Item]):
    """Items that come in groups, each group in one place as long as there is another one for the other places.

    `group`: items that follow each other and have the same share a preparation, which is made once for them in one
    place. `kind`: such items take about as long as each other. `wanted`: others are passed over, when their turn comes.
    """

    def __init__(
        self,
        items: Iterable[Item],
        group: Callable[[Item], Any] = lambda item: None,
        kind: Callable[[Item], str] = lambda item: "",
        wanted: Callable[[Item], bool] = lambda item: True,
    ) -> None:
        self._groups: Iterator[tuple[Any, Iterator[Item]]] = groupby(items, group)
        self._kind, self._wanted = kind, wanted
        self._left: dict[object, list[Item]] = {}  # of the group of each place
        self._took_s: dict[str, float] = {}  # by kind, the last one

    def draw(self, place: object) -> Item | None:
        """The next item for this place; None if there is nothing to do any more."""
        own = self._left.setdefault(place, [])
        while (found := self._longest(own)) is None:
            _, group = next(self._groups, (None, None))
            if group is None:
                return self._longest(max(self._left.values(), key=self._left_s))
            own.extend(group)
        return found

    def took(self, item: Item, seconds: float) -> None:
        """Remembers how long it took."""
        self._took_s[self._kind(item)] = seconds

    def _longest(self, items: list[Item]) -> Item | None:
        items[:] = [item for item in items if self._wanted(item)]
        if not items:
            return None
        return items.pop(max(range(len(items)), key=lambda at: self._expected_s(items[at])))

    def _left_s(self, items: list[Item]) -> float:
        return sum((self._expected_s(item) for item in items), 0.0)

    def _expected_s(self, item: Item) -> float:
        return self._took_s.get(self._kind(item), inf)
