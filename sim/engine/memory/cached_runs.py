"""What is cached on one side, under its content: the runs of each node of the context tree.

A node's `runs` are found by look-ups: disjoint, by position. Some nodes have `later_copies` of the same blocks, the
oldest first: calls that computed the same content beside each other have one each. No look-up finds them.

    block           0    1    2    3    4    5    6    7
    runs           [ A          ][ B     ]     [ C     ]
    later_copies        [ D               ]
                             [ E ]

When A is evicted, or a part of it, the oldest later copy of each block that went is found instead: `_promote`.

    block           0    1    2    3    4    5    6    7
    runs                [ D     ][ B     ]     [ C     ]        block 0 is cached no more
    later_copies                 [ D'    ]                      D was split in two
                             [ E ]
"""

from __future__ import annotations

from itertools import pairwise

from ....traces.agreement import agree
from .blocks import NO_RUNS, BlockHold, BlockRun, HeldPart, Node, split_off
from .context_tree import ContextTree
from .free_queue import FreeQueue


class CachedRuns:
    """Adds, splits and forgets runs. A node lives while it has any."""

    def __init__(self, tree: ContextTree, side: int, queue: FreeQueue) -> None:
        self._tree = tree
        self._side = side
        self._queue = queue
        self.later_copies: dict[Node, list[BlockRun]] = {}

    def check(self) -> list[BlockRun]:
        """All runs. Raises `CheckError` if they are not where they belong."""
        runs: list[BlockRun] = []
        for node in self._tree.all_nodes():
            found, later = node.runs[self._side], self.later_copies.get(node, [])
            for run in (*found, *later):
                agree("the node of a run", run.node is node, True)
                agree("whether a run has blocks", run.first_block < run.end_block, True)
                agree("whether look-ups find a run", run.is_first_copy, any(run is other for other in found))
            for one, other in pairwise(found):
                agree("whether runs are disjoint, by position", one.end_block <= other.first_block, True)
                agree("whether neighbours with the same counts are one run", _are_alike(one, other), False)
            cached = {block for run in found for block in range(run.first_block, run.end_block)}
            copied = {block for run in later for block in range(run.first_block, run.end_block)}
            agree("later copies without a first one", set(), copied - cached)
            runs += (*found, *later)
        return runs

    def runs_of(self, part: HeldPart) -> list[BlockRun]:
        """The runs of what somebody holds, by position."""
        if part.later_copy is not None:
            return split_off(part.later_copy, part.end_block)
        return self.found(part.node, part.first_block, part.end_block)

    def found(self, node: Node, first: int, end: int) -> list[BlockRun]:
        """The runs in which look-ups find the blocks `first` … `end − 1`, all of them cached; split at both ends."""
        runs = node.runs[self._side]
        i = 0
        run = runs[0]
        if run.first_block == first and run.end_block == end:  # as a rule
            return [run]
        while runs[i].end_block <= first:
            i += 1
        if runs[i].first_block < first:
            self.split(runs[i], first)
            i += 1
        upto = i
        while runs[upto].end_block < end:
            upto += 1
        if runs[upto].end_block > end:
            self.split(runs[upto], end)
        return runs[i : upto + 1]

    def join(self, part: HeldPart) -> None:
        """Make one run of neighbours that have come to have the same counts: those of a part, and beside it."""
        if part.later_copy is None and len(part.node.runs[self._side]) > 1:
            self._join(part.node, part.first_block, part.end_block)

    def _join(self, node: Node, first: int, end: int) -> None:
        runs = node.runs[self._side]
        i = 0
        while i < len(runs) and runs[i].end_block < first:
            i += 1
        while i + 1 < len(runs) and runs[i].first_block <= end:
            run, following = runs[i], runs[i + 1]
            if _are_alike(run, following):
                run.end_block = following.end_block
                del runs[i + 1]
                node.ref_cnt -= 1  # the run that has its blocks now still needs it
            else:
                i += 1

    def split(self, run: BlockRun, block: int) -> BlockRun:
        """Split a run before `block`; the second part is new, and whoever holds the first holds both."""
        rest = BlockRun(run.node, block, run.end_block, run.ref_cnt, run.is_first_copy, self._side)
        rest.keepers, rest.stalled_keepers, rest.is_named = run.keepers, run.stalled_keepers, run.is_named
        run.end_block = block
        if run.ref_cnt:
            rest.next_part = run.next_part
            run.next_part = rest if run.is_named else None
        else:
            rest.owner = run.owner
            assert run.prev_free is not None
            self._queue.link(rest, run.prev_free)  # the last block is handed out first
        run.node.ref_cnt += 1
        runs = run.node.runs[self._side] if run.is_first_copy else self.later_copies[run.node]
        runs.insert(runs.index(run) + 1, rest)
        return rest

    def add(self, hold: BlockHold, node: Node, first: int, end: int) -> None:
        """A holder's blocks `first` … `end − 1`, all of one node, are full: look-ups find them from now on."""
        node.changes += 1
        runs = self._growing(node)
        i = len(runs)
        while i and runs[i - 1].first_block >= first:
            i -= 1
        overlap = (i and runs[i - 1].end_block > first) or (i < len(runs) and runs[i].first_block < end)
        if overlap:
            self._add_later_copies(hold, node, first, end)
            return
        _hold_found(hold, node, first, end)
        if i and _is_held_alike(runs[i - 1], hold, first):
            runs[i - 1].end_block = end
        else:
            runs.insert(i, self._new(hold, node, first, end, True))
            i += 1
        if i < len(runs):
            self._join(node, first, end)

    def _new(self, hold: BlockHold, node: Node, first: int, end: int, found: bool) -> BlockRun:
        """A run of blocks that were a holder's uncached ones, who alone holds it."""
        run = BlockRun(node, first, end, 1, found, self._side)
        node.ref_cnt += 1
        if hold.keeper is not None:
            run.keepers, run.stalled_keepers = 1, int(hold.keeper.stalled)
        return run

    def _add_later_copies(self, hold: BlockHold, node: Node, first: int, end: int) -> None:
        """Register blocks some of which are known already: those become later copies."""
        runs = node.runs[self._side]
        at = first
        while at < end:
            i = 0
            while i < len(runs) and runs[i].end_block <= at:
                i += 1
            known = i < len(runs) and runs[i].first_block <= at
            upto = end if i == len(runs) else min(end, runs[i].end_block if known else runs[i].first_block)
            run = self._new(hold, node, at, upto, not known)
            if known:
                self.later_copies.setdefault(node, []).append(run)
                hold.parts.append(HeldPart(node, at, upto, run))
            else:
                runs.insert(i, run)
                _hold_found(hold, node, at, upto)
            at = upto
        self._join(node, first, end)

    def forget(self, run: BlockRun, first: int, end: int) -> None:
        """These last blocks of a run are no longer cached; the next copies of them are found instead."""
        node = run.node
        node.changes += 1
        if first == run.first_block:
            self.remove(run)
        else:
            run.end_block = first
        if run.is_first_copy and node in self.later_copies:
            self._promote(node, first, end)
        if first == run.first_block:
            run.end_block = run.first_block
            self._tree.release(node)

    def remove(self, run: BlockRun) -> None:
        """Take a run out of the list that it is in."""
        if run.is_first_copy:
            runs = run.node.runs[self._side]
            runs.remove(run)
            if not runs:
                self._set(run.node, NO_RUNS)
        else:
            self._remove_later(run)

    def _growing(self, node: Node) -> list[BlockRun]:
        """The runs of a node, to which one is added."""
        runs = node.runs[self._side]
        if runs is NO_RUNS:
            runs = []
            self._set(node, runs)
        return runs

    def _set(self, node: Node, runs: list[BlockRun]) -> None:
        sides = node.runs
        node.runs = (*sides[: self._side], runs, *sides[self._side + 1 :])

    def _remove_later(self, run: BlockRun) -> None:
        copies = self.later_copies[run.node]
        copies.remove(run)
        if not copies:
            del self.later_copies[run.node]

    def _promote(self, node: Node, first: int, end: int) -> None:
        """The oldest later copy of each of these blocks becomes the one that is found."""
        at = first
        copies = self.later_copies[node]
        while at < end:
            upto = end
            oldest = None
            for copy in copies:
                if copy.first_block <= at < copy.end_block:
                    oldest = copy
                    break
                if at < copy.first_block < upto:
                    upto = copy.first_block
            if oldest is None:
                at = upto
                continue
            if oldest.first_block < at:
                oldest = self.split(oldest, at)
            if oldest.end_block > upto:
                self.split(oldest, upto)
            self._remove_later(oldest)
            oldest.is_first_copy = True
            runs = self._growing(node)
            i = 0
            while i < len(runs) and runs[i].first_block < at:
                i += 1
            runs.insert(i, oldest)
            at = oldest.end_block


def _are_alike(run: BlockRun, following: BlockRun) -> bool:
    """Whether two runs that look-ups find can be one: who holds them says only where."""
    return (
        run.end_block == following.first_block
        and run.ref_cnt == following.ref_cnt
        and run.ref_cnt > 0
        and not run.is_named
        and not following.is_named
        and run.keepers == following.keepers
        and run.stalled_keepers == following.stalled_keepers
    )


def _is_held_alike(run: BlockRun, hold: BlockHold, block: int) -> bool:
    """Whether a run ends before a block and has the counts of one that this holder has alone."""
    if run.end_block != block or run.ref_cnt != 1 or run.is_named:
        return False
    keeper = hold.keeper
    return not run.keepers if keeper is None else run.keepers == 1 and run.stalled_keepers == int(keeper.stalled)


def _hold_found(hold: BlockHold, node: Node, first: int, end: int) -> None:
    """A holder has more of what look-ups find."""
    if hold.parts:
        last = hold.parts[-1]
        if last.node is node and last.later_copy is None and last.end_block == first:
            last.end_block = end
            return
    hold.parts.append(HeldPart(node, first, end))
