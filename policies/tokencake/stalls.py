"""Agents whose tools run, and the copies on the host that are held for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from ...traces import events as e
from ...traces.apps import AgentId, AppId
from ...traces.events import Request
from ..interface import Move, View
from ..parts.dispatch import Handler
from ..parts.tool_times import ToolTimes
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


class Hold(NamedTuple):
    """A copy on the host that is not given up."""

    number: int  # copies that were held before it
    until_s: float


class Stalls:
    """The open stalls, in the order in which their tools started, and how long copies are held.

    A copy is held while its tool runs, at most four predictions, within [60 s, 1 h]; then it is given up. What is given
    up can still be hit until the host needs its room; the authors' host never does, and each of their copies is loaded
    several times.
    """

    def __init__(self, options: Options, tool_times: ToolTimes) -> None:
        self._options = options
        self._tool_times = tool_times
        self.open: dict[AgentId, Stall] = {}
        self._agents_of: dict[AppId, dict[AgentId, None]] = {}  # that had a stall or a copy
        self._numbers = count()  # of stalls, as their tools start
        self._held: dict[AgentId, Hold] = {}  # copies on the host that are not given up
        self._holds = count()
        self._expiring: list[tuple[float, int, AgentId]] = []  # until when, and which hold; some are no more
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
        return bool(self._held)

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
            until_s, number, agent = heappop(self._expiring)
            if self._held.get(agent) == (number, until_s):
                expired.append((number, agent))
        for _, agent in sorted(expired):
            self._give_up(agent)

    def forgotten(self) -> tuple[AgentId, ...]:
        """The copies that were given up since it was last asked."""
        forget, self._forget = tuple(self._forget), []
        return forget

    def _hold(self, agent: AgentId, until_s: float) -> None:
        before = self._held.get(agent)
        hold = self._held[agent] = Hold(next(self._holds) if before is None else before.number, until_s)
        heappush(self._expiring, (until_s, hold.number, agent))

    def _give_up(self, agent: AgentId) -> None:
        if self._held.pop(agent, None) is not None:
            self._forget.append(agent)

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
        self._agents_of.setdefault(request.app, {})[fact.agent] = None

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
        self._agents_of.setdefault(agent.app, {})[agent.id] = None
        stall = self.open.get(agent.id)
        options = self._options
        hold_s = 0.0 if stall is None else min(options.hold_max_s, max(options.hold_min_s, 4 * stall.tool_s))
        self._hold(agent.id, fact.at_s + hold_s)

    def _host_dropped(self, fact: e.HostDropped, view: View) -> None:
        self._held.pop(fact.agent, None)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for agent in self._agents_of.pop(fact.app, ()):
            self._held.pop(agent, None)
            self._saving.discard(agent)
            self._unheld.discard(agent)
            self.open.pop(agent, None)  # a client may leave while its tools run
