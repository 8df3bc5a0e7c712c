"""Agents that wait for their tools, from the tool's start until the next call is admitted: what keeping rules go by."""

from __future__ import annotations

from ...traces.apps import AgentId, AppId, CallId
from ...traces.events import AppFinished, CallArrived, Request, ToolStarted


class ToolStall:
    """An agent whose call ended with a tool; later, whose next call waits."""

    __slots__ = ("agent", "call", "request", "since_s")

    def __init__(self, request: Request, since_s: float) -> None:
        self.agent = request.agent
        self.request = request  # the call that started the tool
        self.since_s = since_s
        self.call: CallId | None = None  # the one that came back


class ToolStalls:
    """The open stalls, in the order in which their tools started. Only those are opened whose context is extended.

    A gap is the time from the tool's start to the agent's next arrival, not to the tool's return: so long a cache has
    to last to be of use.
    """

    def __init__(self) -> None:
        self.open: dict[AgentId, ToolStall] = {}
        self._latest: dict[AgentId, Request] = {}
        self._agents_of: dict[AppId, list[AgentId]] = {}
        self._returning: dict[CallId, AgentId] = {}  # waiting calls that end a stall

    def started(self, fact: ToolStarted) -> ToolStall | None:
        """A tool runs. None if no later call extends the context: then there is nothing to keep it for."""
        request = self._latest.get(fact.agent)
        if request is None or request.id != fact.call or not request.hints.reusable:
            return None
        stall = self.open[fact.agent] = ToolStall(request, fact.at_s)
        return stall

    def arrived(self, fact: CallArrived) -> ToolStall | None:
        """A call came. The stall that it ends, if it does; the stall stays open until the call is admitted."""
        request = fact.request
        agent = request.agent
        if agent not in self._latest:
            self._agents_of.setdefault(request.app, []).append(agent)
        self._latest[agent] = request
        stall = self.open.get(agent)
        if stall is None or stall.call is not None:
            return None
        stall.call = request.id
        self._returning[request.id] = agent
        return stall

    def closed(self, call: CallId) -> ToolStall | None:
        """A call was admitted, or given up. The stall that this closes, if it does."""
        agent = self._returning.pop(call, None)
        return None if agent is None else self.open.pop(agent, None)

    def app_finished(self, fact: AppFinished) -> list[ToolStall]:
        """None of the application's agents comes back. Stalls that were open until now."""
        ended = []
        for agent in self._agents_of.pop(fact.app, ()):
            del self._latest[agent]
            stall = self.open.pop(agent, None)
            if stall is not None:
                ended.append(stall)
                if stall.call is not None:
                    self._returning.pop(stall.call, None)
        return ended
