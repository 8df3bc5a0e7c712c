"""Integrals over time of what the GPU's blocks are used for; and the blocks that a stretch takes on its way.

A stretch books its first iteration's blocks when it is scheduled. Those of the later ones are booked here, each at the
boundary at which that iteration is scheduled, when somebody looks.
"""

from __future__ import annotations

from ....traces.events import Occupied
from ...machine.timing import seconds
from ..scheduling.batch import DecodeBatch
from ..scheduling.pace import Pace
from .block_pool import BlockPool


class OccupancyMeter:
    """Block-picoseconds, in whole numbers: the same however a stretch is cut."""

    def __init__(self, gpu: BlockPool) -> None:
        self._gpu = gpu
        self._at_ps = 0
        self._used = 0
        self._stalled = 0
        self._held = 0
        self._busy_ps = 0
        self.busy = False  # whether a step is in flight
        self._pace: Pace | None = None
        self._base_ps = 0
        self._lag = 0
        self._ahead = 1  # the stretch's next iteration whose blocks are not booked

    def begin(self, base_ps: int, pace: Pace, lag: int) -> None:
        """A stretch begins now; its boundary i lies at `base_ps` plus `i − lag` iterations."""
        self._pace = pace
        self._base_ps = base_ps
        self._lag = lag
        self._ahead = 1

    def settle(self, now_ps: int, batch: DecodeBatch) -> int:
        """Book everything before now. How many blocks the stretch took since this was last asked."""
        pace = self._pace
        taken = 0
        if pace is not None:
            taken = self._book(pace, pace.covering(now_ps - self._base_ps) + self._lag, now_ps, batch)
        self._integrate(now_ps)
        return taken

    def _book(self, pace: Pace, until: int, now_ps: int, batch: DecodeBatch) -> int:
        """Hand out what the stretch's iterations before `until` need and was not handed out. How many blocks."""
        if until <= self._ahead:
            return 0
        needs = batch.needs_between(self._ahead, until)
        self._ahead = until
        return self._take(needs, pace, now_ps) if needs else 0

    def _take(self, needs: list[tuple[int, int]], pace: Pace, now_ps: int) -> int:
        """Hand out the blocks of these iterations, each at its boundary."""
        start = self._base_ps
        taken = sum(need for _, need in needs)
        if not self._gpu.spares_stalled(taken):
            for ahead, need in needs:
                self._integrate(start + pace.total_ps(ahead - self._lag))
                self._gpu.get_new_blocks(need)
            return taken
        # what is integrated of stalled agents does not change on the way, and what is used grows by known steps
        self._used += taken * (now_ps - start) - pace.weighed_ps(needs, self._lag)
        self._integrate(now_ps)
        self._gpu.get_new_blocks(taken)
        return taken

    def finish(self, now_ps: int, iterations: int, batch: DecodeBatch) -> int:
        """The stretch, if there is one, ends now after so many iterations. How many blocks it took since settled."""
        pace, self._pace = self._pace, None
        taken = 0 if pace is None else self._book(pace, iterations, now_ps, batch)
        self._integrate(now_ps)
        return taken

    def reading(self, steps: int) -> Occupied:
        """The integrals up to the last settled time."""
        at = self._at_ps
        return Occupied(
            seconds(at),
            seconds(self._used),
            seconds(self._stalled),
            seconds(self._held),
            seconds(self._busy_ps),
            steps,
        )

    def _integrate(self, at_ps: int) -> None:
        span = at_ps - self._at_ps
        if span:
            self._at_ps = at_ps
            gpu = self._gpu
            self._used += (gpu.num_blocks - gpu.num_free_blocks) * span
            stalled_idle_blocks = gpu.stalled_idle_blocks
            if stalled_idle_blocks or gpu.kept_blocks:  # mostly there is nothing of either kind
                self._stalled += (stalled_idle_blocks + gpu.kept_stalled_blocks) * span
                self._held += gpu.kept_blocks * span
            if self.busy:
                self._busy_ps += span
