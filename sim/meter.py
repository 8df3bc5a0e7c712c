"""Integrals over time of what the GPU's blocks are used for; and the blocks that a stretch takes on its way.

A stretch books its first iteration's blocks when it is scheduled. Those of the later ones are booked here, each at the boundary at
which that iteration is scheduled, when somebody looks.
"""

from __future__ import annotations

from ..traces.events import Occupied
from .batch import Batch, Pace
from .copies import PS_PER_S, Copies
from .kv import KvPool


class Meter:
    """Block-picoseconds, in whole numbers: the same however a stretch is cut."""

    def __init__(self, gpu: KvPool, copies: Copies) -> None:
        self._gpu = gpu
        self._copies = copies
        self._at_ps = 0
        self._used = 0
        self._stalled = 0
        self._held = 0
        self._busy_ps = 0
        self._busy = False
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

    def run(self, busy: bool) -> None:
        """Whether a step is in flight from now on."""
        self._busy = busy

    def settle(self, now_ps: int, batch: Batch) -> int:
        """Book everything before now. How many blocks the stretch took since this was last asked."""
        taken = 0
        pace = self._pace
        if pace is not None and (until := pace.covering(now_ps - self._base_ps) + self._lag) > self._ahead:
            for ahead, need in batch.needs_between(self._ahead, until):
                self._integrate(self._base_ps + pace.total(ahead - self._lag))
                self._gpu.allocate(need)
                taken += need
            self._ahead = until
        self._integrate(now_ps)
        return taken

    def end(self) -> None:
        """The stretch is over."""
        self._pace = None

    def reading(self, steps: int) -> Occupied:
        """The integrals up to the last settled time."""
        at = self._at_ps
        return Occupied(
            at / PS_PER_S, self._used / PS_PER_S, self._stalled / PS_PER_S, self._held / PS_PER_S, self._busy_ps / PS_PER_S, steps
        )

    def _integrate(self, at_ps: int) -> None:
        span = at_ps - self._at_ps
        if span:
            self._at_ps = at_ps
            gpu, copies = self._gpu, self._copies
            self._used += (gpu.blocks - gpu.free) * span
            self._stalled += (gpu.stalled_idle + copies.stalled_held_blocks) * span
            self._held += copies.held_blocks * span
            if self._busy:
                self._busy_ps += span
