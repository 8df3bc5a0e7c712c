"""What an agent takes in memory while its tool runs: there may be 100,000 of them at once."""

from __future__ import annotations

import tracemalloc

import pytest
from scaling_shapes import SHAPES

from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.events import ToolStarted

FIRST, LAST = 100, 400  # agents in their tools between which memory is looked at


@pytest.mark.parametrize(("policy", "most_bytes"), [("vllm", 3_000), ("tokencake", 4_200)])
def test_an_agent_in_its_tool_is_small(policy: str, most_bytes: int):
    """Of two calls each, with all that is kept of its application, its call to come, and its context."""
    shape = SHAPES["stalled"]
    taken: list[int] = []
    tools = 0

    def look(fact: object) -> None:
        nonlocal tools
        tools += type(fact) is ToolStarted
        if type(fact) is ToolStarted and tools in (FIRST, LAST):
            taken.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        simulate(shape.make(2 * LAST), load_policy(policy), shape.machine(2 * LAST), [look])
    finally:
        tracemalloc.stop()
    before, after = taken
    assert (after - before) / (LAST - FIRST) < most_bytes
