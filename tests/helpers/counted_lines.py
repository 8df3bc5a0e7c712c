"""How many lines of Python a run takes, and which functions they are in: work that is the same on every machine."""

from __future__ import annotations

import sys
from collections import defaultdict
from types import CodeType, FrameType
from typing import Any

from scaling_shapes import Shape

from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.results.metrics import Metrics


class Lines:
    """Lines that a run took: all, and by function."""

    def __init__(self) -> None:
        self.codes: dict[int, CodeType] = {}  # by id: a hash of code takes longer than many of its lines
        self.counts: defaultdict[int, int] = defaultdict(int)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def trace(self, frame: FrameType, event: str, value: Any) -> Any:
        """For `sys.settrace`: a function was entered."""
        code = frame.f_code
        counts, key = self.counts, id(code)
        self.codes[key] = code

        def line(frame: FrameType, event: str, value: Any) -> Any:
            counts[key] += 1
            return line

        return line


def lines(shape: Shape, policy: str, calls: int) -> Lines:
    """Lines run for so many calls. Each round of a loop counts, in a comprehension, too.

    Work inside of one built-in, as sorting without a key or copying a list, does not count: see benchmarks/scaling.py.
    """
    applications = tuple(shape.make(calls))
    made = load_policy(policy, applications=applications)
    counted = Lines()
    before = sys.gettrace()
    sys.settrace(counted.trace)
    try:
        simulate(applications, made, shape.machine(calls), [Metrics().add])
    finally:
        sys.settrace(before)
    return counted


def beyond(few: Lines, many: Lines, times: int) -> dict[str, float]:
    """Of two runs, the second of `times` as many calls: what each function takes beyond `times` as many lines.

    As a share of all lines of the second run; negative for functions that grew less.
    """
    return {
        f"{many.codes[key].co_qualname}, {few.counts[key]:,} and {count:,} lines": (count - times * few.counts[key])
        / many.total
        for key, count in many.counts.items()
    }
