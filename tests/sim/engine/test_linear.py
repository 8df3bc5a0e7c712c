"""Four times the calls are four times the work, whatever there is many of: nothing walks all that waits at each step.

Lines are counted, not seconds, so the figures are the same everywhere; and by function, so that a walk shows that is
only one line. What the interpreter does inside of one built-in is not seen here, but by benchmarks/scaling.py, which
measures the same shapes.
"""

from __future__ import annotations

from math import log

import pytest
from counted_lines import beyond, lines
from scaling import GROWTH, MOST_EXPONENT
from scaling_shapes import SHAPES

CALLS = 125
MOST_BEYOND = 0.03  # of all work, in any one function, beyond four times that of a fourth of the calls
LEAST_LINES = 500  # a call takes of pure Python

QUICK = ("vllm", "tokencake")
OTHERS = ("native-offload",)
STEEP = {  # at these sizes
    "tokencake": {"crowded", "join", "fork"},  # joins grow up to the 128 calls that a plan looks up
}
CASES = [
    pytest.param(shape, policy, marks=() if policy in QUICK else pytest.mark.slow)
    for policy in (*QUICK, *OTHERS)
    for shape in SHAPES
    if shape not in STEEP.get(policy, set())
]


@pytest.mark.sources
@pytest.mark.parametrize(("shape", "policy"), CASES)
def test_four_times_the_calls_are_four_times_the_work(shape, policy):
    few, many = (lines(SHAPES[shape], policy, calls) for calls in (CALLS, GROWTH * CALLS))
    assert few.total > LEAST_LINES * CALLS, "compiled code runs no lines: this test needs pure Python"
    steep = {name: share for name, share in beyond(few, many, GROWTH).items() if share > MOST_BEYOND}
    assert not steep
    assert log(many.total / few.total, GROWTH) < MOST_EXPONENT
