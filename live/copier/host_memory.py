"""The host's room for blocks: as many slots as there is memory for, laid out as the blocks are on the GPU.

A large room takes a while: its pages are taken by several threads, a piece at a time, and whoever waits is told how far
it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TextIO

import torch

from ...traces.arithmetic import div_ceil
from ...traces.errors import EngineError
from .block_views import row_bytes
from .jobs import CopyJob

PAGE_BYTES = 4096
PIECE_BYTES = 64 << 20  # taken by one thread at a time: some hundredths of a second
MOST_THREADS = 16
LIMIT_S = 180.0  # for all of it: then something is wrong, or so much memory should not be asked for
TOLD_S = 2.0  # between two lines of progress
TOLD_BYTES = 2 << 30  # of less memory nothing is told

Register = Callable[[torch.Tensor], None]

_told: ContextVar[TextIO | None] = ContextVar("stderr", default=None)


@contextmanager
def telling(stream: TextIO) -> Iterator[None]:
    """Progress goes there meanwhile, and not to stderr."""
    token = _told.set(stream)
    try:
        yield
    finally:
        _told.reset(token)


class HostMemory:
    """One allocation, and in it for each view of the GPU's blocks one of the slots.

    The slots of one view lie back to back: a stretch of blocks is one copy a view, and both sides have equal strides.
    Each view begins on a page of its own, so that it can be pinned by itself. Raises `EngineError` if there is no
    memory, or if it takes longer than `limit_s` to get it.
    """

    def __init__(self, blocks: Sequence[torch.Tensor], slots: int, *, limit_s: float = LIMIT_S) -> None:
        self.slots = slots
        self.bytes = slots * row_bytes(blocks)
        self._until_s = monotonic() + limit_s
        self._limit_s = limit_s
        self._pinned: list[torch.Tensor] = []
        self._unregister: Register = lambda _: None
        lengths = [slots * view.shape[1] for view in blocks]
        padded = [div_ceil(length, PAGE_BYTES) * PAGE_BYTES for length in lengths]
        try:
            allocation = torch.empty(sum(padded) + PAGE_BYTES, dtype=torch.uint8)
        except RuntimeError:
            raise EngineError(
                f"there is no memory for a host pool of {self.bytes / 2**30:.1f} GiB: ask for less host_gib"
            ) from None
        begin = -allocation.data_ptr() % PAGE_BYTES
        parts = allocation[begin : begin + sum(padded)].split(padded)
        self._stretches = [part[:length] for part, length in zip(parts, lengths, strict=True)]
        self.views = [stretch.view(slots, view.shape[1]) for stretch, view in zip(self._stretches, blocks, strict=True)]
        self._take()

    def pin(self, register: Register, unregister: Register) -> None:
        """Have each view registered with the driver. Of what failed, nothing stays registered."""
        self._unregister = unregister
        progress = _Progress("pinned", self.bytes)
        try:
            for stretch in self._stretches if self.bytes else ():
                self._check_time("pinned", progress.done)
                register(stretch)
                self._pinned.append(stretch)
                progress.add(stretch.nbytes)
        except BaseException:
            self.unpin()
            raise

    def unpin(self) -> None:
        while self._pinned:
            self._unregister(self._pinned.pop())

    def _take(self) -> None:
        """Use every page once: no copy pays for that later, nor does the driver, which would use a single thread."""
        pieces = [piece for stretch in self._stretches if stretch.nbytes for piece in stretch.split(PIECE_BYTES)]
        progress = _Progress("taken", self.bytes)
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
            for piece, taken in zip(pieces, threads.map(self._take_piece, pieces), strict=True):
                if not taken:
                    self._check_time("taken", progress.done)
                progress.add(piece.nbytes)

    def _take_piece(self, piece: torch.Tensor) -> bool:
        """False if the time is over."""
        if monotonic() > self._until_s:
            return False
        piece.zero_()
        return True

    def _check_time(self, what: str, done: int) -> None:
        if monotonic() > self._until_s:
            came = f"{done / 2**30:.1f} of {self.bytes / 2**30:.1f} GiB were {what}"
            raise EngineError(f"host pool: {came} after {self._limit_s:.0f} s: ask for less host_gib")


class _Progress:
    """Says how far it is, if it takes a while."""

    def __init__(self, what: str, whole_bytes: int) -> None:
        self.done = 0
        self._what = what
        self._whole = whole_bytes
        self._begin_s = self._said_s = monotonic()

    def add(self, done_bytes: int) -> None:
        self.done += done_bytes
        now_s = monotonic()
        if now_s < self._said_s + TOLD_S or self._whole < TOLD_BYTES:
            return
        self._said_s = now_s
        took_s = now_s - self._begin_s
        line = f"host pool: {self.done / 2**30:.1f} of {self._whole / 2**30:.1f} GiB {self._what}, {took_s:.0f} s"
        print(line, file=_told.get() or sys.stderr, flush=True)


def check(job: CopyJob, blocks: int, slots: int) -> None:
    """A copy to a place that does not exist would be one to somebody else's memory."""
    assert len(job.gpu_blocks) == len(job.host_slots), job
    assert all(0 <= block < blocks for block in job.gpu_blocks), job
    assert all(0 <= slot < slots for slot in job.host_slots), job
