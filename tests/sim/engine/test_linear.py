"""Four times the calls are four times the work, whatever there is many of: nothing walks all that waits at each step.

Lines are counted, not seconds, so the figures are the same everywhere; and by function, so that a walk shows that is
only one line. What the interpreter does inside of one built-in is not seen here, but by benchmarks/scaling.py, which
measures the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import pytest
from counted_lines import beyond, lines
from scaling import GROWTH, MOST_EXPONENT, POLICIES
from scaling_shapes import SHAPES

CALLS = 125
MOST_BEYOND = 0.03  # of all work, in any one function, beyond four times that of a fourth of the calls
LEAST_LINES = 500  # a call takes of pure Python

QUICK = ("vllm", "tokencake")

# What a plan looks at or names has a bound that so few calls do not reach: benchmarks/scaling.py shows that it is one.
BOUNDED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "128 calls that wait are looked up": {
        "tokencake": ("crowded", "join", "fork"),
        "tokencake-space": ("crowded", "join", "fork"),
        "prefetch-at-pause": ("tools", "returns"),
        "kvflow": ("burst", "tools", "shared-prefix", "same-prompt", "join", "fork"),
        "mori": ("tools", "fork"),
    },
    "128 stalls are weighed": {"tokencake:rules=published": ("stalled", "returns")},
    "as many calls are named, or loaded, as may run": {
        "autellix": ("crowded", "long-outputs"),
        "prefetch-at-pause": ("long-outputs",),
    },
    "as many contexts are kept, or brought back, as fit on the GPU": {
        "kvflow": ("stalled", "returns"),
        "mori": ("stalled", "returns"),
        "thunderagent": ("burst", "tools", "shared-prefix", "join", "fork", "stalled", "returns", "long-outputs"),
    },
    "all contexts are named whose tools have run for less than 300 s": {"saga": ("stalled", "returns")},
}
# What is no contender names every context, in the order in which they are to go: so long is its plan.
EVERY_CONTEXT: Mapping[str, Sequence[str]] = {"oracle": ("crowded", "join", "fork", "stalled", "returns")}

LEFT_OUT = {
    (shape, policy)
    for pairs in (*BOUNDED.values(), EVERY_CONTEXT)
    for policy, shapes in pairs.items()
    for shape in shapes
}
CASES = [
    pytest.param(shape, policy, marks=() if policy in QUICK else pytest.mark.slow)
    for policy in POLICIES
    for shape in SHAPES
    if (shape, policy) not in LEFT_OUT
]


@pytest.mark.sources
@pytest.mark.parametrize(("shape", "policy"), CASES)
def test_four_times_the_calls_are_four_times_the_work(shape, policy):
    few, many = (lines(SHAPES[shape], policy, calls) for calls in (CALLS, GROWTH * CALLS))
    assert few.total > LEAST_LINES * CALLS, "compiled code runs no lines: this test needs pure Python"
    steep = {name: share for name, share in beyond(few, many, GROWTH).items() if share > MOST_BEYOND}
    assert not steep
    assert log(many.total / few.total, GROWTH) < MOST_EXPONENT


def test_what_is_left_out_is_there():
    assert {shape for shape, _ in LEFT_OUT} <= SHAPES.keys()
    assert {policy for _, policy in LEFT_OUT} <= set(POLICIES)
