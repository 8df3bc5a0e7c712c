"""A trace as it is played: which applications, how fast, and how much of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..apps import Application
from ..errors import EngineError, TraceError
from ..format.reader import Trace, read_trace
from ..generate.arrivals import ArrivalProcess, arrival_times, retime
from ..limits import Limits, fits, problem
from .scale import scaled
from .shrink import shrunk


@dataclass(slots=True)
class Counts:
    """What was played of a trace, and what was left out."""

    applications: int = 0
    calls: int = 0
    oversized: int = 0


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """How a trace is played: the fields of `Workload` that say so."""

    seed: int = 0
    rate: float | None = None
    arrivals: ArrivalProcess = "even"
    skip_oversized: bool = False
    time_scale: float = 1.0
    shrink: int = 1

    def check(self) -> None:
        """Raises TraceError for a rate that is none."""
        if self.rate is not None:
            arrival_times(self.rate, self.arrivals, self.seed)

    def of(self, trace: Path) -> Workload:
        """The trace in a file, played so. Errors as `read_trace`."""
        how = (self.seed, self.rate, self.arrivals, self.skip_oversized, self.time_scale, self.shrink)
        return Workload(read_trace(trace), *how)


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace, and how it is played."""

    trace: Trace
    seed: int = 0
    rate: float | None = None  # applications a second instead of the arrivals that the trace has
    arrivals: ArrivalProcess = "even"
    skip_oversized: bool = False  # whether applications that the engine cannot hold are left out, or an error
    time_scale: float = 1.0  # arrivals, tools and pauses last so many times as long
    shrink: int = 1  # of each source only one in so many tokens is there

    def play(
        self, limits: Limits, counts: Counts, written: Iterable[Application] | None = None
    ) -> Iterator[Application]:
        """The applications as they arrive, counted into `counts`. Those that are left out do not slow the rate.

        `written`: those of the trace, of who has read it already.
        """
        whole = self.trace if written is None else written
        fitting = self._fitting(whole if self.shrink == 1 else shrunk(whole, self.shrink), limits, counts)
        applications = fitting if self.rate is None else retime(fitting, self.rate, self.arrivals, self.seed)
        for application in scaled(applications, self.time_scale):
            counts.applications += 1
            counts.calls += len(application.calls)
            yield application

    def check_playable(self, limits: Limits) -> None:
        """Reads the whole trace: what the engine cannot serve is found before the first run and not in its middle.

        Raises EngineError for the first application that it cannot, and TraceError if nothing is left to be played.
        """
        counts = Counts()
        for application in self.play(limits, counts):
            if (text := problem(application, limits)) is not None:
                raise EngineError(text)
        if not counts.applications:
            raise TraceError(nothing_to_play(counts))

    def _fitting(self, applications: Iterable[Application], limits: Limits, counts: Counts) -> Iterator[Application]:
        for application in applications:
            if self.skip_oversized and not fits(application, limits):
                counts.oversized += 1
            else:
                yield application


def nothing_to_play(counts: Counts) -> str:
    """Why there is nothing to do."""
    if counts.oversized:
        return f"all {counts.oversized} applications need more than the machine has: nothing is left to play"
    return "the trace has no application: nothing to simulate"
