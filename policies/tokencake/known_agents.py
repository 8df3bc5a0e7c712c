"""What is known of the agents of applications under way. It goes when their applications end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...traces import events as e
from ...traces.apps import AgentId, AppId
from ..interface import View
from ..parts.dispatch import Handler


class Hold(NamedTuple):
    """A copy on the host that is not given up."""

    until_s: float
    number: int  # copies that were held before it
    agent: AgentId


class KnownAgent:
    """An agent of which some call has arrived."""

    __slots__ = ("before", "hold", "id", "reusable", "size")

    def __init__(self, name: AgentId, before: KnownAgent | None) -> None:
        self.id = name
        self.before = before  # of the same application, the one that came before it
        self.size = 1.0  # of its latest call, as a multiple of what is usual for its type
        self.reusable = False  # whether its latest call is declared so
        self.hold: Hold | None = None


class KnownAgents:
    """Told of an application's end after all that still ask about its agents then."""

    def __init__(self) -> None:
        self.by_id: dict[AgentId, KnownAgent] = {}
        self._latest: dict[AppId, KnownAgent] = {}
        self.handlers: Mapping[type, Handler] = {e.AppFinished: self._app_finished}

    def of(self, app: AppId, agent: AgentId) -> KnownAgent:
        """What is known of an agent of this application: nothing yet, if it was not asked for before."""
        found = self.by_id.get(agent)
        if found is None:
            found = self.by_id[agent] = self._latest[app] = KnownAgent(agent, self._latest.get(app))
        return found

    def of_app(self, app: AppId) -> Iterator[KnownAgent]:
        """The agents of an application that were asked for."""
        agent = self._latest.get(app)
        while agent is not None:
            yield agent
            agent = agent.before

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for agent in self.of_app(fact.app):
            del self.by_id[agent.id]
        self._latest.pop(fact.app, None)
