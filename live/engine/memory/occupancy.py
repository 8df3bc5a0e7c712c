"""What the GPU's blocks are used for, over time.

What is used and what is held is known at every step. What belongs to stalled agents has to be looked up, block by block
in vLLM's own tables, so that is sampled: a few blocks a step, and again from the first when that costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from ....traces.apps import AgentId
from ....traces.events import Occupied
from ..requests import LiveAgent
from .gpu_pool import GpuPool

SHORTEST_SAMPLE_S = 0.05
COST_SHARE = 0.0005  # of the time, spent on samples
LONGEST_LOOK_S = 2e-5  # at one step
BLOCKS_AT_ONCE = 8  # looked up between two looks at the clock


class Occupancy:
    """Integrals over a run, in block-seconds."""

    def __init__(self, gpu: GpuPool) -> None:
        self._gpu = gpu
        self._at_s = 0.0
        self._used = 0.0
        self._stalled = 0.0
        self._held = 0.0
        self._busy_s = 0.0
        self._used_blocks = 0  # these three: since the last look
        self._held_blocks = 0
        self._stalled_blocks = 0
        self._next_sample_s = 0.0
        self._walk: Iterator[int | None] | None = None  # the sample under way: what is left of it,
        self._seen: set[int | None] = set()  # the blocks that were found,
        self._cost_s = 0.0  # and what it cost so far

    def look(self, held_blocks: int) -> None:
        """Blocks were taken or given up: so many are used from the last `advance` on."""
        self._used_blocks = self._gpu.blocks - self._gpu.free
        self._held_blocks = held_blocks

    def advance(self, now_s: float, busy: bool) -> None:
        """Book the time since the last call. `busy`: a step was under way."""
        span = now_s - self._at_s
        self._at_s = now_s
        self._used += self._used_blocks * span
        self._held += self._held_blocks * span
        self._stalled += self._stalled_blocks * span
        if busy:
            self._busy_s += span

    def sample(self, now_s: float, stalled: Mapping[AgentId, LiveAgent]) -> None:
        """Look up some of the stalled agents' blocks, if it is time: those held for them, and cached ones in nobody's
        use. When all were looked up, their number holds until the next sample has come as far."""
        if not stalled:
            self._stalled_blocks = 0
            self._walk = None
            return
        if self._walk is None:
            if now_s < self._next_sample_s:
                return
            self._walk, self._seen, self._cost_s = self._blocks(tuple(stalled.values())), set(), 0.0
        if self._look_on(self._walk):
            self._walk = None
            self._stalled_blocks = len(self._seen - {None})
            self._next_sample_s = now_s + max(SHORTEST_SAMPLE_S, self._cost_s / COST_SHARE)

    def _look_on(self, walk: Iterator[int | None]) -> bool:
        """Go on with a sample for a short while. Whether it is complete."""
        clock = time.perf_counter
        began, took_s, complete = clock(), 0.0, False
        while took_s < LONGEST_LOOK_S and not complete:
            blocks = tuple(islice(walk, BLOCKS_AT_ONCE))
            self._seen.update(blocks)
            complete = len(blocks) < BLOCKS_AT_ONCE
            took_s = clock() - began
        self._cost_s += took_s
        return complete

    def _blocks(self, agents: Iterable[LiveAgent]) -> Iterator[int | None]:
        """Blocks of these agents, those whose stall ends meanwhile left out; None for a look-up without a result."""
        for agent in agents:
            if agent.stalled_by is None:
                continue
            for block in self._gpu.look_up(agent.hashes, agent.context_blocks):
                in_no_use = block is not None and (block.ref_cnt == 0 or (agent.offloading and block.ref_cnt == 1))
                yield block.block_id if block is not None and in_no_use else None
            for held in (tuple(agent.pin or ()), *(tuple(upload.held) for upload in agent.uploads)):
                for block in held:
                    yield block.block_id

    def reading(self, steps: int) -> Occupied:
        return Occupied(self._at_s, self._used, self._stalled, self._held, self._busy_s, steps)
