"""What an engine does of a plan at the boundary at which the policy planned it. Both engines call this.

Simulated and live engines keep time in units of their own (whole picoseconds, float seconds), so times are of a type
`Time` here, and each engine says how the policy's seconds become its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from ...traces.apps import AgentId
from ..interface import Move, Plan

SOONEST_S = 0.001  # a policy that always wants to be asked at once must not stop the clock, or spin an idle engine

Agent = TypeVar("Agent")
Time = TypeVar("Time", int, float)
Time_contra = TypeVar("Time_contra", contravariant=True)


class TimeUnit(NamedTuple, Generic[Time]):
    """How an engine measures time."""

    soonest: Time  # SOONEST_S
    not_before: Callable[[float], Time]  # the first time that is not before so many seconds


class Copies(Protocol[Agent, Time_contra]):
    """What an engine does for one of its agents. It may refuse, and then reports that."""

    @property
    def pinned(self) -> Mapping[AgentId, Agent]: ...
    def forget(self, agent: Agent, now: Time_contra, /) -> None: ...
    def cancel(self, agent: Agent, now: Time_contra, /) -> None: ...
    def unpin(self, agent: Agent, /) -> None: ...
    def offload(self, agent: Agent, move: Move, now: Time_contra, /) -> None: ...
    def pin(self, agent: Agent, until: Time_contra, /) -> None: ...
    def upload(self, agent: Agent, move: Move, now: Time_contra, /) -> None: ...
    def evict_first(self, agents: Sequence[Agent], /) -> None: ...


def carry_out(
    plan: Plan, agents: Mapping[AgentId, Agent], copies: Copies[Agent, Time], now: Time, unit: TimeUnit[Time]
) -> None:
    """Do what a plan wants done at once. Agents that are gone are passed over.

    The order is a promise to policies: what gives room goes before what takes it. Host copies are forgotten before
    offloads need their slots; uploads are cancelled, and pins that the plan does not renew end, before uploads need
    their blocks. A pin holds what is cached before an upload of the same plan evicts it. The order of eviction comes
    last, when it is known which blocks are idle.
    """
    pins = {
        name: max(until, now + unit.soonest)
        for name, until_s in plan.pin.items()
        if (until := unit.not_before(until_s)) > now
    }
    for agent in _known(plan.forget, agents):
        copies.forget(agent, now)
    for agent in _known(plan.cancel, agents):
        copies.cancel(agent, now)
    for agent in [agent for name, agent in copies.pinned.items() if name not in pins]:
        copies.unpin(agent)
    for move in plan.offload:
        if (found := agents.get(move.agent)) is not None:
            copies.offload(found, move, now)
    for name, until in pins.items():
        if (found := agents.get(name)) is not None:
            copies.pin(found, until)
    for move in plan.upload:
        if (found := agents.get(move.agent)) is not None:
            copies.upload(found, move, now)
    if plan.evict:
        copies.evict_first(_known(plan.evict, agents))


def wake_time(plan: Plan, now: Time, unit: TimeUnit[Time]) -> Time | None:
    """When the policy is asked again even if nothing happens."""
    return None if plan.wake_at_s is None else max(now + unit.soonest, unit.not_before(plan.wake_at_s))


def _known(names: Sequence[AgentId], agents: Mapping[AgentId, Agent]) -> list[Agent]:
    return [agent for name in names if (agent := agents.get(name)) is not None]
