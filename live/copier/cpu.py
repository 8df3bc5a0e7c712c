"""Copies of an engine whose "GPU" is the host itself: memory to memory, as slow as a link if one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Condition, Event
from time import monotonic
from typing import NamedTuple

import torch

from ...traces.errors import EngineError
from .block_views import row_bytes
from .copy_thread import Lane, first_line
from .host_memory import HostMemory, check
from .jobs import CopyJob, Ended
from .stretches import stretches


class _Submitted(NamedTuple):
    job: CopyJob
    at_s: float


class _Link:
    """One direction of a link: copies occupy it one after another."""

    def __init__(self, block_s: float) -> None:
        self._block_s = block_s
        self._free_s = 0.0

    def span_s(self, submitted_s: float, copied_s: float, blocks: int) -> tuple[float, float]:
        """When a copy begins and ends whose bytes are there at `copied_s` already."""
        begin_s = max(submitted_s, self._free_s)
        self._free_s = max(copied_s, begin_s + blocks * self._block_s)
        return begin_s, self._free_s


class CpuCopier:
    """A `Copier` with a thread for each direction. torch gives up the interpreter's lock while it copies."""

    def __init__(self, blocks: Sequence[torch.Tensor], host_slots: int, link_gbps: float | None) -> None:
        self._blocks = blocks
        self._host = HostMemory(blocks, host_slots)
        block_s = 0.0 if link_gbps is None else row_bytes(blocks) / (link_gbps * 1e9)
        self._changed = Condition()  # guards the next two
        self._finished: list[Ended] = []
        self._failure: str | None = None
        self._closing = Event()
        self._lanes = {to_host: self._lane(_Link(block_s)) for to_host in (True, False)}

    def submit(self, jobs: Iterable[CopyJob]) -> None:
        now_s = monotonic()
        for job in jobs:
            check(job, len(self._blocks[0]), self._host.slots)
            self._lanes[job.to_host].put(_Submitted(job, now_s))

    def finished(self) -> list[Ended]:
        with self._changed:
            if self._failure is not None:
                raise EngineError(self._failure)
            finished, self._finished = self._finished, []
            return finished

    def wait(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure is not None, timeout_s)

    def close(self) -> None:
        self._closing.set()
        for lane in self._lanes.values():
            lane.close()

    def _lane(self, link: _Link) -> Lane[_Submitted]:
        return Lane("tokencake-copies", lambda submitted: self._carry_out(submitted, link), self._fail)

    def _carry_out(self, submitted: _Submitted, link: _Link) -> None:
        job = submitted.job
        self._copy(job)
        begin_s, end_s = link.span_s(submitted.at_s, monotonic(), len(job.gpu_blocks))
        while (left_s := end_s - monotonic()) > 0:
            if self._closing.wait(left_s):
                return
        with self._changed:
            self._finished.append(Ended(job.id, end_s - begin_s))
            self._changed.notify_all()

    def _copy(self, job: CopyJob) -> None:
        pieces = [piece.tolist() for piece in stretches(job.gpu_blocks, job.host_slots)]
        for blocks, slots in zip(self._blocks, self._host.views, strict=True):
            for block, slot, count in zip(*pieces, strict=True):
                there, here = blocks.narrow(0, block, count), slots.narrow(0, slot, count)
                if job.to_host:
                    here.copy_(there)
                else:
                    there.copy_(here)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = f"a copy of KV blocks failed: {first_line(error)}"
            self._changed.notify_all()
