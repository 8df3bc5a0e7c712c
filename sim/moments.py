"""Points in simulated time, and what comes first when several things happen at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy

# SimPy priorities: the world acts first, then a step ends, then the calls arrive that follow at once, then the engine schedules.
ARRIVALS = 1
BOUNDARY = 2
LATE_ARRIVALS = 3
SCHEDULE = 4


class At(simpy.Event):
    """Calls `act` after `delay_ps`. Like `simpy.Timeout` triggered from the start, but with a priority among equals."""

    def __init__(self, env: simpy.Environment, delay_ps: int, priority: int, act: Callable[[Any], None]) -> None:
        self.env = env
        self.callbacks = [act]
        self._value = None
        self._ok = True
        self._defused = False
        env.schedule(self, priority, delay_ps)
