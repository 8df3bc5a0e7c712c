"""Times that others recorded: in which unit they are, and from when they count."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from ..files.fields import MAX_SECONDS
from .foreign import Entry

TimeUnit: TypeAlias = Literal["s", "ms", "us", "ns"]

UNITS: Mapping[TimeUnit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # in a second

# Seconds since 1970, of the years 2001 to 2103. The latest is less than a thousand times the earliest, so a number is
# such a time in one unit at most. To be taken for one, a time that counts from the start of a recording would have to
# be its twelfth day in milliseconds, and its thirty-second year in seconds.
EPOCH_S = range(1_000_000_000, 4_200_000_000)


def epoch_unit(value: float) -> TimeUnit | None:
    """The unit in which a number is a time since 1970; None: it is none."""
    return next((unit for unit, per_s in UNITS.items() if EPOCH_S.start * per_s <= value < EPOCH_S.stop * per_s), None)


class RecordedTimes:
    """The times of one recording, in seconds. The first of them decides the unit, unless it was said, and the origin.

    Times since 1970 count from the first one, whatever their unit; others from where they did.
    """

    def __init__(self, asked: TimeUnit | None, documented: TimeUnit | None) -> None:
        self._asked = asked
        self._documented = documented
        self._per_s = 0
        self._origin: float = 0
        self.unit: TimeUnit | None = None
        self.fractions = False  # whether one of them was no whole number

    def seconds(self, entry: Entry, field: str, value: object) -> float:
        """The time that `field` holds, to the microsecond. Raises TraceError if it is none, or before the origin."""
        if type(value) not in (int, float) or not 0 <= value < EPOCH_S.stop * UNITS["ns"]:  # type: ignore[operator]
            entry.refuse(field, "a time, a number of at least 0")
        assert isinstance(value, int | float)
        if self.unit is None:
            self._decide(entry, field, value)
        self.fractions = self.fractions or value != int(value)
        since = value - self._origin
        if not 0 <= since < MAX_SECONDS * self._per_s:
            entry.refuse(field, f"a time from {self._origin} on, and less than 32 years later")
        return _microseconds(since, self._per_s) / 1e6

    def _decide(self, entry: Entry, field: str, value: float) -> None:
        since_1970 = epoch_unit(value)
        unit = self._asked or since_1970 or self._documented
        if unit is None:
            entry.refuse(field, "a time since 1970, or --time-unit beside it")
        if value / UNITS[unit] >= EPOCH_S.stop:
            entry.refuse(field, f"a time in {unit}, before the year 2103")
        self.unit = unit
        self._per_s = UNITS[unit]
        if value / self._per_s >= EPOCH_S.start:
            self._origin = value

    def words(self) -> str:
        """How the times were read."""
        assert self.unit is not None
        if self._origin:
            first = datetime.fromtimestamp(self._origin / self._per_s, UTC)
            why = "as asked" if self._asked else "by their size"
            return f"times are {self.unit} since 1970 ({why}), and count from the first, {first:%Y-%m-%d %H:%M:%S} UTC"
        why = "as asked" if self._asked else "as documented"
        doubt = "; not all are whole numbers: if they are seconds, say --time-unit s" if self._doubtful() else ""
        return f"times are {self.unit} ({why}), and count from where the recording's 0 is{doubt}"

    def _doubtful(self) -> bool:
        return self.fractions and not self._asked and self.unit != "s"


def _microseconds(value: float, per_s: int) -> int:
    return value * 1_000_000 // per_s if isinstance(value, int) else round(value * 1e6 / per_s)
