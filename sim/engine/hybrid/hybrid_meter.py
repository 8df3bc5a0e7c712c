"""The occupancy meter where the KV cache has several groups: a stretch takes pages, and gives some back."""

from __future__ import annotations

from ..memory.occupancy import OccupancyMeter
from ..scheduling.batch import DecodeBatch
from ..scheduling.pace import Pace
from .hybrid_calls import HybridRunningCalls
from .hybrid_pool import HybridPool


class HybridMeter(OccupancyMeter):
    """Works off what decoding calls take and give back in a stretch, each at its boundary, when somebody looks."""

    def __init__(self, gpu: HybridPool, calls: HybridRunningCalls) -> None:
        super().__init__(gpu)
        self._calls = calls

    def _book(self, pace: Pace, until: int, now_ps: int, batch: DecodeBatch) -> int:
        calls, first = self._calls, batch.iteration
        while True:
            ahead = calls.next_change() - first
            if ahead < 0 or ahead >= until:
                return 0
            self._integrate(self._base_ps + pace.total_ps(ahead - self._lag))
            calls.change(first + ahead)
