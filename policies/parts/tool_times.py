"""How long will this tool take? What the application declared, and what was seen before."""

from __future__ import annotations

from typing import Protocol

from ...traces.events import Request

ToolKey = tuple[str, ...]  # the tools' kinds in order; before them, where it matters, the agent type


class ToolTimes(Protocol):
    """How long tools take, in seconds: estimated, or known."""

    def estimate_s(self, request: Request) -> float:
        """How long the gap after this call will be."""
        ...

    def learn(self, request: Request, gap_s: float) -> None:
        """Take in how long the tools of this call really took."""
        ...


class ToolTimeEstimates:
    """Tool times of agents, in seconds: declared, learned, or the mean of both.

    Learned values are exponentially weighted means, `weight` being the newest gap's share, keyed by agent type and
    tool. Tools that one call starts side by side are one gap, as long as the longest: they are learned together, and
    of what they declare the largest counts.
    """

    def __init__(self, weight: float = 0.5, unknown_s: float = 1.0) -> None:
        self._weight = weight
        self._unknown_s = unknown_s
        self._learned_s: dict[ToolKey, float] = {}

    def estimate_s(self, request: Request) -> float:
        """Predicted gap after this call; `unknown_s` if its tools declare nothing and none like them was seen."""
        declared_s = max((tool.declared_s for tool in request.tools if tool.declared_s is not None), default=None)
        learned_s = self._learned_s.get(_key(request))
        if declared_s is None:
            return self._unknown_s if learned_s is None else learned_s
        return declared_s if learned_s is None else (declared_s + learned_s) / 2

    def learn(self, request: Request, gap_s: float) -> None:
        """Take in how long the tools of this call really took."""
        key = _key(request)
        before_s = self._learned_s.get(key, gap_s)
        self._learned_s[key] = self._weight * gap_s + (1 - self._weight) * before_s


def tool_kinds(request: Request) -> ToolKey:
    """The kinds of the tools that a call starts side by side, in order: they are one gap."""
    return tuple(sorted(tool.kind for tool in request.tools))


def _key(request: Request) -> ToolKey:
    return (request.agent_type, *tool_kinds(request))
