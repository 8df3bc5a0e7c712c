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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from typing import ClassVar, NamedTuple

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.events import Request
from ..interface import EMPTY, AgentView, Move, Plan, View
from ..parts.admission import first_come
from ..parts.dispatch import Handler, tell
from ..parts.idle_agents import IdleAgents, Rank
from ..parts.returns import Returns

HELD_S = 3600.0  # a pin lasts until the next plan; this is longer than any time without news


class Life:
    """What an agent did so far."""

    __slots__ = ("agent", "began_s", "idle_since_s", "last", "place", "sent", "waited_s")

    def __init__(self, request: Request, at_s: float, place: int) -> None:
        self.agent = request.agent
        self.last = request
        self.place = place  # lives that began before it
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

    def rank(self, now_s: float) -> Rank:
        """By this idle agents are sorted, the busiest first."""
        return self.idleness(now_s), -(self.idle_since_s or 0.0), self.place, self.agent


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
        self._near: dict[AgentId, Life] = {}  # of these, those that were inside, or began to wait
        self._far = IdleAgents(64)  # and the others
        self._offloading: dict[AgentId, None] = {}  # whose contexts are copied to the host
        self._over: dict[AgentId, Life] = {}  # those that are not expected to call again
        self._caller: dict[CallId, AgentId] = {}  # of the calls that have not ended
        self._pinned: Mapping[AgentId, float] = EMPTY  # by the last plan
        self._uploads: dict[AgentId, int] = {}  # blocks that are back on the GPU for them, or on their way
        self._handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallFinished: self._finished,
            e.CallAborted: self._finished,
            e.OffloadStarted: self._offload_started,
            e.OffloadFinished: self._offload_ended,
            e.UploadStarted: self._upload_started,
            e.UploadTaken: self._upload_ended,
            e.UploadCancelled: self._upload_ended,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Find the boundary, and move what lies on the wrong side of it."""
        tell(view.news, self._handlers)
        now_s = view.now_s
        near = sorted([life.rank(now_s) for life in self._near.values() if view.agents[life.agent].context_blocks])
        if not near and not self._far:
            self._pinned = EMPTY
            return Plan()
        room = self._room(view)
        inside = self._inside(near, room, view)
        outside = [rank[-1] for rank in near if rank[-1] not in inside]
        return self._moves(inside, outside, room.free_blocks, view)

    def by_idleness(self, now_s: float) -> Iterator[AgentId]:
        """Agents between two calls of which they will make the second, the busiest first, found one after another."""
        return self._by_idleness(sorted([life.rank(now_s) for life in self._near.values()]), now_s)

    def _by_idleness(self, near: Iterable[Rank], now_s: float) -> Iterator[AgentId]:
        ranks = near
        if self._far:
            ranks = merge(near, self._far.busiest(now_s, lambda name: self._lives[name].rank(now_s)))
        for rank in ranks:
            yield rank[-1]

    def _room(self, view: View) -> ContextRoom:
        admission = first_come(view, ())
        rival = admission.rival
        needed = admission.fit_blocks + (0 if rival is None else rival.need_blocks) + view.growth_blocks
        held = 0
        for name in {**self._pinned, **self._offloading, **self._uploads}:
            if name in self._idle:
                held += self._held_blocks(name, view.agents[name])
        return ContextRoom(view.free_blocks - needed, held)

    def _held_blocks(self, name: AgentId, agent: AgentView) -> int:
        """Blocks that are held for an idle agent, if it shares none of them."""
        if name in self._pinned or agent.offloading:
            return agent.context_blocks
        return self._uploads.get(name, 0) if agent.context_blocks else 0

    def _inside(self, near: Sequence[Rank], room: ContextRoom, view: View) -> dict[AgentId, AgentView]:
        """The busiest, who have their contexts on the GPU."""
        inside = {}
        left = room.free_blocks + room.held_blocks
        for name in self._by_idleness(near, view.now_s):
            agent = view.agents[name]
            left -= agent.context_blocks
            if left < 0:
                break
            inside[name] = agent
        return inside

    def _moves(
        self, inside: Mapping[AgentId, AgentView], outside: Sequence[AgentId], free_blocks: int, view: View
    ) -> Plan:
        """`outside`: those that may have been inside before."""
        pin: dict[AgentId, float] = {}
        upload = []
        until_s = view.now_s + HELD_S
        for name, agent in inside.items():
            life = self._near.get(name) or self._come_near(name)
            if not life.sent:
                pin[name] = until_s
            elif self._comes_back(name, agent, free_blocks):
                free_blocks -= agent.host_blocks
                upload.append(Move(name, agent.host_blocks))
        self._pinned = pin
        forget, offload = self._sent(inside, outside, view)
        for name in outside:
            self._put_far(self._near.pop(name))
        cancel = tuple(self._cancelled(inside, view)) if self._uploads else ()
        return Plan(pin=pin, offload=offload, upload=tuple(upload), cancel=cancel, forget=forget)

    def _cancelled(self, inside: Mapping[AgentId, AgentView], view: View) -> list[AgentId]:
        """Those whose contexts are back on the GPU, or on their way, and should not be there."""
        names = [name for name in self._uploads if name in self._idle and name not in inside]
        wrong = [self._idle[name] for name in names if view.agents[name].context_blocks]
        return [name for *_, name in sorted([life.rank(view.now_s) for life in wrong])]

    def _comes_back(self, name: AgentId, agent: AgentView, free_blocks: int) -> bool:
        copied = agent.host_blocks and not agent.offloading and name not in self._uploads
        return bool(copied) and agent.host_blocks <= free_blocks

    def _sent(
        self, inside: Mapping[AgentId, AgentView], outside: Sequence[AgentId], view: View
    ) -> tuple[tuple[AgentId, ...], tuple[Move, ...]]:
        """Copies to give up for room on the host, and contexts to send there."""
        offload = []
        missing = -view.host_free_blocks
        for name in outside:
            life = self._lives[name]
            if not life.sent:
                life.sent = True
                agent = view.agents[name]
                missing += max(0, agent.context_blocks - agent.host_blocks)
                offload.append(Move(name, agent.context_blocks, keep=False))
        forget = []
        if offload:
            for name, agent in inside.items():
                if missing <= 0:
                    break
                if agent.host_blocks and not self._lives[name].sent:
                    forget.append(name)
                    missing -= agent.host_blocks
        return tuple(forget), tuple(offload)

    # -- facts

    def _arrived(self, fact: e.CallArrived) -> None:
        request = fact.request
        self._caller[request.id] = request.agent
        life = self._lives.get(request.agent)
        if life is None:
            if self._far.full:
                self._renumber()
            self._lives[request.agent] = Life(request, fact.at_s, self._far.born(fact.at_s))
            self._agents_of.setdefault(request.app, []).append(request.agent)
            return
        if self._returns.learn(life.last):  # once an agent type
            for agent in [name for name, other in self._over.items() if self._returns.calls_again(other.last)]:
                self._idle[agent] = self._near[agent] = self._over.pop(agent)
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
            if self._returns.calls_again(life.last):
                self._idle[agent] = self._near[agent] = life
            else:
                self._over[agent] = life

    def _take(self, agent: AgentId) -> None:
        self._over.pop(agent, None)
        if self._idle.pop(agent, None) is not None and self._near.pop(agent, None) is None:
            self._far.remove(self._lives[agent].place)

    def _come_near(self, agent: AgentId) -> Life:
        life = self._near[agent] = self._lives[agent]
        self._far.remove(life.place)
        return life

    def _put_far(self, life: Life) -> None:
        since_s = life.began_s if life.idle_since_s is None else life.idle_since_s
        self._far.put(life.place, life.agent, since_s - life.began_s - life.waited_s)

    def _renumber(self) -> None:
        """Places run out: those of lives that are over are given up."""
        size = self._far.size
        while size < 2 * len(self._lives):
            size *= 2
        self._far = IdleAgents(size)
        for life in self._lives.values():
            life.place = self._far.born(life.began_s)
        for name, life in self._idle.items():
            if name not in self._near:
                self._put_far(life)

    def _offload_started(self, fact: e.OffloadStarted) -> None:
        self._offloading[fact.agent] = None

    def _offload_ended(self, fact: e.OffloadFinished) -> None:
        self._offloading.pop(fact.agent, None)

    def _upload_started(self, fact: e.UploadStarted) -> None:
        self._uploads[fact.agent] = self._uploads.get(fact.agent, 0) + fact.blocks

    def _upload_ended(self, fact: e.UploadTaken | e.UploadCancelled) -> None:
        self._uploads.pop(fact.agent, None)

    def _app_finished(self, fact: e.AppFinished) -> None:
        for agent in self._agents_of.pop(fact.app, ()):
            self._take(agent)
            del self._lives[agent]
            self._uploads.pop(agent, None)
            self._offloading.pop(agent, None)
