"""The policy under which copies are measured. It is loaded by its path, as a user's is: so no relative imports."""

from __future__ import annotations

from tokencake.policies.interface import Move, Plan, View
from tokencake.traces.events import OffloadFinished, ToolStarted

UPLOADED, LOADED = "uploaded", "loaded"  # types of agents: how their context comes back


class CopyProbe:
    """Offloads an agent's whole context when its tool starts; then uploads it, if the agent is of that type."""

    listens_to: frozenset[type] = frozenset({ToolStarted, OffloadFinished})

    def plan(self, view: View) -> Plan:
        stalled = [fact.agent for fact in view.news if isinstance(fact, ToolStarted)]
        saved = [fact for fact in view.news if isinstance(fact, OffloadFinished)]
        return Plan(
            offload=tuple(Move(agent, view.agents[agent].context_blocks, keep=False) for agent in stalled),
            upload=tuple(
                Move(fact.agent, fact.upto_blocks)
                for fact in saved
                if fact.agent in view.agents and view.agents[fact.agent].last.agent_type == UPLOADED
            ),
        )
