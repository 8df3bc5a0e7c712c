"""A policy of one's own: the shortest prompt first, and a context is saved when its tool takes long.

tokencake simulate examples/code-writer.jsonl --policy vllm --policy examples/my_policy.py:ShortestFirst
tokencake simulate examples/code-writer.jsonl --policy examples/my_policy.py:ShortestFirst:least_s=5
"""

from tokencake import Move, Plan, View, facts


class ShortestFirst:
    """Starts the call with the shortest prompt; saves an agent whose declared tool time is at least `least_s`."""

    listens_to = frozenset({facts.CallArrived, facts.CallFinished, facts.ToolStarted})

    def __init__(self, least_s: float = 2.0) -> None:
        self.least_s = least_s

    def plan(self, view: View) -> Plan:
        waiting = sorted(view.waiting.values(), key=lambda call: call.request.prompt_tokens)
        admit = tuple(call.request.id for call in waiting)
        return Plan(admit=admit, offload=tuple(self.saves(view)))

    def saves(self, view: View) -> list[Move]:
        """Agents whose tools have just started, with all the blocks of their contexts."""
        started = [fact.agent for fact in view.news if isinstance(fact, facts.ToolStarted)]
        agents = [view.stalled[name] for name in started if name in view.stalled]
        return [Move(agent.id, agent.context_blocks) for agent in agents if self.is_long(agent.last.tools)]

    def is_long(self, tools) -> bool:
        """Whether one of these tools is declared to take long. How long it will really take, nobody knows."""
        return any(tool.declared_s is not None and tool.declared_s >= self.least_s for tool in tools)
