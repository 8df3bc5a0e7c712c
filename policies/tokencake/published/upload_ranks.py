"""Agents by the scores that their next calls will have, the lowest first; however many have uploads."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from math import inf

from ....traces.apps import AgentId
from .score import Line

MOST_LEFT_OVER = 64  # ends of lines that are no more

Entry = tuple[float, int, AgentId]  # points of a line; the number of the agent, negative: of equal ones the later first


class UploadRanks:
    """Scores that grow at the same pace keep their order: by such paces, and then by points, nothing is sorted anew."""

    def __init__(self) -> None:
        self._of_slope: dict[float, list[Entry]] = {}
        self._places: dict[AgentId, tuple[float, Entry]] = {}
        self._ends: list[tuple[float, int, AgentId]] = []  # when a line ends; some are no more

    def put(self, agent: AgentId, number: int, line: Line) -> None:
        """Add an agent, or give it another score."""
        self.remove(agent)
        entry = (line.points, -number, agent)
        self._places[agent] = (line.slope, entry)
        insort(self._of_slope.setdefault(line.slope, []), entry)
        if line.until_s < inf:
            heappush(self._ends, (line.until_s, number, agent))
            if len(self._ends) > MOST_LEFT_OVER + 2 * len(self._places):
                self._ends = [end for end in self._ends if end[-1] in self._places]
                heapify(self._ends)

    def remove(self, agent: AgentId) -> None:
        """Take an agent out, if it is in."""
        place = self._places.pop(agent, None)
        if place is not None:
            slope, entry = place
            entries = self._of_slope[slope]
            del entries[bisect_left(entries, entry)]
            if not entries:
                del self._of_slope[slope]

    def ended(self, now_s: float) -> list[AgentId]:
        """Agents whose lines have ended: they are to be put again."""
        ends = self._ends
        ended: dict[AgentId, None] = {}
        while ends and ends[0][0] <= now_s:
            agent = heappop(ends)[-1]
            if agent in self._places:
                ended[agent] = None
        return list(ended)

    def lowest(self, points: Callable[[AgentId], float]) -> Iterator[tuple[float, AgentId]]:
        """Scores and agents, the lowest first, found one after another. `points`: the score of an agent now."""
        heads: list[tuple[float, int, AgentId, int, float]] = []
        for slope, entries in self._of_slope.items():
            _, number, agent = entries[0]
            heads.append((points(agent), number, agent, 0, slope))
        heapify(heads)
        while heads:
            score, _, agent, at, slope = heads[0]
            yield score, agent
            entries, at = self._of_slope[slope], at + 1
            if at == len(entries):
                heappop(heads)
                continue
            _, number, agent = entries[at]
            heapreplace(heads, (points(agent), number, agent, at, slope))
