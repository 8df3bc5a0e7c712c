"""What the scheduler asks the workers to copy: plain data, which travels with a step's connector metadata."""

from __future__ import annotations

from typing import NamedTuple


class CopyJob(NamedTuple):
    """Copy blocks between the GPU and the host. Done when every worker has copied its share of every block."""

    id: int
    to_host: bool  # a store, else a load
    gpu_blocks: tuple[int, ...]  # block ids, in the order of the host slots
    host_slots: tuple[int, ...]
    request: str | None  # a load on demand: the vLLM request that waits for it


class Ended(NamedTuple):
    """A job that a worker has carried out."""

    job: int
    seconds: float  # of copying, without waiting: for the jobs before it, or for what computes its blocks
