"""Simulated time, and what comes first when several things happen at once."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, Final

import simpy
from simpy.events import EventPriority

from ...policies.execution.carry_out import SOONEST_S, TimeUnit
from ..machine.timing import PS_PER_S, ps, seconds

# The world acts first, then a step ends, then the calls arrive that follow at once, then the engine schedules.
ARRIVALS = EventPriority(1)
BOUNDARY = EventPriority(2)
LATE_ARRIVALS = EventPriority(3)
SCHEDULE = EventPriority(4)


class Clock:
    """SimPy's environment, on whole picoseconds: sums of times are exact, in whatever order they are added."""

    __slots__ = ("env", "now_ps")

    def __init__(self) -> None:
        self.env = simpy.Environment(0)
        self.now_ps = 0  # as the environment's, which takes longer to be asked

    def has_more_now(self) -> bool:
        """Whether something is still to happen at this very time."""
        return self.env.peek() <= self.now_ps


class At:
    """Does something after `delay_ps`: a `simpy.Timeout` with a priority among equals, as far as SimPy looks at it.

    There are some for each call, so it is no `simpy.Event`: that is several times as large, and takes as much longer.
    """

    __slots__ = ("_act", "_at_ps", "_clock", "_ok", "_what", "callbacks")

    def __init__(
        self, clock: Clock, delay_ps: int, priority: EventPriority, act: Callable[[Any], None], what: object
    ) -> None:
        self._clock = clock
        self._at_ps = clock.now_ps + delay_ps
        self._act = act
        self._what = what
        self._ok = True
        self.callbacks: list[Callable[[At], None]] | None = _HAPPENS  # None as soon as it happens
        clock.env.schedule(self, priority, delay_ps)  # type: ignore[arg-type]

    def happen(self) -> None:
        """Its time has come."""
        self._clock.now_ps = self._at_ps
        self._act(self._what)


def _happens(event: At) -> None:
    event.happen()


_HAPPENS: Final[list[Callable[[At], None]]] = [_happens]


def not_before_ps(at_s: float) -> int:
    """The first picosecond that is, in seconds again, not before `at_s`: who asks to be woken then is not too early."""
    at_ps = ceil(at_s * PS_PER_S)
    return at_ps if seconds(at_ps) >= at_s else at_ps + 1


PICOSECONDS = TimeUnit(ps(SOONEST_S), not_before_ps)
