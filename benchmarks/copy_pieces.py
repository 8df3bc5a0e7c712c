"""How many pieces of memory the copies of a workload are, a part of a block: a GPU's DMA takes each by itself.

    python benchmarks/copy_pieces.py [--policy P]... [--applications N] [--host-gib X]

Plays the code writer on vLLM's own scheduler in virtual time (`tests/helpers/virtual_engine.py`), with our adapter and
without workers, on the published machine, and counts the copies' blocks four times: as they are; as
pieces, if each side had taken its places as they came; as the pieces that are copied; and as the pieces that the GPU's
blocks are by themselves, below which no order of the host's slots comes. Needs vLLM.
"""

# mypy: disallow-any-unimported=false
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import needs_vllm  # noqa: F401
import virtual_engine
from exits import exit_code

from tokencake.live.copier import stretches
from tokencake.live.copier.jobs import CopyJob
from tokencake.live.engine.memory import copies
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces.generate.workloads import code_writer

RATE = 1.0  # applications a second
POLICIES = ("tokencake", "native-offload")
ROUNDS = 10_000_000
Arrange = Callable[[Sequence[int], Iterable[int]], list[int]]


class Counting(virtual_engine.Workers):
    """Workers that look at copies and move nothing."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(replace(machine, gpu_blocks=1, host_gib=0.0))
        self.counts = {True: Counts(), False: Counts()}

    def begin(self, jobs: Sequence[CopyJob], from_ps: int) -> None:
        for job in jobs:
            self.copies += 1
            self.counts[job.to_host].add(job)

            def done(at_ps: int, job: CopyJob = job) -> None:
                del at_ps
                self.ended.append(job.id)
                if job.request is not None:
                    self.loaded.add(job.request)

            (self._link.to_host if job.to_host else self._link.to_gpu)(len(job.gpu_blocks), from_ps, done)

    def compute(self, request: object, tables: object, first: int, end: int) -> None:
        """Nothing is computed."""


@dataclass
class Counts:
    """Of one direction."""

    jobs: int = 0
    blocks: int = 0
    pieces: int = 0
    on_gpu: int = 0  # pieces that the GPU's blocks are, whatever the host's slots

    def add(self, job: CopyJob) -> None:
        self.jobs += 1
        self.blocks += len(job.gpu_blocks)
        self.pieces += len(stretches.stretches(job.gpu_blocks, job.host_slots).counts)
        blocks = sorted(job.gpu_blocks)
        self.on_gpu += len(stretches.stretches(blocks, range(len(blocks))).counts)


@dataclass
class Engine(virtual_engine.Virtual):
    counts: dict[bool, Counts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        workers = Counting(self.machine)
        self.workers, self.counts = workers, workers.counts


def as_they_come(numbers: Sequence[int], places: Iterable[int]) -> list[int]:
    """What was done before places were chosen."""
    del numbers
    return list(places)


def play(policy: str, machine: Machine, applications: int, arrange: Arrange) -> dict[bool, Counts]:
    copies.side_by_side = arrange  # type: ignore[assignment, attr-defined]
    engine = Engine(machine)
    engine.play(list(code_writer(applications, RATE)), RunSettings(policy=policy, costs=machine.beliefs()), [])
    return engine.counts


def main() -> None:
    """Print a line for each policy and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--applications", type=int, default=12)
    parser.add_argument("--host-gib", type=float, default=PUBLISHED.host_gib)
    arguments = parser.parse_args()
    virtual_engine.MOST_ROUNDS = ROUNDS
    machine = replace(PUBLISHED, host_gib=arguments.host_gib, asynchronous=False)
    columns = ("as they come", "side by side", "GPU alone")
    print(f"{'policy':24s} {'copies':8s} {'jobs':>8s} {'blocks':>8s} {' '.join(f'{name:>13s}' for name in columns)}")
    for policy in arguments.policy or POLICIES:
        began = time.perf_counter()
        before, now = (
            play(policy, machine, arguments.applications, how) for how in (as_they_come, stretches.side_by_side)
        )
        for to_host, name in ((True, "to host"), (False, "to GPU")):
            counts, pieces = now[to_host], before[to_host].pieces
            print(
                f"{policy:24s} {name:8s} {counts.jobs:8,d} {counts.blocks:8,d} {pieces:13,d} {counts.pieces:13,d}"
                f" {counts.on_gpu:13,d}"
            )
        print(f"{'':24s} {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_code(main))
