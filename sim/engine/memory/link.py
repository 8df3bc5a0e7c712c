"""The link between GPU and host: two directions, each a queue of copies, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from ...machine.timing import Timing

Done = Callable[[int], None]  # called with the time at which the engine sees the end of the copy


class Link:
    """Copies under way. A copy takes a fixed time and a time a block, and begins when the one before it has ended."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._free_ps = {"to_host": 0, "to_gpu": 0}
        self.under_way: list[tuple[int, int, Done]] = []  # a heap: end, order of submission, what to do then
        self._submitted = 0

    def to_host(self, blocks: int, from_ps: int, done: Done) -> None:
        self._submit("to_host", blocks, from_ps, done)

    def to_gpu(self, blocks: int, from_ps: int, done: Done) -> None:
        self._submit("to_gpu", blocks, from_ps, done)

    @property
    def next_end_ps(self) -> int | None:
        """When the first copy under way ends."""
        return self.under_way[0][0] if self.under_way else None

    def finish(self, now_ps: int) -> None:
        """Report the copies that have ended, in the order of their ends, then of their submission."""
        while self.under_way and self.under_way[0][0] <= now_ps:
            heappop(self.under_way)[2](now_ps)

    def _submit(self, way: str, blocks: int, from_ps: int, done: Done) -> None:
        begin = max(from_ps, self._free_ps[way])
        end = begin + self._timing.copy_ps + blocks * self._timing.copy_block_ps
        self._free_ps[way] = end
        self._submitted += 1
        heappush(self.under_way, (end, self._submitted, done))
