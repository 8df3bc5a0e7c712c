"""Four times the calls are four times the work, whatever there is many of: nothing walks all that waits at each step.

Lines are counted, not seconds, so the figures are the same everywhere. What the interpreter does inside of one built-in
is not seen here, but by benchmarks/scaling.py, which measures the same shapes.
"""

from __future__ import annotations

from math import log

import pytest
from counted_lines import lines, steepest
from scaling import GROWTH, MOST_EXPONENT
from scaling_shapes import SHAPES

CALLS = 100  # enough: at 400 a walk over all that wait is most of the work
LEAST_LINES = 500  # a call takes of pure Python

QUICK = ("vllm", "tokencake", "tokencake:rules=published")
EVERYONE_STEEP = {"document", "branches"}  # under every policy: not linear yet
STEEP = {  # not linear yet
    "tokencake": {
        "burst",
        "tools",
        "crowded",
        "shared-prefix",
        "same-prompt",
        "join",
        "fork",
        "returns",
        "long-outputs",
    },
    "tokencake:rules=published": {"crowded", "shared-prefix", "join", "fork", "stalled", "returns"},
}
CASES = [
    pytest.param(shape, policy, marks=() if policy in QUICK else pytest.mark.slow)
    for policy in QUICK
    for shape in SHAPES
    if shape not in EVERYONE_STEEP | STEEP.get(policy, set())
]


@pytest.mark.parametrize(("shape", "policy"), CASES)
def test_four_times_the_calls_are_four_times_the_work(shape, policy):
    few, many = (lines(SHAPES[shape], policy, calls) for calls in (CALLS, GROWTH * CALLS))
    assert few.total > LEAST_LINES * CALLS, "compiled code runs no lines: this test needs pure Python"
    exponent = log(many.total / few.total, GROWTH)
    assert exponent < MOST_EXPONENT, f"exponent {exponent:.2f}\n{steepest(few, many, GROWTH)}"
