"""Calls that have just ended: their contexts are saved, whether a tool runs or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...traces import events as e
from ...traces.apps import AgentId, CallId
from ..interface import AgentView, Move, View
from .dispatch import Handler


class EndedCalls:
    """Agents whose calls ended since it was last asked. Aborted calls leave nothing to save."""

    def __init__(self) -> None:
        self._agent_of: dict[CallId, AgentId] = {}  # of live calls
        self._ended: list[AgentId] = []
        self.handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallFinished: self._finished,
            e.CallAborted: self._aborted,
        }

    @property
    def due(self) -> bool:
        """Whether a call has ended."""
        return bool(self._ended)

    def agent_of(self, call: CallId) -> AgentId:
        """The agent of a call that has not ended."""
        return self._agent_of[call]

    def ended(self, view: View) -> list[AgentView]:
        """Each such agent once, in the order of the ends; not those whose applications are over."""
        ended, self._ended = self._ended, []
        return [view.agents[name] for name in dict.fromkeys(ended) if name in view.agents]

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        self._agent_of[fact.request.id] = fact.request.agent

    def _finished(self, fact: e.CallFinished, view: View) -> None:
        self._ended.append(self._agent_of.pop(fact.call))

    def _aborted(self, fact: e.CallAborted, view: View) -> None:
        del self._agent_of[fact.call]


def whole_contexts(agents: Iterable[AgentView]) -> list[Move]:
    """Save all of them; the engine copies what the host lacks, as far as there is room."""
    return [Move(agent.id, agent.context_blocks) for agent in agents if agent.context_blocks]
