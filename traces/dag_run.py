"""An application as it plays: which calls are ready when others have ended. It knows no time and no engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .apps import Application, Call, CallId
from .errors import TraceError


class DagRun:
    """One application under way, the `number`th that began."""

    __slots__ = ("_awaited", "_followers", "_left", "_number", "_places", "app")

    def __init__(self, app: Application, number: int) -> None:
        self.app = app
        self._number = number
        self._left = len(app.calls)
        self._places: dict[CallId, int] = {call.id: place for place, call in enumerate(app.calls)}
        self._awaited: list[int] = [len(call.after) for call in app.calls]  # by place: those that have not ended
        self._followers: list[list[Call] | None] = [None] * self._left
        for call in app.calls:
            for before in call.after:
                place = self._places[before]
                followers = self._followers[place]
                if followers is None:
                    self._followers[place] = [call]
                else:
                    followers.append(call)

    @property
    def over(self) -> bool:
        """Whether all calls and their tools have ended."""
        return not self._left

    def order(self, call: Call) -> tuple[int, int]:
        """Breaks ties between calls that arrive at once: by the applications' begins, then as the trace lists them."""
        return self._number, self._places[call.id]

    def first(self) -> list[Call]:
        """The calls that wait for no other."""
        return [call for call in self.app.calls if not call.after]

    def ended(self, call: Call) -> list[Call]:
        """A call and its tools have ended, once: the calls that waited for it, and now wait for no other."""
        ready: list[Call] = []
        self._left -= 1
        followers = self._followers[self._places[call.id]]
        if followers is None:
            return ready
        for follower in followers:
            place = self._places[follower.id]
            self._awaited[place] -= 1
            if not self._awaited[place]:
                ready.append(follower)
        return ready


def tools_s(call: Call) -> float:
    """How long the tools of a call take, which has some: they run side by side."""
    return max(tool.duration_s for tool in call.tools)


def in_arrival_order(applications: Iterable[Application]) -> Iterator[Application]:
    """The same applications, drawn one at a time. Raises `TraceError` at one that comes before the one before it."""
    latest_s = 0.0
    for app in applications:
        if app.arrival_s < latest_s:
            raise TraceError(
                f"application {app.id!r}: arrival_s: expected no earlier than the one before it, got {app.arrival_s}"
            )
        latest_s = app.arrival_s
        yield app
