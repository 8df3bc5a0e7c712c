"""What the GPU's blocks are used for, over time.

What is used and what is held is known at every step. What belongs to stalled agents has to be looked up, block by block
in vLLM's own tables, so that is sampled: as often as costs at most a hundredth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from ..traces.events import Occupied
from .agents import AgentCache
from .gpu_pool import GpuPool

SHORTEST_SAMPLE_S = 0.05
COST_SHARE = 0.01


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

    def sample(self, now_s: float, stalled: Collection[AgentCache]) -> None:
        """Look up stalled agents' blocks, if it is time: those held for them, and the cached ones that are free."""
        if not stalled:
            self._stalled_blocks = 0
        elif now_s >= self._next_sample_s:
            began = time.perf_counter()
            self._stalled_blocks = len({block for agent in stalled for block in self._blocks(agent)})
            cost_s = time.perf_counter() - began
            self._next_sample_s = now_s + max(SHORTEST_SAMPLE_S, cost_s / COST_SHARE)

    def _blocks(self, agent: AgentCache) -> Iterator[int]:
        for block in self._gpu.found(agent.hashes, 0, agent.context_blocks):
            if block.ref_cnt == 0 or (agent.offloading and block.ref_cnt == 1):
                yield block.block_id
        for held in (agent.pin or (), *(upload.held for upload in agent.uploads)):
            for block in held:
                yield block.block_id

    def reading(self, steps: int) -> Occupied:
        return Occupied(self._at_s, self._used, self._stalled, self._held, self._busy_s, steps)
