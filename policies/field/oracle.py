"""An upper bound: what could be gained if every tool's time were known. Nobody can run it.

It is given the applications as they will be played. So it knows how long each tool takes, and which call of an agent
comes next; how long calls will wait and run it does not know, since that follows from what it decides.

- *Gaps* are exact: uploads start just in time to be complete when the agent's next call arrives.
- *Eviction* is Belady's, on the GPU and on the host: the context that is used again furthest in the future goes first
  (Belady, *A study of replacement algorithms for a virtual-storage computer*, 1966). A stalled agent's next use is
  known. Of an agent that waits for others, the earliest time is taken at which its call could come if nobody had to
  wait and all answers came at 50 tokens/s; one that calls no more is the first to go.
- *Content.* Prompts are written through, whoever they belong to, and contexts are saved when their calls end. Of what
  belongs to no agent any more the least recently used goes first.
- *Order.* Tokencake's (`seniority`), since a bound with vLLM's order would be passed by whoever orders better;
  `space=off` is vLLM's.

It is greedy with exact knowledge, not the best of all schedules: a policy may beat it. The lower bound of an
application's latency (its critical path on an empty machine) cannot be beaten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from operator import itemgetter
from typing import NamedTuple

from ...traces.apps import AgentId, Application, Call, CallId
from ...traces.events import Request
from ...traces.format.derive import NOMINAL_TOKEN_S
from ..interface import AgentView, Move, Plan, Status, View
from ..parts.dispatch import tell
from ..parts.ended_calls import EndedCalls
from ..tokencake.options import Options, UploadOption
from ..tokencake.policy import Tokencake


class Oracle:
    """An upper bound, not a contender: knows how long every tool takes.

    Exact tool times, Belady's eviction, uploads just in time. `applications` are those that will be played.
    """

    def __init__(
        self, applications: Sequence[Application], space: bool = True, upload: UploadOption = "predictive"
    ) -> None:
        self._future = Future(applications)
        options = Options(space=space, upload=upload, lead_s=0.0, gather_s=0.0)
        self._policy = Tokencake(options, self._future)
        self._ended_calls = EndedCalls()
        self._with_contexts: dict[AgentId, int] = {}  # by number: agents of which a call has ended; some have left

    @property
    def listens_to(self) -> frozenset[type]:
        return self._policy.facts

    def plan(self, view: View) -> Plan:
        """Tokencake's plan, with another choice of what is given up."""
        plan = self._policy.plan(view)
        uses, agents = self._next_uses_s(view), view.agents
        contexts = [agents[name] for name in sorted(uses, key=uses.__getitem__, reverse=True)]
        offload, forget = _host(plan.offload, uses, contexts, view)
        evict = tuple([agent.id for agent in contexts if agent.context_blocks and agent.status is not Status.RUNNING])
        return replace(plan, offload=offload, forget=forget, evict=evict, write_through="prompts")

    def _next_uses_s(self, view: View) -> Mapping[AgentId, float]:
        """Of the agents that have contexts, when each is used next: the agent that came first comes first."""
        tell(view.news, self._ended_calls.handlers, view)
        contexts = self._with_contexts
        if new := {agent.id: agent.number for agent in self._ended_calls.ended(view) if agent.id not in contexts}:
            contexts |= new
            contexts = self._with_contexts = dict(sorted(contexts.items(), key=itemgetter(1)))
        agents = view.agents
        for name in [name for name in contexts if name not in agents]:
            del contexts[name]
        return self._future.next_uses_s([agents[name] for name in contexts], view)


def _host(
    offload: Sequence[Move], uses: Mapping[AgentId, float], contexts: Sequence[AgentView], view: View
) -> tuple[tuple[Move, ...], tuple[AgentId, ...]]:
    """What to save, and which copies to give up for it: those that are used after what is saved, the furthest first.

    `contexts` are in the order in which they are given up. Of equal ones the agent that came first goes first.
    """
    if not offload:
        return (), ()
    room = view.host_free_blocks
    copies = [agent for agent in contexts if agent.host_blocks]
    saves: list[Move] = []
    forget: list[AgentId] = []
    saving = {move.agent for move in offload}
    left = iter([copy for copy in copies if copy.id not in saving])
    for move in sorted(offload, key=lambda move: (uses[move.agent], view.agents[move.agent].number)):
        need = move.blocks - view.agents[move.agent].host_blocks
        while need > room and (copy := next(left, None)) is not None and uses[copy.id] > uses[move.agent]:
            forget.append(copy.id)
            room += copy.host_blocks
        room -= min(need, max(0, room))
        saves.append(move)
    return tuple(saves), tuple(forget)


class _Next(NamedTuple):
    """What comes after a call in its agent's life. What depends on other calls is as if nobody had to wait."""

    tools_s: float  # its own
    pause_s: float = 0.0  # before the agent's next call
    after_tools_s: float = inf  # when all is done that the next call waits for: from the return of these tools on
    after_start_s: float = -inf  # likewise, by the paths on which this call is not: from the application's start on


class Future:
    """What the trace says of times to come."""

    def __init__(self, applications: Sequence[Application]) -> None:
        self._next: dict[CallId, _Next] = {}
        self._at_s: dict[AgentId, tuple[Request, Status, float]] = {}  # the next use, after this call in this status
        for application in applications:
            self._look_ahead(application)

    def estimate_s(self, request: Request) -> float:
        """The true gap after this call."""
        following = self._next[request.id]
        return following.tools_s + following.pause_s

    def learn(self, request: Request, gap_s: float) -> None:
        """There is nothing to learn."""

    def next_uses_s(self, agents: Iterable[AgentView], view: View) -> dict[AgentId, float]:
        """When each agent's context is used next, at the earliest; infinity if never."""
        now_s, uses = view.now_s, dict[AgentId, float]()
        for agent in agents:
            name, status = agent.id, agent.status
            if status is Status.WAITING or status is Status.RUNNING:
                uses[name] = now_s
                continue
            last, known = agent.last, self._at_s.get(name)
            if known is None or known[0] is not last or known[1] is not status:
                known = self._at_s[name] = last, status, self._next_use_s(agent, view)
            uses[name] = max(now_s, known[2])
        return uses

    def _next_use_s(self, agent: AgentView, view: View) -> float:
        following = self._next[agent.last.id]
        returned_s = agent.since_s + (following.tools_s if agent.status is Status.STALLED else 0.0)
        others_s = view.app_started_s(agent.app) + following.after_start_s
        return max(returned_s + following.after_tools_s, others_s) + following.pause_s

    def _look_ahead(self, application: Application) -> None:
        calls = application.calls
        done_s: dict[CallId, float] = {}  # from the application's start on
        latest: dict[AgentId, int] = {}
        for at, call in enumerate(calls):
            before = latest.get(call.agent)
            if before is not None:
                self._next[calls[before].id] = _next(calls[before], calls[before + 1 : at], call, done_s)
            done_s[call.id] = max((done_s[name] for name in call.after), default=0.0) + _alone_s(call)
            latest[call.agent] = at
        for at in latest.values():
            self._next[calls[at].id] = _Next(_tools_s(calls[at]))


def _next(last: Call, between: Sequence[Call], following: Call, done_s: Mapping[CallId, float]) -> _Next:
    """`done_s` tells when a call is done if nobody waits; of the calls `between`, some wait for `last`."""
    if following.after == (last.id,):
        return _Next(_tools_s(last), following.pause_s, 0.0)
    paths = {last.id: (0.0, -inf)}

    def awaited_s(call: Call) -> tuple[float, float]:
        ends = [paths.get(name, (-inf, done_s[name])) for name in call.after]
        return max(tools_s for tools_s, _ in ends), max(start_s for _, start_s in ends)

    for call in between:
        if not paths.keys().isdisjoint(call.after):
            tools_s, start_s = awaited_s(call)
            paths[call.id] = (tools_s + _alone_s(call), start_s + _alone_s(call))
    return _Next(_tools_s(last), following.pause_s, *awaited_s(following))


def _alone_s(call: Call) -> float:
    """How long a call takes at least, with its pause and its tools."""
    return call.pause_s + call.output_tokens * NOMINAL_TOKEN_S + _tools_s(call)


def _tools_s(call: Call) -> float:
    return max((tool.duration_s for tool in call.tools), default=0.0)
