"""When a copy has ended: when every worker has said so."""

from __future__ import annotations

from collections.abc import Mapping


class Acknowledgements:
    """Counts the workers that ended each job."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._ended: dict[int, int] = {}

    def complete(self, ended: Mapping[int, int]) -> list[int]:
        """Take in by how many workers each job was ended just now; the jobs that all have ended, in order."""
        complete = []
        for job, count in ended.items():
            total = self._ended.pop(job, 0) + count
            if total >= self._workers:
                complete.append(job)
            else:
                self._ended[job] = total
        return complete
