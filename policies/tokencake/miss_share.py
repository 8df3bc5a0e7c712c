"""How much of a context is lost while its agent is away? Learned from what returning calls find."""

from __future__ import annotations

from collections.abc import Mapping

from ...traces import events as e
from ...traces.apps import AgentId, CallId
from ..interface import View
from ..parts.dispatch import Handler
from .known_agents import KnownAgents

NEWEST_SHARE = 1 / 32  # of the latest return in what is learned


class MissShare:
    """The share of a context that a returning call finds neither on the GPU nor on the host, averaged over returns.

    A return counts if the agent's last call was declared reusable, if the new prompt is long enough to continue it, and
    if the context was left to itself: what is `pinned` on the GPU shows nothing. 0 until something was lost.
    """

    def __init__(self, agents: KnownAgents) -> None:
        self.share = 0.0
        self.pinned: frozenset[AgentId] = frozenset()
        self._agents = agents
        self._returning: dict[CallId, int] = {}  # calls that wait: tokens of their agents' contexts
        self.handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.CallAborted: self._aborted,
        }

    def learns(self, call: CallId, cached_tokens: int) -> bool:
        """Whether the share changes if a call that waits starts, and finds so much."""
        context_tokens = self._returning.get(call)
        return context_tokens is not None and (self.share > 0 or cached_tokens < context_tokens)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        agent = view.agents.get(request.agent)
        known = self._agents.of(request.app, request.agent)
        reusable, known.reusable = known.reusable, request.hints.reusable
        if agent is not None and reusable and request.agent not in self.pinned:
            context_tokens = agent.context_blocks * view.block_tokens
            if 0 < context_tokens <= request.prompt_tokens:
                self._returning[request.id] = context_tokens

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        context_tokens = self._returning.pop(fact.call, None)
        if context_tokens is not None:
            lost = 1 - min(1.0, (fact.gpu_hit_tokens + fact.host_hit_tokens) / context_tokens)
            self.share += NEWEST_SHARE * (lost - self.share)

    def _aborted(self, fact: e.CallAborted, view: View) -> None:
        self._returning.pop(fact.call, None)
