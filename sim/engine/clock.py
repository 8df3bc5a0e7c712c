"""Simulated time, and what comes first when several things happen at once."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import simpy
from simpy.events import EventPriority

from ...policies.execution.carry_out import SOONEST_S, TimeUnit
from ..machine.timing import PS_PER_S, ps, seconds

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


def not_before_ps(at_s: float) -> int:
    """The first picosecond that is, in seconds again, not before `at_s`: who asks to be woken then is not too early."""
    at_ps = ceil(at_s * PS_PER_S)
    return at_ps if seconds(at_ps) >= at_s else at_ps + 1


PICOSECONDS = TimeUnit(ps(SOONEST_S), not_before_ps)
