"""What the scheduler asks the workers to copy, as plain data, and when such a copy has ended on all of them."""

from __future__ import annotations

from collections.abc import Mapping
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


class Acknowledgements:
    """Counts the workers that ended each job."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._ended: dict[int, int] = {}
        self._seconds: dict[int, float] = {}  # by job, of the slowest worker so far

    def complete(self, ended: Mapping[int, int], seconds: Mapping[int, float]) -> dict[int, float | None]:
        """Take in by how many workers each job was ended just now, and in how many seconds, where they say.

        Returns the jobs that all have ended, in order, with the seconds that the slowest worker said.
        """
        complete: dict[int, float | None] = {}
        for job, count in ended.items():
            total = self._ended.pop(job, 0) + count
            if job in seconds:
                self._seconds[job] = max(self._seconds.get(job, 0.0), seconds[job])
            if total >= self._workers:
                complete[job] = self._seconds.pop(job, None)
            else:
                self._ended[job] = total
        return complete
