"""Simulated time, and what comes first when several things happen at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy
from simpy.events import EventPriority

# The world acts first, then a step ends, then the calls arrive that follow at once, then the engine schedules.
ARRIVALS = EventPriority(1)
BOUNDARY = EventPriority(2)
LATE_ARRIVALS = EventPriority(3)
SCHEDULE = EventPriority(4)


class Clock(simpy.Environment):
    """SimPy's environment, on whole picoseconds: sums of times are exact, in whatever order they are added."""

    @property
    def now_ps(self) -> int:
        return self._now  # type: ignore[return-value]  # all delays are whole numbers


class At(simpy.Event):
    """Calls `act` after `delay_ps`. A `simpy.Timeout`, triggered from the start, with a priority among equals."""

    def __init__(self, clock: Clock, delay_ps: int, priority: EventPriority, act: Callable[[Any], None]) -> None:
        self.env = clock
        self.callbacks = [act]
        self._value = None
        self._ok = True
        self._defused = False
        clock.schedule(self, priority, delay_ps)
