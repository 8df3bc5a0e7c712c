"""What can be wrong with an application only in comparison with those before it in the trace."""

from __future__ import annotations

from ..apps import Application
from ..files.fields import WrongField, shown


class ApplicationOrder:
    """Checks that applications come in order of arrival, each with an id of its own, and counts them."""

    def __init__(self) -> None:
        self.applications = 0
        self._ids = SeenIds()
        self._arrival_s = 0.0

    def check(self, application: Application) -> None:
        self.applications += 1
        if not self._ids.add(application.id):
            raise WrongField("id", f"expected another id than that of an earlier line, got {shown(application.id)}")
        if application.arrival_s < self._arrival_s:
            raise WrongField(
                "arrival_s",
                f"expected at least {self._arrival_s}, since a trace is played as it is read and applications have to"
                f" come in order of arrival, got {application.arrival_s}",
            )
        self._arrival_s = application.arrival_s


class SeenIds:
    """A set of ids in which a series like `a0`, `a1`, `a2`, … takes no more room than its ends."""

    def __init__(self) -> None:
        self._series: dict[str, tuple[int, int]] = {}  # stem: first number, last number + 1
        self._others: set[str] = set()

    def add(self, name: str) -> bool:
        """Takes an id in; False if it was there."""
        stem = name.rstrip("0123456789")
        digits = name[len(stem) :].lstrip("0") or name[len(stem) :][-1:]
        if not digits or name in self._others:
            return self._add_other(name)
        stem = name[: len(name) - len(digits)]
        number = int(digits)
        first, end = self._series.get(stem, (number, number))
        if first <= number < end:
            return False
        if number != end:
            return self._add_other(name)
        self._series[stem] = (first, end + 1)
        return True

    def _add_other(self, name: str) -> bool:
        new = name not in self._others
        self._others.add(name)
        return new
