"""The calls of an application that are under way, or whose tools are: how far is it to its end?"""

from __future__ import annotations

from bisect import bisect_left, insort

from ...traces.apps import AgentId
from ...traces.events import Request


class LiveCalls:
    """By `remaining_depth`, together and by join group. Nothing is looked through anew when one agent changes."""

    def __init__(self) -> None:
        self._of: dict[AgentId, Request] = {}
        self._remaining: list[int] = []
        self._of_group: dict[str, list[int]] = {}

    def put(self, agent: AgentId, last: Request | None) -> bool:
        """The agent's latest call; None: it is under way no more. Whether some largest depth is another one now."""
        before = self._of.pop(agent, None)
        if last is not None:
            self._of[agent] = last
        if before is last:
            return False
        changed = before is not None and self._remove(before)
        if last is None:
            return changed
        return self._add(last) or changed

    @property
    def slowest(self) -> int:
        """The largest remaining depth; 0 if there is none."""
        return self._remaining[-1] if self._remaining else 0

    def slowest_branch(self, group: str | None) -> int:
        """The largest remaining depth in a join group; 0 if there is none."""
        remaining = None if group is None else self._of_group.get(group)
        return remaining[-1] if remaining else 0

    def _add(self, last: Request) -> bool:
        depth, group = last.hints.remaining_depth, last.hints.join_group
        changed = depth > self.slowest
        insort(self._remaining, depth)
        if group is not None:
            changed = changed or depth > self.slowest_branch(group)
            insort(self._of_group.setdefault(group, []), depth)
        return changed

    def _remove(self, last: Request) -> bool:
        depth, group = last.hints.remaining_depth, last.hints.join_group
        del self._remaining[bisect_left(self._remaining, depth)]
        changed = depth > self.slowest
        if group is not None:
            remaining = self._of_group[group]
            del remaining[bisect_left(remaining, depth)]
            changed = changed or depth > self.slowest_branch(group)
            if not remaining:
                del self._of_group[group]
        return changed
