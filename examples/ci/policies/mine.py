"""Our policy: applications that came first go first, and a context is saved while a long tool runs."""

from tokencake import Move, Plan, View, facts


class OldestFirst:
    """The oldest application's calls first; saves an agent whose declared tool time is at least `least_s`."""

    listens_to = frozenset({facts.CallArrived, facts.CallFinished, facts.ToolStarted})

    def __init__(self, least_s: float = 1.0) -> None:
        self.least_s = least_s

    def plan(self, view: View) -> Plan:
        waiting = [call.request for call in view.waiting.values()]
        waiting.sort(key=lambda request: view.app_started_s(request.app))
        return Plan(admit=tuple(request.id for request in waiting), offload=self.saves(view))

    def saves(self, view: View) -> tuple[Move, ...]:
        started = [fact.agent for fact in view.news if isinstance(fact, facts.ToolStarted)]
        agents = [view.stalled[name] for name in started if name in view.stalled]
        return tuple(Move(agent.id, agent.context_blocks) for agent in agents if self.is_long(agent.last.tools))

    def is_long(self, tools) -> bool:
        return any(tool.declared_s is not None and tool.declared_s >= self.least_s for tool in tools)
