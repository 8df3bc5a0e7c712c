"""When a copy has ended: when every worker has said so."""

from __future__ import annotations

from collections.abc import Mapping


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
