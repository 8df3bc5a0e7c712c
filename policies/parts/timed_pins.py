"""Pins with a time to live, for rules that keep a stalled agent's cache for so and so long."""

from __future__ import annotations

from collections.abc import Mapping

from ...traces.apps import AgentId

# A pin without an end of its own, in seconds of engine time: the engine ends it when the agent's next call is admitted.
FOREVER_S = 1e9
ROUNDING_S = 1e-3  # a call that comes at the last moment is in time, however its time is rounded


class TimedPins:
    """Contexts that are kept until a time; or until their agent's next call starts, if it arrives in time.

    The engine's own time limit is not used: an engine looks at arrivals between steps only, and a pin that ends during
    the step in which its call comes would be gone before the call is seen. So whoever uses this asks to be woken at
    `wake_at_s`, tells what came, and only then lets `expire`.
    """

    def __init__(self) -> None:
        self._until_s: dict[AgentId, float] = {}

    def __contains__(self, agent: AgentId) -> bool:
        return agent in self._until_s

    def __bool__(self) -> bool:
        return bool(self._until_s)

    def keep(self, agent: AgentId, until_s: float) -> None:
        """Keep this agent's context until then."""
        self._until_s[agent] = until_s

    def came(self, agent: AgentId, at_s: float) -> bool:
        """The agent's next call arrived: whether that was in time. If so its context is kept until `drop`."""
        until_s = self._until_s.get(agent)
        if until_s is None:
            return False
        if at_s > until_s + ROUNDING_S:
            del self._until_s[agent]
            return False
        self._until_s[agent] = FOREVER_S
        return True

    def drop(self, agent: AgentId) -> None:
        """Keep it no longer."""
        self._until_s.pop(agent, None)

    def expire(self, now_s: float) -> None:
        """Drop what was kept until now, and for which no call came."""
        for agent in [agent for agent, until_s in self._until_s.items() if until_s <= now_s]:
            del self._until_s[agent]

    @property
    def wake_at_s(self) -> float | None:
        """When the next one expires."""
        soonest_s = min(self._until_s.values(), default=FOREVER_S)
        return soonest_s if soonest_s < FOREVER_S else None

    def pins(self) -> Mapping[AgentId, float]:
        """For a plan. All of them, since a pin that a plan does not name is given up."""
        return dict.fromkeys(self._until_s, FOREVER_S)
