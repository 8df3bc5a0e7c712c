"""Applications that are read once and played several times, unless there are so many that memory would show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...traces.apps import Application

MOST_CALLS = 20_000  # some 25 MB


class KeptApplications:
    """Those of a trace, as often as they are iterated over: read once if they are few, else each time."""

    def __init__(self, trace: Iterable[Application]) -> None:
        self._trace = trace

    def __iter__(self) -> Iterator[Application]:
        kept: list[Application] | None = []
        calls = 0
        for application in self._trace:
            calls += len(application.calls)
            if calls > MOST_CALLS:
                kept = None
            if kept is not None:
                kept.append(application)
            yield application
        if kept is not None:  # all of it is there, and nothing was wrong with it
            self._trace = kept
