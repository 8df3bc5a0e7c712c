"""Applications that have waiting calls, in stretches: of one whose calls are all too large, none is looked at."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

BITS: Final = 5  # of the place within a stretch
FEW: Final = 4  # stretches: where there are no more, those of the level above are of no use


class AppStretch:
    """Members in order, and the sizes of their smallest calls, one an application, in ascending order."""

    __slots__ = ("members", "sizes")

    def __init__(self) -> None:
        self.members: list[int] = []
        self.sizes: list[float] = []


class WaitingApps:
    """Applications by number, each with the size of its smallest call, in narrow stretches, and those in wide ones.

    A narrow stretch is of 32 numbers, a wide one of 32 narrow ones. Each is known by its lowest number, and is there
    while it has members.
    """

    def __init__(self) -> None:
        self._narrow: dict[int, AppStretch] = {}
        self._wide: dict[int, AppStretch] = {}
        self.levels = [self._narrow, self._wide]
        self._sizes: dict[int, float] = {}  # by application

    @property
    def top(self) -> int:
        """The level to begin at."""
        return 0 if len(self._narrow) <= FEW else 1

    def put(self, number: int, size: float) -> None:
        """The smallest call of an application has this size: it is new, or its calls are others than before."""
        before = self._sizes.get(number)
        if before == size:
            return
        self._sizes[number] = size
        start, wide_start = number >> BITS << BITS, number >> 2 * BITS << 2 * BITS
        if before is None:
            self._join(number, start, wide_start)
        narrow, wide = self._narrow[start].sizes, self._wide[wide_start].sizes
        if before is not None:
            del narrow[bisect_left(narrow, before)], wide[bisect_left(wide, before)]
        insort(narrow, size)
        insort(wide, size)

    def remove(self, number: int) -> None:
        """An application has no waiting calls any more."""
        size = self._sizes.pop(number)
        start, wide_start = number >> BITS << BITS, number >> 2 * BITS << 2 * BITS
        narrow, wide = self._narrow[start], self._wide[wide_start]
        del narrow.members[bisect_left(narrow.members, number)], narrow.sizes[bisect_left(narrow.sizes, size)]
        del wide.sizes[bisect_left(wide.sizes, size)]
        if not narrow.members:
            del self._narrow[start], wide.members[bisect_left(wide.members, start)]
            if not wide.members:
                del self._wide[wide_start]

    def _join(self, number: int, start: int, wide_start: int) -> None:
        narrow = self._narrow.get(start)
        if narrow is None:
            narrow = self._narrow[start] = AppStretch()
            wide = self._wide.get(wide_start)
            if wide is None:
                wide = self._wide[wide_start] = AppStretch()
            insort(wide.members, start)
        insort(narrow.members, number)
