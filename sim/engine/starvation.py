"""Calls wait, none runs and none can start: what is given up until one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

from ...policies.execution.starvation import make_way, release_held, without_choices
from ...traces.apps import AgentId
from ...traces.errors import EngineError
from .clock import Clock
from .memory.copies import Copies
from .memory.link import Link
from .requests import SimAgent
from .scheduling.scheduler import Scheduler
from .scheduling.step import Step


class Starvation:
    """Schedules again and again, each time with less held ahead of need, in the order that `make_way` has for this."""

    def __init__(
        self,
        clock: Clock,
        scheduler: Scheduler,
        copies: Copies,
        link: Link,
        agents: Mapping[AgentId, SimAgent],
        schedule: Callable[[int], Step | None],
    ) -> None:
        self._clock = clock
        self._scheduler = scheduler
        self._copies = copies
        self._link = link
        self._agents = agents
        self._schedule = schedule

    def end(self, now_ps: int) -> Step | None:
        """See to it that a call starts, or that something is on its way to one.

        A schedule in which the last running call gave up its own blocks admits nobody; vLLM schedules again at once.
        """
        if not self._link.under_way:
            step = self._schedule_somehow(now_ps)
        else:
            step = self._schedule(now_ps) if self._scheduler.preempted else None
        if step is None and self._scheduler.is_starved():
            self._copies.refusing = True
        return step

    def _schedule_somehow(self, now_ps: int) -> Step | None:
        for in_vain in count(1):
            unplanned = make_way(in_vain, self)
            step = self._schedule_without_choices(now_ps) if unplanned else self._schedule(now_ps)
            if step is not None or self._link.under_way:
                return step
            if unplanned and in_vain > 2:
                break
        raise EngineError(self._scheduler.why_nobody_starts())

    def release_held(self) -> None:
        """Give up whatever agents have on the GPU ahead of need."""
        release_held(self._agents.values(), self._copies, self._clock.now_ps)

    def admits_anybody(self) -> bool:
        """Whether the plan admits a call that waits."""
        return self._scheduler.admits_anybody()

    def unload_last(self) -> bool:
        """The call that was loaded last gives up its blocks, which stay cached. False if there is none."""
        return self._scheduler.unload_last()

    def _schedule_without_choices(self, now_ps: int) -> Step | None:
        scheduler = self._scheduler
        plan = scheduler.plan
        scheduler.plan = without_choices(plan)
        step = self._schedule(now_ps)
        scheduler.plan = plan
        return step
