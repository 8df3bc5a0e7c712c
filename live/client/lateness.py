"""Does what the client and its host add to a call stay small against the call?"""

from __future__ import annotations

from collections.abc import Mapping

from ...traces.apps import CallId
from ...traces.events import CallAborted, CallArrived, CallFinished, Fact
from ...traces.results.distribution import Distribution

SMALL = 0.05  # share of the mean call latency. Steps alone, which a call may come in the middle of, make 1 to 3 %


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


def lateness_problem(lateness_s: Mapping[str, float | None], latency_s: Mapping[str, float | None]) -> str | None:
    """What makes latencies doubtful, of two distributions: how late calls were, and how long they took.

    None if calls were late by no more than a 20th of what they took, mean by mean.
    """
    late_s, took_s = lateness_s.get("mean"), latency_s.get("mean")
    if late_s is None or took_s is None or late_s <= SMALL * took_s:
        return None
    share = f"{100 * late_s / took_s:.1f} % of" if took_s else "against"
    return (
        f"calls came to the engine {1000 * late_s:,.1f} ms after they were due (mean), {share} the"
        f" {1000 * took_s:,.1f} ms that a call took (mean): a slow client or a busy machine is measured, too"
    )
