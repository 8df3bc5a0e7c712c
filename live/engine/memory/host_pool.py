"""The host's copies of blocks: which slot holds which content, who holds it, and which goes next.

The twin of vLLM's own block pool: a slot that nobody holds stays readable until its room is needed, and the one that
was released first goes first. It knows slots by number and contents by hash; the bytes lie with the workers. A context
is looked up, held and released by runs (`host_runs`), not block by block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ....policies.execution.copy_rules import BlockSpan
from ..vllm_surface import Hash
from .host_runs import FreeRuns, HostHold, HostRun


class HostPool:
    """`slots` places of one block each. Contents are blocks `first` … `end - 1` of a context, given by its hashes."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.free = slots  # slots that nobody holds, readable or not
        self._slot_of: dict[Hash, int] = {}
        self._run_of: list[HostRun | None] = [None] * slots  # by slot
        self._blank = deque(range(slots))  # free slots without a content, first to be taken first
        self._free_runs = FreeRuns()  # taken when no blank slot is left

    def _run(self, content: Hash) -> HostRun | None:
        slot = self._slot_of.get(content)
        return None if slot is None else self._run_of[slot]

    # -- questions

    def has(self, content: Hash) -> bool:
        return content in self._slot_of

    def is_idle(self, content: Hash) -> bool:
        """Whether it is here, and nobody holds it: to hold it takes a free slot."""
        run = self._run(content)
        return run is not None and not run.ref_cnt

    def end(self, hashes: Sequence[Hash], first: int, upto: int) -> int:
        """How far the blocks from `first` on are here without a gap, at most to `upto`."""
        at = first
        while at < upto:
            run = self._run(hashes[at])
            if run is None:
                break
            at = run.common_end(hashes, at, upto)
        return at

    def stretches(self, hashes: Sequence[Hash], first: int, upto: int) -> list[BlockSpan]:
        """Which of the blocks from `first` to `upto` are here."""
        spans: list[BlockSpan] = []
        at = first
        while at < upto:
            end = self.end(hashes, at, upto)
            if end > at:
                spans.append(BlockSpan(at, end))
                at = end
            else:
                at += 1
        return spans

    def is_read(self, hashes: Sequence[Hash], first: int, end: int) -> bool:
        """Whether one of these blocks is copied from now."""
        at = first
        while at < end:
            run = self._run(hashes[at])
            if run is None:
                at += 1
            elif run.readers:
                return True
            else:
                at = run.common_end(hashes, at, end)
        return False

    # -- holders

    def hold(self, hashes: Sequence[Hash], first: int, end: int, *, to_read: bool = False) -> HostHold:
        """Keep these blocks, all of which must be here, until they are released. `to_read`: they are copied from."""
        hold = HostHold(first, end, to_read)
        at = first
        while at < end:
            run = self._run(hashes[at])
            assert run is not None, "only what is here can be held"
            if run.first_block < at:
                run = self._split(run, at)
            at = run.common_end(hashes, at, end)
            if run.end_block > at:
                self._split(run, at)
            if not run.ref_cnt:
                self._free_runs.remove(run)
                self.free -= len(run.slots)
            run.ref_cnt += 1
            run.readers += to_read
            hold.runs.append((run, at))
        return hold

    def hold_together(
        self, parts: Sequence[tuple[Sequence[Hash], BlockSpan]], end: int, *, to_read: bool = False
    ) -> HostHold:
        """Keep blocks of several kinds of one context, up to block `end`, each kind by its own names, as one hold."""
        together = HostHold(0, end, to_read)
        for names, span in parts:
            together.runs += self.hold(names, *span, to_read=to_read).runs
        return together

    def release(self, hold: HostHold) -> None:
        """Give blocks up: the last one's room is taken first."""
        for run in reversed(hold.parts()):
            run.ref_cnt -= 1
            run.readers -= hold.reads
            if not run.ref_cnt:
                self._free_runs.append(run)
                self.free += len(run.slots)

    def release_all(self, holds: Sequence[HostHold]) -> None:
        """Give several stretches of one context up, by position: the last one's last block is taken first."""
        for hold in reversed(holds):
            self.release(hold)

    def _split(self, run: HostRun, at: int) -> HostRun:
        """Cut the blocks from `at` on off a run, and return them. In the queue they go before the others."""
        part = run.split(at)
        for slot in part.slots:
            self._run_of[slot] = part
        if not run.ref_cnt:
            self._free_runs.put_before(part, run)
        return part

    # -- new contents

    def take(self, count: int) -> list[int]:
        """So many slots for new contents. What they held is forgotten. There must be room."""
        self.free -= count
        taken = [self._blank.popleft() for _ in range(min(count, len(self._blank)))]
        while len(taken) < count:
            run = self._free_runs.first
            for _ in range(min(count - len(taken), len(run.slots))):
                taken.append(run.slots.pop())
                del self._slot_of[run.hashes.pop()]
            run.end_block = run.first_block + len(run.slots)
            if not run.slots:
                self._free_runs.remove(run)
        return taken

    def store(self, slots: Sequence[int], contents: Sequence[Hash], places: Sequence[int]) -> list[HostHold]:
        """Slots that were taken have contents now, blocks of one context, by their places in it. Returns what is held.

        A content that another slot has already stays where it is, and the slot is free again.
        """
        holds: list[HostHold] = []
        spare: list[int] = []
        begin = 0
        for at, content in enumerate(contents):
            known = content in self._slot_of
            if known or (at > begin and places[at] != places[at - 1] + 1):
                self._add(holds, slots[begin:at], contents[begin:at], places[begin])
                begin = at
            if known:
                spare.append(slots[at])
                begin = at + 1
        if begin < len(contents):
            self._add(holds, slots[begin:], contents[begin:], places[begin])
        self._blank.extendleft(reversed(spare))
        self.free += len(spare)
        return holds

    def _add(self, holds: list[HostHold], slots: Sequence[int], contents: Sequence[Hash], first: int) -> None:
        """Keep new contents as one run."""
        if not slots:
            return
        run = HostRun(first, list(contents), list(slots), 1, 0)
        for content, slot in zip(contents, slots, strict=True):
            self._slot_of[content] = slot
            self._run_of[slot] = run
        hold = HostHold(first, run.end_block, False)
        hold.runs.append((run, run.end_block))
        holds.append(hold)
