"""What is played to learn what an engine costs, as ordinary applications.

The steps are one application, a chain of *probes*: each begins when the one before it has ended, so the engine computes
one thing at a time and is never idle. What a probe continues (the first tokens of contexts, each agent its own) is
computed once, at the beginning, and found in the cache from then on. Copies are another application, under a policy
that offloads and uploads at once (`copy_probe`), on an engine that does nothing else.

Where it is known what will be played, the steps that it is made of are a second application: shapes that lie far
outside of the first one's sizes are measured and not extrapolated to.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from ....traces.apps import AppId, Application
from ....traces.errors import EngineError
from ..engine_info import MachineLimits
from ..step_mix import Shape
from .chain import Chain, Probe
from .copy_probe import LOADED, UPLOADED
from .effort import Effort
from .grid import ProbeGrid, decoding, mixed, prefills

COPY_POLICY = f"{Path(__file__).with_name('copy_probe.py')}:CopyProbe"  # as `load_policy` takes it
SLOWEST_LINK_GBPS = 3.0  # of a link whose rate nobody stated: copies are waited for as long as this takes
COPY_SLACK_S = 0.1  # for what else a copy takes: jobs, an engine that looks now and then
LEAST_BLOCKS = 8


def step_probes(limits: MachineLimits, effort: Effort, seed: int = 0) -> Application:
    """The application whose steps are to be measured; its probes are in an order drawn with `seed`.

    Raises EngineError if the engine is too small to measure.
    """
    if limits.gpu_blocks < LEAST_BLOCKS or limits.max_context_tokens < 4 * limits.block_tokens:
        raise EngineError(
            f"cannot calibrate: expected at least {LEAST_BLOCKS} GPU blocks and a context of 4 blocks, got"
            f" {limits.gpu_blocks} blocks of {limits.block_tokens} tokens, a context of {limits.max_context_tokens}"
        )
    grid = ProbeGrid(limits, effort)
    return _shuffled("steps", [*prefills(grid), *decoding(grid), *mixed(grid)], effort.repeats, seed)


def trace_probes(limits: MachineLimits, effort: Effort, shapes: Iterable[Shape], seed: int = 0) -> Application | None:
    """The application in which steps of these shapes are measured; None if the engine can hold none of them.

    Of calls that the engine cannot hold side by side, each with a context of its own, there are fewer.
    """
    grid = ProbeGrid(limits, effort)
    probes = dict.fromkeys(probe for shape in shapes if (probe := grid.probe_of(shape)) is not None)
    return _shuffled("trace", list(probes), effort.repeats, seed) if probes else None


def _shuffled(app: AppId, probes: Sequence[Probe], repeats: int, seed: int) -> Application:
    chain = Chain(app)
    chain.cache(probes)
    rng = random.Random(f"{seed} calibrate")
    for _ in range(repeats):
        for probe in rng.sample(probes, len(probes)):
            chain.play(probe)
    return chain.application()


def copy_probes(limits: MachineLimits, effort: Effort, link_gbps: float | None = None) -> Application | None:
    """The application whose copies are to be measured, for `COPY_POLICY`; None where there is no host memory.

    Each agent's context is saved while its tool runs. Half of them are brought back before the tool returns, the
    others when the next call asks for them. `link_gbps` is what the link was slowed down to, if it was.
    """
    slowest = (0.5 * link_gbps if link_gbps else SLOWEST_LINK_GBPS) * 1e9
    chain = Chain("copies")
    for _ in range(effort.repeats):
        for blocks in _copy_sizes(limits, effort):
            for agent_type in (UPLOADED, LOADED):
                wait_s = COPY_SLACK_S + 2 * blocks * limits.block_bytes / slowest
                chain.stall(agent_type, blocks * limits.block_tokens, wait_s)
    return chain.application() if chain.calls else None


def _copy_sizes(limits: MachineLimits, effort: Effort) -> list[int]:
    """Blocks, fewest first."""
    room = min(limits.gpu_blocks // 2, limits.host_blocks, (limits.max_context_tokens - 2) // limits.block_tokens - 1)
    asked = (max(1, size // limits.block_bytes) for size in effort.copy_bytes)
    return sorted({min(blocks, room) for blocks in asked}) if room > 0 else []
