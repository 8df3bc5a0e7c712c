"""MORI: the busiest agents' contexts stay on the GPU, the most idle ones' go to the host.

Source: the rule of MORI in short, without the paper's text; so more had to be chosen here than elsewhere.

The rule. An agent's *idleness* is the share of its life that it spent in tool waits. Agents are sorted by it; from the
busiest on they have their contexts on the GPU as far as those fit, and behind that boundary on the host. The boundary
moves with the capacity that is there: what moves behind it is copied to the host and freed, what comes before it is
copied back.

What is left open:

- A life begins with the agent's first call, and a wait is the time between the end of a call and the next one, whether
  a tool runs or other agents are asked: a nested agent is a tool to its parent, and live clients need not report tools.
  The current wait counts up to now, so an agent whose tool takes ever longer moves towards the host.
- Capacity is what calls leave: free blocks, less what running calls may yet grow by, less what the first waiting calls
  need up to the first one that does not fit. So the boundary moves just as far as that call needs.
- On the GPU means held there (`pin`), or it would be overwritten like any other idle cache. Behind the boundary means
  `keep=False`: the copy on the GPU is freed as soon as the one on the host is complete; blocks that others hold stay.
- The boundary is strict: no smaller, more idle context is kept in what is left before it.
- Equal idleness: the agent that is idle for less time counts as busier, then the one that came first.
- A context comes back only into room that is free now. If its call arrives earlier, the engine loads it on demand.
- Agents that are not expected to call again (see `endings`) have no place: their caches age as in vLLM.
- If the host has no room, copies of agents whose contexts are on the GPU are given up, the busiest first. What still
  finds no room stays an idle cache on the GPU, held by nobody.
- Calls start as they came: the rule is about contexts that nobody computes with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.events import Request
from ..interface import AgentView, Move, Plan, View
from ..parts.admission import first_come
from ..parts.dispatch import Handler, tell
from ..parts.returns import Returns

HELD_S = 3600.0  # a pin lasts until the next plan; this is longer than any time without news


class Life:
    """What an agent did so far."""

    __slots__ = ("began_s", "idle_since_s", "last", "sent", "waited_s")

    def __init__(self, request: Request, at_s: float) -> None:
        self.last = request
        self.began_s = at_s
        self.waited_s = 0.0  # between its calls, without the current wait
        self.idle_since_s: float | None = None
        self.sent = False  # its context was sent to the host in this wait, or found no room there

    def idleness(self, now_s: float) -> float:
        """Share of its life in waits, from 0 to 1; 0 at its birth."""
        life_s = now_s - self.began_s
        if life_s <= 0:
            return 0.0
        waited_s = self.waited_s + (0.0 if self.idle_since_s is None else now_s - self.idle_since_s)
        return waited_s / life_s


class ContextRoom(NamedTuple):
    """Blocks for idle contexts, after running and the first waiting calls."""

    free_blocks: int  # in nobody's use; negative: so many are missing
    held_blocks: int  # by idle contexts already


class Mori:
    """Keeps the contexts of the busiest agents on the GPU, and moves those of the most idle to the host."""

    listens_to: ClassVar[frozenset[type]] = frozenset(
        {e.CallArrived, e.CallFinished, e.CallPreempted, e.CallAborted, e.OffloadFinished, e.AppFinished}
    )

    def __init__(self) -> None:
        self._returns = Returns()
        self._lives: dict[AgentId, Life] = {}
        self._agents_of: dict[AppId, list[AgentId]] = {}
        self._idle: dict[AgentId, Life] = {}  # those that wait between two calls
        self._over: dict[AgentId, Life] = {}  # those that are not expected to call again
        self._caller: dict[CallId, AgentId] = {}  # of the calls that have not ended
        self._pinned: frozenset[AgentId] = frozenset()  # by the last plan
        self._uploads: dict[AgentId, int] = {}  # blocks that are back on the GPU for them, or on their way
        self._handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallFinished: self._finished,
            e.CallAborted: self._finished,
            e.UploadStarted: self._upload_started,
            e.UploadTaken: self._upload_ended,
            e.UploadCancelled: self._upload_ended,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Find the boundary, and move what lies on the wrong side of it."""
        tell(view.news, self._handlers)
        idle = self.by_idleness(view)
        if not idle:
            self._pinned = frozenset()
            return Plan()
        room = self._room(idle, view)
        inside = self._inside(idle, room, view)
        return self._moves(idle[:inside], idle[inside:], room.free_blocks, view)

    def by_idleness(self, view: View) -> list[AgentView]:
        """Agents with an idle context that they will use again, the busiest first."""
        now_s = view.now_s
        ranked = []
        for name, life in self._idle.items():
            agent, since_s = view.agents[name], life.idle_since_s
            if since_s is not None and agent.context_blocks:
                ranked.append((life.idleness(now_s), -since_s, agent.number, agent))
        ranked.sort()
        return [agent for _, _, _, agent in ranked]

    def _room(self, idle: Sequence[AgentView], view: View) -> ContextRoom:
        admission = first_come(view, ())
        rival = admission.rival
        needed = admission.fit_blocks + (0 if rival is None else rival.need_blocks) + view.growth_blocks
        held = sum(self._held_blocks(agent) for agent in idle)
        return ContextRoom(view.free_blocks - needed, held)

    def _held_blocks(self, agent: AgentView) -> int:
        """Blocks that are held for an idle agent, if it shares none of them."""
        if agent.id in self._pinned or agent.offloading:
            return agent.context_blocks
        return self._uploads.get(agent.id, 0)

    @staticmethod
    def _inside(idle: Sequence[AgentView], room: ContextRoom, view: View) -> int:
        """How many of the busiest have their contexts on the GPU."""
        left = room.free_blocks + room.held_blocks
        for i, agent in enumerate(idle):
            left -= agent.context_blocks
            if left < 0:
                return i
        return len(idle)

    def _moves(self, inside: Sequence[AgentView], outside: Sequence[AgentView], free_blocks: int, view: View) -> Plan:
        pin: dict[AgentId, float] = {}
        upload = []
        until_s = view.now_s + HELD_S
        for agent in inside:
            if not self._lives[agent.id].sent:
                pin[agent.id] = until_s
            elif self._comes_back(agent, free_blocks):
                free_blocks -= agent.host_blocks
                upload.append(Move(agent.id, agent.host_blocks))
        self._pinned = frozenset(pin)
        forget, offload = self._sent(inside, outside, view)
        cancel = tuple(agent.id for agent in outside if agent.id in self._uploads)
        return Plan(pin=pin, offload=offload, upload=tuple(upload), cancel=cancel, forget=forget)

    def _comes_back(self, agent: AgentView, free_blocks: int) -> bool:
        copied = agent.host_blocks and not agent.offloading and agent.id not in self._uploads
        return bool(copied) and agent.host_blocks <= free_blocks

    def _sent(
        self, inside: Sequence[AgentView], outside: Sequence[AgentView], view: View
    ) -> tuple[tuple[AgentId, ...], tuple[Move, ...]]:
        """Copies to give up for room on the host, and contexts to send there."""
        offload = []
        missing = -view.host_free_blocks
        for agent in outside:
            life = self._lives[agent.id]
            if not life.sent:
                life.sent = True
                missing += max(0, agent.context_blocks - agent.host_blocks)
                offload.append(Move(agent.id, agent.context_blocks, keep=False))
        forget = []
        if offload:
            for agent in inside:
                if missing <= 0:
                    break
                if agent.host_blocks and not self._lives[agent.id].sent:
                    forget.append(agent.id)
                    missing -= agent.host_blocks
        return tuple(forget), tuple(offload)

    # -- facts

    def _arrived(self, fact: e.CallArrived) -> None:
        request = fact.request
        self._caller[request.id] = request.agent
        life = self._lives.get(request.agent)
        if life is None:
            self._lives[request.agent] = Life(request, fact.at_s)
            self._agents_of.setdefault(request.app, []).append(request.agent)
            return
        if self._returns.learn(life.last):  # once an agent type
            for agent in [name for name, other in self._over.items() if self._returns.calls_again(other.last)]:
                self._idle[agent] = self._over.pop(agent)
        life.last = request
        if life.idle_since_s is not None:
            life.waited_s += fact.at_s - life.idle_since_s
            life.idle_since_s = None
            self._take(request.agent)
        life.sent = False

    def _finished(self, fact: e.CallFinished | e.CallAborted) -> None:
        agent = self._caller.pop(fact.call)
        life = self._lives.get(agent)
        if life is not None:
            life.idle_since_s = fact.at_s
            self._take(agent)
            (self._idle if self._returns.calls_again(life.last) else self._over)[agent] = life

    def _take(self, agent: AgentId) -> None:
        self._idle.pop(agent, None)
        self._over.pop(agent, None)

    def _upload_started(self, fact: e.UploadStarted) -> None:
        self._uploads[fact.agent] = self._uploads.get(fact.agent, 0) + fact.blocks

    def _upload_ended(self, fact: e.UploadTaken | e.UploadCancelled) -> None:
        self._uploads.pop(fact.agent, None)

    def _app_finished(self, fact: e.AppFinished) -> None:
        for agent in self._agents_of.pop(fact.app, ()):
            del self._lives[agent]
            self._take(agent)
            self._uploads.pop(agent, None)
