"""Agents whose tools run, and the copies on the host that are held for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import count

from ...traces import events as e
from ...traces.apps import AgentId
from ...traces.events import Request
from ..interface import Move, View
from ..parts.dispatch import Handler
from ..parts.tool_times import ToolTimes
from .known_agents import Hold, KnownAgent, KnownAgents
from .options import Options


class Stall:
    """An agent that waits for its tool."""

    __slots__ = ("agent", "look_step", "number", "refused", "request", "saved", "since_s", "tool_s")

    def __init__(
        self, agent: AgentId, number: int, request: Request, since_s: float, tool_s: float, look_step: int
    ) -> None:
        self.agent = agent
        self.number = number  # stalls that began before it
        self.request = request
        self.since_s = since_s
        self.tool_s = tool_s  # predicted
        self.saved = False  # one save a stall, and none if the call may not be saved
        self.refused = False  # it was weighed, and not saved
        self.look_step = look_step  # from this step on it may be weighed, the first time or again

    @property
    def returns_s(self) -> float:
        """When the tool is predicted to return."""
        return self.since_s + self.tool_s


class Stalls:
    """The open stalls, in the order in which their tools started, and how long copies are held.

    A copy is held while its tool runs, at most four predictions, within [60 s, 1 h]; then it is given up. What is given
    up can still be hit until the host needs its room; the authors' host never does, and each of their copies is loaded
    several times.
    """

    def __init__(self, options: Options, tool_times: ToolTimes, agents: KnownAgents) -> None:
        self._options = options
        self._tool_times = tool_times
        self.open: dict[AgentId, Stall] = {}
        self._agents = agents  # of those that had a stall or a copy, it holds the copies on the host
        self._numbers = count()  # of stalls, as their tools start
        self._num_held = 0  # copies on the host that are not given up
        self._holds = count()
        self._expiring: list[Hold] = []  # some are no more
        self._forget: list[AgentId] = []
        self._saving: set[AgentId] = set()  # contexts that are copied to the host
        self._unheld: set[AgentId] = set()  # of these, whose copies will be given up at once: no tool runs
        self.handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.ToolStarted: self._tool_started,
            e.ToolReturned: self._tool_returned,
            e.OffloadFinished: self._offload_finished,
            e.OffloadRefused: self._saved,
            e.HostDropped: self._host_dropped,
            e.AppFinished: self._app_finished,
        }

    @property
    def at_rest(self) -> bool:
        """No tool runs, and no copy is to be given up."""
        return not (self.open or self._forget)

    @property
    def holds(self) -> bool:
        """Whether a copy is held on the host."""
        return self._num_held > 0

    @property
    def saves_unheld(self) -> bool:
        """Whether a context is being saved whose copy is given up at once."""
        return bool(self._unheld)

    def saving(self, moves: Sequence[Move]) -> None:
        """These contexts are saved from now on."""
        for move in moves:
            self._saving.add(move.agent)
            if move.agent not in self.open:
                self._unheld.add(move.agent)

    def expire(self, now_s: float) -> None:
        """Give up the copies that were held for too long, the one first that is held for the longest time."""
        expired: list[tuple[int, AgentId]] = []
        while self._expiring and self._expiring[0][0] <= now_s:
            hold = heappop(self._expiring)
            agent = self._agents.by_id.get(hold.agent)
            if agent is not None and agent.hold is hold:
                expired.append((hold.number, hold.agent))
        for _, name in sorted(expired):
            self._give_up(name)

    def forgotten(self) -> tuple[AgentId, ...]:
        """The copies that were given up since it was last asked."""
        forget, self._forget = tuple(self._forget), []
        return forget

    def _hold(self, agent: KnownAgent, until_s: float) -> None:
        if agent.hold is None:
            self._num_held += 1
            number = next(self._holds)
        else:
            number = agent.hold.number
        agent.hold = Hold(until_s, number, agent.id)
        heappush(self._expiring, agent.hold)

    def _give_up(self, agent: AgentId) -> None:
        if self._drop(self._agents.by_id.get(agent)):
            self._forget.append(agent)

    def _drop(self, agent: KnownAgent | None) -> bool:
        """No copy of the agent is held any more. Whether one was."""
        if agent is None or agent.hold is None:
            return False
        agent.hold = None
        self._num_held -= 1
        return True

    # -- facts

    def _tool_started(self, fact: e.ToolStarted, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is None or agent.last.id != fact.call:
            return
        request = agent.last
        look_step = view.step + self._options.notice_steps
        number = next(self._numbers)
        stall = Stall(fact.agent, number, request, fact.at_s, self._tool_times.estimate_s(request), look_step)
        stall.saved = not request.hints.reusable
        self.open[fact.agent] = stall
        self._unheld.discard(fact.agent)
        self._agents.of(request.app, fact.agent)

    def _tool_returned(self, fact: e.ToolReturned, view: View) -> None:
        self._end(fact.agent, fact.at_s)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        self._end(fact.request.agent, fact.at_s)

    def _end(self, agent: AgentId, at_s: float) -> None:
        stall = self.open.pop(agent, None)
        if stall is not None:
            self._tool_times.learn(stall.request, at_s - stall.since_s)
            self._give_up(agent)
            if agent in self._saving:
                self._unheld.add(agent)

    def _saved(self, fact: e.OffloadFinished | e.OffloadRefused, view: View) -> None:
        self._saving.discard(fact.agent)
        self._unheld.discard(fact.agent)

    def _offload_finished(self, fact: e.OffloadFinished, view: View) -> None:
        self._saved(fact, view)
        agent = view.agents.get(fact.agent)
        if agent is None:
            return  # its application ended meanwhile
        stall = self.open.get(agent.id)
        options = self._options
        hold_s = 0.0 if stall is None else min(options.hold_max_s, max(options.hold_min_s, 4 * stall.tool_s))
        self._hold(self._agents.of(agent.app, agent.id), fact.at_s + hold_s)

    def _host_dropped(self, fact: e.HostDropped, view: View) -> None:
        self._drop(self._agents.by_id.get(fact.agent))

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for agent in self._agents.of_app(fact.app):
            self._drop(agent)
            self._saving.discard(agent.id)
            self._unheld.discard(agent.id)
            self.open.pop(agent.id, None)  # a client may leave while its tools run
