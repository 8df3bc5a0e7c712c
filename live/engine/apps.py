"""The applications of a run and their agents: what clients say of them, and for how long a client may be silent."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.errors import EngineError
from ...traces.events import Fact
from .control.client_events import ClientEvent
from .requests import LiveAgent

MOST_AGENTS = 100_000  # with those of applications that nobody ended; beyond, the one longest unheard of ends
MOST_BLOCKS = 10_000_000  # of the contexts that are known by their hashes, 73 bytes each: more than any cache holds


class AgentCopies(Protocol):
    """Gives up what is held for an agent."""

    def cancel(self, agent: LiveAgent, now_s: float, /) -> None: ...
    def unpin(self, agent: LiveAgent, /) -> None: ...
    def forget(self, agent: LiveAgent, now_s: float, /) -> None: ...


class LiveApp:
    """An application between its start and its end."""

    __slots__ = ("agents", "calls", "ending", "heard_s", "timeout_s")

    def __init__(self, now_s: float, timeout_s: float | None) -> None:
        self.agents: list[LiveAgent] = []
        self.calls = 0  # not finished
        self.ending = False  # it ends with its last call
        self.heard_s = now_s
        self.timeout_s = timeout_s  # for how long its client may be silent; None: for ever


class Apps:
    """Applications between their starts and their ends. All of it is of one run.

    `timeout_s`, `session_timeout_s`: for how long the client of an application, or of a session of vLLM's, may be
    silent. None: for ever, and sessions are not known at all.
    """

    def __init__(
        self,
        copies: AgentCopies,
        report: Callable[[Fact], None],
        timeout_s: float | None,
        session_timeout_s: float | None,
    ) -> None:
        self._copies = copies
        self._report = report
        self._timeout_s = timeout_s
        self._session_timeout_s = session_timeout_s
        self._sweep_s = min((at_s for at_s in (timeout_s, session_timeout_s) if at_s is not None), default=inf) / 8
        self._swept_s = 0.0
        self.by_name: dict[AppId, LiveApp] = {}  # the one that was heard of last is the last
        self.agents: dict[AgentId, LiveAgent] = {}
        self.stalled: dict[AgentId, LiveAgent] = {}
        self._known_blocks = 0  # of all agents' contexts

    # -- what a client says

    def hear(self, event: ClientEvent, at_s: float, now_s: float) -> None:
        """Take in what is said to have happened at `at_s`. Raises `EngineError` if no more can be known."""
        if event.kind == "app_started":
            if not self.makes_room(event.app, None, at_s):
                raise EngineError(f"event: app: {MOST_AGENTS} applications and agents are known, and all have calls")
            self.app(event.app, at_s)
        elif event.kind == "app_finished":
            self._finished(event.app, at_s)
        else:
            agent = self.agents.get(f"{event.app}/{event.agent}")
            if agent is not None:
                self.heard(event.app, now_s)
                if event.kind == "tool_started":
                    self.stall(agent, event.call, at_s)
                else:
                    self.resume(agent, at_s)

    def _finished(self, name: AppId, at_s: float) -> None:
        app = self.by_name.get(name)
        if app is None:
            return
        if app.calls:
            app.ending = True
        else:
            self.end(name, at_s)

    # -- what the run knows

    @property
    def sessions(self) -> bool:
        """Whether a session of vLLM's is an application."""
        return self._session_timeout_s is not None

    def app(self, name: AppId, at_s: float, *, session: bool = False) -> LiveApp:
        """The application of this name, which starts unless it has."""
        app = self.by_name.get(name)
        if app is None:
            app = self.by_name[name] = LiveApp(at_s, self._session_timeout_s if session else self._timeout_s)
            self._report(e.AppStarted(at_s, name))
        return app

    def agent(self, name: AgentId, app: AppId) -> LiveAgent:
        """The agent of this name, one of an application under way."""
        agent = self.agents.get(name)
        if agent is None:
            agent = self.agents[name] = LiveAgent(name, app)
            self.by_name[app].agents.append(agent)
        return agent

    def heard(self, name: AppId, at_s: float) -> LiveApp:
        """Something of an application was heard: it is the last that is given up for silence."""
        app = self.by_name[name] = self.by_name.pop(name)
        app.heard_s = at_s
        return app

    def call_came(self, agent: LiveAgent, at_s: float, now_s: float) -> None:
        """A call of the agent arrived at `at_s`: whatever its tools were, they have returned."""
        app = self.heard(agent.app, now_s)
        app.calls += 1
        app.ending = False
        self.resume(agent, at_s)
        agent.calls += 1

    def call_went(self, agent: LiveAgent, at_s: float, *, last: bool) -> None:
        """A call of the agent is over. `last`: none of its application follows."""
        app = self.heard(agent.app, at_s)
        app.calls -= 1
        app.ending |= last
        agent.calls -= 1
        self._known_blocks += agent.context_blocks - agent.known_blocks
        agent.known_blocks = agent.context_blocks

    def makes_room(self, app: AppId, agent: AgentId | None, at_s: float) -> bool:
        """Whether these can be known, too. If there are too many, or their contexts are too long, applications end that
        no call is under way of, as far as there are any: those that were heard of first."""
        new = (app not in self.by_name) + (agent is not None and agent not in self.agents)
        while (full := self._is_full(new)) or self._known_blocks > MOST_BLOCKS:
            name = next((name for name, known in self.by_name.items() if not known.calls and name != app), None)
            if name is None:
                return not full
            self.end(name, at_s)
        return True

    def _is_full(self, new: int) -> bool:
        return new > 0 and len(self.by_name) + len(self.agents) + new > MOST_AGENTS

    # -- ends

    def end_if_over(self, name: AppId, at_s: float) -> None:
        """End an application whose last call has ended, and that call's tools."""
        app = self.by_name[name]
        if app.ending and not app.calls and not any(agent.name in self.stalled for agent in app.agents):
            self.end(name, at_s)

    def end(self, name: AppId, at_s: float) -> None:
        """None of its agents comes back."""
        app = self.by_name.pop(name)
        self._report(e.AppFinished(at_s, name))
        for agent in app.agents:
            agent.gone = True
            self._known_blocks -= agent.known_blocks
            self.stalled.pop(agent.name, None)
            self._copies.cancel(agent, at_s)
            self._copies.unpin(agent)
            self._copies.forget(agent, at_s)
            del self.agents[agent.name]

    def end_silent(self, now_s: float) -> None:
        """End the applications of which nothing was heard for too long: a client may have gone without a word."""
        if now_s < self._swept_s + self._sweep_s:
            return
        self._swept_s = now_s
        for name, app in list(self.by_name.items()):
            if app.timeout_s is not None and not app.calls and app.heard_s + app.timeout_s <= now_s:
                self.end(name, now_s)

    # -- stalls

    def stall(self, agent: LiveAgent, call: CallId, at_s: float) -> None:
        """The tools of a finished call run, and its agent waits for them."""
        if agent.stalled_by is None and not agent.calls:
            agent.stalled_by = call
            self.stalled[agent.name] = agent
            self._report(e.ToolStarted(at_s, call, agent.name))

    def resume(self, agent: LiveAgent, at_s: float) -> None:
        """The agent's tools, if any ran, have returned."""
        if agent.stalled_by is not None:
            call, agent.stalled_by = agent.stalled_by, None
            self.stalled.pop(agent.name, None)
            self._report(e.ToolReturned(at_s, call, agent.name))
            self.end_if_over(agent.app, at_s)
