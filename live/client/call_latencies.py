"""How long calls took, folded over a run's facts."""

from __future__ import annotations

from ...traces.apps import CallId
from ...traces.events import CallAborted, CallArrived, CallFinished, Fact
from ...traces.results.distribution import Distribution


class CallLatencies:
    """How long calls took, from their arrivals to their ends. Its `add` is a sink."""

    def __init__(self) -> None:
        self._arrived_s: dict[CallId, float] = {}
        self._latency_s = Distribution()

    def add(self, fact: Fact) -> None:
        """Takes the next fact."""
        if isinstance(fact, CallArrived):
            self._arrived_s[fact.request.id] = fact.at_s
        elif isinstance(fact, CallFinished):
            self._latency_s.add(fact.at_s - self._arrived_s.pop(fact.call))
            self._latency_s.fold()
        elif isinstance(fact, CallAborted):
            del self._arrived_s[fact.call]

    def summary(self) -> dict[str, float | None]:
        """Seconds, as a report says them: all None if no call ended."""
        return self._latency_s.summary()
