"""How true a conversion is: its applications played with the service times of the recording, beside the recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..apps import Application, CallId

TOLERANCE_S = 2.0
TOLERANCE = 0.01  # of the recorded makespan
_MOMENT_S = 1e-3  # less is rounding


class Served(NamedTuple):
    """When a request was served in the recording, from the session's first request on."""

    start_s: float
    end_s: float  # its start, if its end was not recorded
    service_s: float


class Makespans(NamedTuple):
    """Of one session, from the first request's start to the last one's end."""

    app: str
    recorded_s: float
    played_s: float

    @property
    def off_s(self) -> float:
        return abs(self.played_s - self.recorded_s)

    @property
    def off(self) -> bool:
        return self.off_s > max(TOLERANCE_S, TOLERANCE * self.recorded_s)


def played(application: Application, service_s: Mapping[CallId, float]) -> dict[CallId, tuple[float, float]]:
    """When each call begins and ends if it takes `service_s` and waits for nothing but what the application says."""
    times: dict[CallId, tuple[float, float]] = {}
    returned_s: dict[CallId, float] = {}
    for call in application.calls:
        begin_s = max((returned_s[before] for before in call.after), default=0.0) + call.pause_s
        end_s = begin_s + service_s[call.id]
        times[call.id] = begin_s, end_s
        returned_s[call.id] = end_s + max((tool.duration_s for tool in call.tools), default=0.0)
    return times


@dataclass(slots=True)
class Fidelity:
    """Sums over the sessions of a conversion."""

    sessions: int = 0
    requests: int = 0
    overlapping: int = 0  # requests that were under way beside another of their session
    put_in_sequence: int = 0  # requests that wait for one beside which they were under way
    sequence_s: float = 0.0  # how long beside it, at most
    waiting: int = 0  # requests that begin later than recorded, because of what they wait for
    waiting_s: float = 0.0  # how much later, at most
    endless: int = 0  # requests without a recorded end
    sessions_off: int = 0
    worst: Makespans | None = None

    def add(self, application: Application, recorded: Mapping[CallId, Served]) -> None:
        """Plays a converted session; `recorded` has an entry for each of its calls."""
        times = played(application, {call: served.service_s for call, served in recorded.items()})
        self.sessions += 1
        self.requests += len(recorded)
        self.overlapping += _overlapping(recorded)
        for call in application.calls:
            start_s = recorded[call.id].start_s
            beside_s = max((recorded[before].end_s - start_s for before in call.after), default=0.0)
            if beside_s > _MOMENT_S:
                self.put_in_sequence += 1
                self.sequence_s = max(self.sequence_s, beside_s)
            later_s = times[call.id][0] - start_s
            if later_s > _MOMENT_S:
                self.waiting += 1
                self.waiting_s = max(self.waiting_s, later_s)
            self.endless += recorded[call.id].end_s == start_s
        self._compare(
            Makespans(
                application.id,
                max(served.end_s for served in recorded.values()) - min(served.start_s for served in recorded.values()),
                max(end_s for _, end_s in times.values()) - min(begin_s for begin_s, _ in times.values()),
            )
        )

    def _compare(self, makespans: Makespans) -> None:
        self.sessions_off += makespans.off
        if self.worst is None or makespans.off_s > self.worst.off_s:
            self.worst = makespans

    def words(self) -> list[str]:
        """What was found, a line each; none if nothing was added."""
        if self.worst is None:
            return []
        lines = [
            f"{_number(self.requests, 'request')}, {self.overlapping:,} beside another of the same session:"
            f" {self.put_in_sequence:,} put in sequence"
            + (f" (of at most {self.sequence_s:.2f} s of overlap)" if self.put_in_sequence else "")
            + f", {_number(self.waiting, 'wait')} added"
            + (f" (of at most {self.waiting_s:.2f} s)" if self.waiting else "")
        ]
        if self.endless:
            lines.append(
                f"no recorded end: {_number(self.endless, 'request')}, whose time is part of the wait behind them"
            )
        return [*lines, self._makespan_words(self.worst)]

    def _makespan_words(self, worst: Makespans) -> str:
        near = self.sessions - self.sessions_off
        line = (
            "makespan with the recorded service times: within 1 % or 2 s of the recorded one in"
            f" {near:,} of {_number(self.sessions, 'session')}"
        )
        if worst.off_s > _MOMENT_S:
            line += f"; furthest off: {worst.app}, {worst.played_s:,.2f} s for {worst.recorded_s:,.2f} s"
        if self.sessions_off:
            line += ", because requests in it wait for others that the recording says ended later"
        return line


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _overlapping(recorded: Mapping[CallId, Served]) -> int:
    """How many requests were under way while another was."""
    spans = sorted((served.start_s, served.end_s) for served in recorded.values())
    beside = [False] * len(spans)
    latest = 0  # of those so far, the one that ends last
    for at in range(1, len(spans)):
        if spans[at][0] < spans[latest][1] - _MOMENT_S and spans[at][1] > spans[at][0]:
            beside[at] = beside[latest] = True
        if spans[at][1] > spans[latest][1]:
            latest = at
    return sum(beside)
