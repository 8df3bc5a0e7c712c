"""Idle agents by the share of their lives in which they were idle, the busiest first; however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf

from ...traces.apps import AgentId

ROUNDING_S = 1e-6  # of the times that make up a bound: one that is too low does no harm
NOBODY_S = -1.0

# Idleness, when the agent began to be idle (negative), its place and itself: no two are equal.
Rank = tuple[float, float, int, AgentId]


class IdleAgents:
    """A tree over agents in the order of their births, for `size` of them (a power of two).

    Of the agents of a part of it none is busier than one that had worked for as long as any of them, in a life as short
    as that of the youngest: so nearly all parts are left alone by who looks for the busiest.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._busy_s = [NOBODY_S] * (2 * size)  # the longest, by node: 1 is the root, 2n and 2n + 1 are the halves of n
        self._born_s: list[float] = []  # by place, never falling
        self._agents: dict[int, AgentId] = {}  # by place: those that are in

    def __bool__(self) -> bool:
        return bool(self._agents)

    def born(self, at_s: float) -> int:
        """The place of an agent whose life begins. There must be one left: `full` says whether there is."""
        self._born_s.append(at_s)
        return len(self._born_s) - 1

    @property
    def full(self) -> bool:
        return len(self._born_s) == self.size

    def put(self, place: int, agent: AgentId, busy_s: float) -> None:
        """An agent is idle, and was busy for so long before."""
        self._agents[place] = agent
        self._set(place, max(0.0, busy_s))

    def remove(self, place: int) -> bool:
        """Take an agent out. Whether it was in."""
        if self._agents.pop(place, None) is None:
            return False
        self._set(place, NOBODY_S)
        return True

    def busiest(self, now_s: float, rank: Callable[[AgentId], Rank]) -> Iterator[Rank]:
        """Ranks, the smallest first, found one after another."""
        heap: list[tuple[float, float, int, AgentId, int]] = []  # a rank; or a bound, a node and how many places it has
        if self._agents:
            heap.append((-inf, -inf, 1, "", self.size))
        while heap:
            share, minus_since_s, number, agent, places = heappop(heap)
            if not places:
                yield share, minus_since_s, number, agent
                continue
            if places == 1:
                share, minus_since_s, place, agent = rank(self._agents[number - self.size])
                heappush(heap, (share, minus_since_s, place, agent, 0))
                continue
            half = places // 2
            for node in (2 * number, 2 * number + 1):
                busy_s = self._busy_s[node]
                if busy_s >= 0:
                    heappush(heap, (self._least_idleness(node, half, busy_s, now_s), -inf, node, "", half))

    def _least_idleness(self, node: int, places: int, busy_s: float, now_s: float) -> float:
        end = (node + 1) * places - self.size
        life_s = now_s - self._born_s[min(end, len(self._born_s)) - 1]
        return 1 - (busy_s + ROUNDING_S) / life_s if life_s > 0 else -inf

    def _set(self, place: int, busy_s: float) -> None:
        longest_s = self._busy_s
        node = self.size + place
        longest_s[node] = busy_s
        while node > 1:
            node //= 2
            both_s = max(longest_s[2 * node], longest_s[2 * node + 1])
            if longest_s[node] == both_s:
                return
            longest_s[node] = both_s
