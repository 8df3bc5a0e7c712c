"""What an engine gives up when calls wait, none runs and none can be scheduled. Both engines call this.

Every call is served whatever a policy wants: so what the policy holds goes before the plan does, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from ..interface import Plan

Agent_contra = TypeVar("Agent_contra", contravariant=True)
Time_contra = TypeVar("Time_contra", contravariant=True)
Agent = TypeVar("Agent")
Time = TypeVar("Time")


class Starving(Protocol):
    """An engine in which calls wait and none runs."""

    def release_held(self) -> None:
        """Give up the pins and uploads of all agents."""
        ...

    def admits_anybody(self) -> bool:
        """Whether the plan admits a call that waits."""
        ...

    def unload_last(self) -> bool:
        """The call that was loaded last gives up its blocks, which stay cached. False if there is none."""
        ...


class Holder(Protocol[Agent_contra, Time_contra]):
    """What holds blocks for agents ahead of need."""

    def cancel(self, agent: Agent_contra, now: Time_contra, /) -> None: ...
    def unpin(self, agent: Agent_contra, /) -> None: ...


def make_way(schedules_in_vain: int, engine: Starving) -> bool:
    """Give something up before the next schedule; a bit more with each one (from 1) that started nobody.

    First what is held ahead of need goes, then the blocks of loaded calls, the last one's first, then the plan. Of a
    plan that admits none of those who wait, no room makes a start: it goes before the loads do. Returns whether the
    next schedule is one without the plan (see `without_choices`).
    """
    if schedules_in_vain == 1:
        engine.release_held()
        return False
    if schedules_in_vain == 2 and not engine.admits_anybody():
        return True
    return not engine.unload_last()


def without_choices(plan: Plan) -> Plan:
    """A plan under which the engine chooses who starts and who gives way; what is stored is as in `plan`."""
    return Plan(write_through=plan.write_through)


def release_held(agents: Iterable[Agent], copies: Holder[Agent, Time], now: Time) -> None:
    """Give up what these agents hold on the GPU ahead of need: uploads and pins."""
    for agent in agents:
        copies.cancel(agent, now)
        copies.unpin(agent)
