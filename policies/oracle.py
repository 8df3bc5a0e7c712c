"""An upper bound: what could be gained if every tool's time were known. Nobody can run it.

It is given the applications as they will be played. So it knows how long each tool takes, and which call of an agent
comes next; how long calls will wait and run it does not know, since that follows from what it decides.

- *Gaps* are exact: uploads start just in time to be complete when the agent's next call arrives.
- *Eviction* is Belady's, on the GPU and on the host: the context that is used again furthest in the future goes first
  (Belady, *A study of replacement algorithms for a virtual-storage computer*, 1966). A stalled agent's next use is
  known. Of an agent that waits for others, the earliest time is taken at which its call could come if nobody had to
  wait; one that calls no more is the first to go.
- *Order.* Tokencake's (`seniority`), since a bound with vLLM's order would be passed by whoever orders better;
  `space=off` is vLLM's.

It is greedy with exact knowledge, not the best of all schedules: a policy may beat it. The lower bound of an
application's latency (its critical path on an empty machine) cannot be beaten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import NamedTuple

from ..traces.apps import AgentId, AppId, Application, Call, CallId
from ..traces.derive import NOMINAL_TOKEN_S
from ..traces.events import Request
from .interface import AgentView, Move, Plan, Status, View
from .rules import CHANGES, Rules, Upload
from .tokencake import Tokencake


class Oracle:
    """Exact gaps, Belady's eviction, uploads just in time. `applications` are those that will be played."""

    def __init__(self, applications: Sequence[Application], space: bool = True, upload: Upload = "predictive") -> None:
        self._future = Future(applications)
        options = {**CHANGES["default"], "space": space, "upload": upload, "lead_s": 0.0, "gather_s": 0.0}
        self._policy = Tokencake(Rules(**options), self._future)  # type: ignore[arg-type]

    @property
    def hears(self) -> frozenset[type]:
        return self._policy.hears

    def plan(self, view: View) -> Plan:
        """Tokencake's plan, with another choice of what is given up."""
        plan = self._policy.plan(view)
        uses = {agent.id: self._future.next_use_s(agent, view.now_s) for agent in view.agents.values()}
        offload, forget = _host(plan.offload, uses, view)
        idle = [agent for agent in view.agents.values() if agent.context_blocks and agent.status is not Status.RUNNING]
        evict = tuple(agent.id for agent in sorted(idle, key=lambda agent: (-uses[agent.id], agent.id)))
        return replace(plan, offload=offload, forget=forget, evict=evict)


def _host(
    offload: Sequence[Move], uses: dict[AgentId, float], view: View
) -> tuple[tuple[Move, ...], tuple[AgentId, ...]]:
    """What to save, and which copies to give up for it: those that are used after what is saved, the furthest first."""
    room = view.host_free_blocks
    copies = sorted((a for a in view.agents.values() if a.host_blocks), key=lambda a: (-uses[a.id], a.id))
    saves: list[Move] = []
    forget: list[AgentId] = []
    saving = {move.agent for move in offload}
    left = iter([copy for copy in copies if copy.id not in saving])
    for move in sorted(offload, key=lambda move: (uses[move.agent], move.agent)):
        need = move.blocks - view.agents[move.agent].host_blocks
        while need > room and (copy := next(left, None)) is not None and uses[copy.id] > uses[move.agent]:
            forget.append(copy.id)
            room += copy.host_blocks
        room -= min(need, max(0, room))
        saves.append(move)
    return tuple(saves), tuple(forget)


class _Next(NamedTuple):
    """What comes after a call in its agent's life."""

    gap_s: float  # its tools, and the pause before the agent's next call
    call: Call | None  # that call


class Future:
    """What the trace says of times to come."""

    def __init__(self, applications: Sequence[Application]) -> None:
        self._calls: dict[CallId, Call] = {}
        self._next: dict[CallId, _Next] = {}
        for application in applications:
            latest: dict[AgentId, Call] = {}
            for call in application.calls:
                self._calls[call.id] = call
                before = latest.get(call.agent)
                if before is not None:
                    self._next[before.id] = _Next(_tools_s(before) + call.pause_s, call)
                latest[call.agent] = call
            for call in latest.values():
                self._next[call.id] = _Next(_tools_s(call), None)
        self._ended: dict[AppId, set[CallId]] = {}

    def estimate_s(self, request: Request) -> float:
        """The true gap after this call."""
        return self._next[request.id].gap_s

    def learn(self, request: Request, gap_s: float) -> None:
        """There is nothing to learn."""

    def next_use_s(self, agent: AgentView, now_s: float) -> float:
        """When the agent's context is used next, at the earliest; infinity if never."""
        if agent.status in (Status.WAITING, Status.RUNNING):
            return now_s
        following = self._next[agent.last.id]
        if following.call is None:
            return inf
        if agent.status is Status.STALLED:
            return agent.since_s + following.gap_s
        others = [name for name in following.call.after if self._calls[name].agent != agent.id]
        path_s = max((self._path_s(name, agent.last.id) for name in others), default=0.0)
        return max(now_s, agent.since_s + path_s) + following.call.pause_s

    def _path_s(self, name: CallId, since: CallId) -> float:
        """How long the calls up to this one take at least, from the end of call `since` on."""
        if name == since:
            return 0.0
        call = self._calls[name]
        if call.agent == self._calls[since].agent:
            return 0.0
        before_s = max((self._path_s(earlier, since) for earlier in call.after), default=0.0)
        return before_s + call.pause_s + call.output_tokens * NOMINAL_TOKEN_S + _tools_s(call)


def _tools_s(call: Call) -> float:
    return max((tool.duration_s for tool in call.tools), default=0.0)
