"""An application as it plays: which calls are ready when others have ended. It knows no time and no engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .apps import Application, Call, CallId
from .errors import TraceError


class DagRun:
    """One application under way, the `number`th that began.

    `order` breaks ties between calls that arrive at once: applications in the order in which they began, and the calls
    of one in the order of the trace.
    """

    __slots__ = ("_awaited", "_followers", "_left", "app", "order")

    def __init__(self, app: Application, number: int) -> None:
        self.app = app
        self.order: dict[CallId, tuple[int, int]] = {call.id: (number, i) for i, call in enumerate(app.calls)}
        self._left = len(app.calls)
        self._awaited = {call.id: len(call.after) for call in app.calls}
        self._followers: dict[CallId, list[Call]] = {call.id: [] for call in app.calls}
        for call in app.calls:
            for before in call.after:
                self._followers[before].append(call)

    @property
    def over(self) -> bool:
        """Whether all calls and their tools have ended."""
        return not self._left

    def first(self) -> list[Call]:
        """The calls that wait for no other."""
        return [call for call in self.app.calls if not call.after]

    def ended(self, call: Call) -> list[Call]:
        """A call and its tools have ended, once: the calls that waited for it, and now wait for no other."""
        ready = []
        for follower in self._followers[call.id]:
            self._awaited[follower.id] -= 1
            if not self._awaited[follower.id]:
                ready.append(follower)
        self._left -= 1
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
