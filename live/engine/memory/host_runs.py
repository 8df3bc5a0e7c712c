"""Runs of the host's blocks: what is done to a run costs the same however long it is."""

from __future__ import annotations

from collections.abc import Sequence

from ..vllm_surface import Hash


class HostRun:
    """Blocks of a context from `first_block` on, in one slot each, with the same holders.

    Free runs, which nobody holds, form a queue. A hash says all that is before its block, too: two contexts that have
    the same block somewhere have the same ones up to there.
    """

    __slots__ = ("end_block", "first_block", "hashes", "next_free", "next_part", "prev_free", "readers", "ref_cnt",
                 "slots")  # fmt: skip

    def __init__(self, first_block: int, hashes: list[Hash], slots: list[int], ref_cnt: int, readers: int) -> None:
        self.first_block = first_block
        self.end_block = first_block + len(slots)
        self.hashes = hashes
        self.slots = slots
        self.ref_cnt = ref_cnt
        self.readers = readers  # of the holders, those that copy from it
        self.next_part: HostRun | None = None  # what a holder of the run before it was split holds, too
        self.prev_free: HostRun | None = None  # neighbours in the free queue
        self.next_free: HostRun | None = None

    def common_end(self, hashes: Sequence[Hash], at: int, upto: int) -> int:
        """How far a context of which the run has block `at` is the run's, at most to `upto`."""
        mine, first = self.hashes, self.first_block
        end = self.end_block if self.end_block < upto else upto
        if mine[end - 1 - first] == hashes[end - 1]:
            return end
        while end - at > 1:  # it has block `at`, and not block `end - 1`
            middle = (at + end) // 2
            if mine[middle - first] == hashes[middle]:
                at = middle
            else:
                end = middle
        return end

    def split(self, at: int) -> HostRun:
        """Cut the blocks from `at` on off, and return them."""
        kept = at - self.first_block
        part = HostRun(at, self.hashes[kept:], self.slots[kept:], self.ref_cnt, self.readers)
        del self.hashes[kept:], self.slots[kept:]
        self.end_block = at
        part.next_part, self.next_part = self.next_part, part
        return part


class HostHold:
    """Blocks of a context that somebody holds on the host, one after another."""

    __slots__ = ("end_block", "first_block", "reads", "runs")

    def __init__(self, first_block: int, end_block: int, reads: bool) -> None:
        self.first_block = first_block
        self.end_block = end_block
        self.reads = reads  # whether they are copied from
        self.runs: list[tuple[HostRun, int]] = []  # (first run, end block): with what was split off it up to there

    def __len__(self) -> int:
        """How many blocks."""
        return self.end_block - self.first_block

    def parts(self) -> list[HostRun]:
        """The runs as they are now."""
        parts = []
        for first, end in self.runs:
            run = first
            parts.append(run)
            while run.end_block != end:
                rest = run.next_part
                assert rest is not None
                parts.append(rest)
                run = rest
        return parts

    @property
    def slots(self) -> list[int]:
        return [slot for run in self.parts() for slot in run.slots]


class FreeRuns:
    """The runs that nobody holds, in the order in which they are given up: a ring, behind a head without blocks."""

    def __init__(self) -> None:
        self._head = HostRun(0, [], [], 0, 0)
        self._head.prev_free = self._head.next_free = self._head

    @property
    def first(self) -> HostRun:
        """The run that goes first, its last block before the others. There must be one."""
        run = self._head.next_free
        assert run is not None
        assert run is not self._head
        return run

    def append(self, run: HostRun) -> None:
        """It goes after all others."""
        self.put_before(run, self._head)

    def put_before(self, run: HostRun, behind: HostRun) -> None:
        """It goes right before another one."""
        before = behind.prev_free
        assert before is not None
        run.prev_free, run.next_free = before, behind
        before.next_free = behind.prev_free = run

    def remove(self, run: HostRun) -> None:
        before, behind = run.prev_free, run.next_free
        assert before is not None
        assert behind is not None
        before.next_free, behind.prev_free = behind, before
        run.prev_free = run.next_free = None
