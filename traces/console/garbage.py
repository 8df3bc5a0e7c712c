"""How often Python looks for garbage in cycles: seldom, since a simulation makes next to none and holds much."""

from __future__ import annotations

import gc

ALLOCATIONS = 20_000  # more objects made than freed before the youngest are looked through; Python's own: 700
YOUNG, MIDDLE = 100, 50  # look-throughs of one generation before the next one's


def collect_seldom() -> None:
    """For this process. With thousands of calls that wait, a third of the time went into looking at them again."""
    gc.set_threshold(ALLOCATIONS, YOUNG, MIDDLE)


def end_at_once() -> None:
    """The process ends: Python need not look for cycles in all that there is. That took a tenth of a short command."""
    gc.freeze()
