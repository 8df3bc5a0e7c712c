"""How many lines of Python a run takes, and which functions they are in: work that is the same on every machine."""

from __future__ import annotations

import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Any

from scaling_shapes import Shape

from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.results.metrics import Metrics


def lines(shape: Shape, policy: str, calls: int) -> Counter[CodeType]:
    """Lines run for so many calls, by function. Each round of a loop counts, in a comprehension, too.

    Work inside of one built-in, as sorting without a key or copying a list, does not count: see benchmarks/scaling.py.
    """
    applications = tuple(shape.make(calls))
    made = load_policy(policy, applications=applications)
    counted: Counter[CodeType] = Counter()

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        counted[frame.f_code] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        simulate(applications, made, shape.machine(calls), [Metrics().add])
    finally:
        sys.settrace(before)
    return counted


def steepest(few: Counter[CodeType], many: Counter[CodeType], times: int) -> str:
    """Of two runs, the second of `times` as many calls: the functions that grew the most beyond that."""
    beyond = sorted(many, key=lambda code: times * few[code] - many[code])[:3]
    return "\n".join(f"{code.co_qualname}: {few[code]:,} lines, then {many[code]:,}" for code in beyond)
