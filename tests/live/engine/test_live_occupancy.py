"""What stalled agents' contexts take on the GPU is sampled a few blocks at a time; in the end all were looked up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from tokencake.live.engine.memory.gpu_pool import GpuPool
from tokencake.live.engine.memory.occupancy import Occupancy
from tokencake.live.engine.requests import LiveAgent
from tokencake.live.engine.vllm_surface import Hash


@dataclass
class Block:
    block_id: int
    ref_cnt: int = 0


@dataclass
class Pool:
    """As much of vLLM's block pool as a sample asks."""

    blocks: dict[Hash, Block] = field(default_factory=dict)

    def get_cached_block(self, content: Hash, groups: list[int]) -> list[Block] | None:
        del groups
        block = self.blocks.get(content)
        return None if block is None else [block]


def stalled_agent(name: str, contents: list[Hash]) -> LiveAgent:
    agent = LiveAgent(name, "app")
    agent.hashes, agent.context_blocks, agent.stalled_by = contents, len(contents), "call"
    return agent


def stalled_blocks(occupancy: Occupancy, now_s: float) -> float:
    """What is booked for the second after `now_s`."""
    occupancy.advance(now_s, busy=False)
    before = occupancy.reading(0).stalled_block_s
    occupancy.advance(now_s + 1.0, busy=False)
    return occupancy.reading(0).stalled_block_s - before


def sampled(occupancy: Occupancy, stalled: dict[str, LiveAgent]) -> int:
    """How many steps a sample took."""
    for steps in range(1, 10_000):
        occupancy.sample(0.0, stalled)
        if occupancy._walk is None:
            return steps
    raise AssertionError("a sample does not come to an end")


def test_a_sample_goes_on_step_by_step_and_counts_what_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokencake.live.engine.memory.occupancy.LONGEST_LOOK_S", 1e-12)  # eight blocks a step
    pool = Pool()
    agents = {}
    for index in range(5):
        shared, own = b"shared", [b"%d-%d" % (index, at) for at in range(20)]
        pool.blocks |= {content: Block(100 * index + at) for at, content in enumerate(own, 1)} | {shared: Block(0)}
        agents[f"a{index}"] = stalled_agent(f"a{index}", [shared, *own])
    pool.blocks[agents["a1"].hashes[5]].ref_cnt = 1  # somebody's: it does not count
    del pool.blocks[agents["a2"].hashes[11]]  # nor does it, nor what follows it
    occupancy = Occupancy(GpuPool(cast(Any, pool), 16))
    assert sampled(occupancy, agents) > 10
    assert stalled_blocks(occupancy, 0.0) == 1 + 3 * 20 + 19 + 10  # what they share counts once


def test_an_agent_whose_stall_ended_meanwhile_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokencake.live.engine.memory.occupancy.LONGEST_LOOK_S", 1e-12)
    contents = [b"%d" % at for at in range(40)]
    pool = Pool({content: Block(at) for at, content in enumerate(contents, 1)})
    first, second = stalled_agent("a", contents[:20]), stalled_agent("b", contents[20:])
    occupancy = Occupancy(GpuPool(cast(Any, pool), 16))
    occupancy.sample(0.0, {"a": first, "b": second})
    second.stalled_by = None
    sampled(occupancy, {"a": first})
    assert stalled_blocks(occupancy, 0.0) == 20


def test_without_stalled_agents_nothing_is_booked() -> None:
    content = b"0"
    pool = Pool({content: Block(1)})
    occupancy = Occupancy(GpuPool(cast(Any, pool), 16))
    sampled(occupancy, {"a": stalled_agent("a", [content])})
    occupancy.sample(0.0, {})
    assert stalled_blocks(occupancy, 0.0) == 0
