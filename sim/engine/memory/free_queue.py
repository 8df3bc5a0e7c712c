"""The free queue: cached blocks that nobody holds, in the order in which they are evicted.

A ring of runs with a head that has no block. Behind the head is the run that is evicted first, from its last block on;
in front of it is the one that was freed last. A run can leave from anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from ....traces.agreement import agree
from .blocks import BlockRun, Node, Owner


class FreeQueue:
    """Also counts whose blocks are in it: each owner's `idle_blocks`, and those of stalled owners.

    And what all pools that take their blocks from it have in common.
    """

    def __init__(self, root: Node, blocks: int) -> None:
        self.head = BlockRun(root, -1, -1, 0, False, 0)
        self.num_free_blocks = blocks  # in nobody's use
        self.uncached_blocks = blocks  # of these, without content: they come before all others
        self.num_evicted_blocks = 0  # cached blocks that were handed out again
        self.version = 0  # rises with everything that can let somebody find more, or need less, than before
        self.kept_blocks = 0  # blocks that are kept for owners without a running call, each once
        self.kept_stalled_blocks = 0  # blocks that are kept for stalled owners, each once
        self.head.prev_free = self.head.next_free = self.head
        self.stalled_blocks = 0  # of stalled owners

    def __iter__(self) -> Iterator[BlockRun]:
        """The runs, the one that is evicted first before the others."""
        run = self.head.next_free
        while run is not None and run is not self.head:
            yield run
            run = run.next_free

    def append(self, run: BlockRun, owner: Owner | None) -> bool:
        """A run was freed by its owner. Whether the last run of the queue has taken its blocks over.

        It does if they are those right before its own, and the same owner's.
        """
        if owner is not None:
            blocks = run.end_block - run.first_block
            owner.idle_blocks += blocks
            if owner.stalled:
                self.stalled_blocks += blocks
        head = self.head
        last = head.prev_free
        assert last is not None
        if (
            last.first_block == run.end_block
            and last.node is run.node
            and last.side == run.side
            and last.owner is owner
            and last.is_first_copy
            and run.is_first_copy
        ):
            last.first_block = run.first_block
            return True
        run.owner = owner
        run.prev_free, run.next_free = last, head
        last.next_free = head.prev_free = run
        return False

    def remove(self, run: BlockRun) -> None:
        """Somebody holds the run now, or it was evicted whole."""
        self.unlink(run)
        owner = run.owner
        if owner is not None:
            self.count(owner, run.first_block - run.end_block)
            run.owner = None

    def count(self, owner: Owner, blocks: int) -> None:
        """An owner has so many more idle blocks."""
        owner.idle_blocks += blocks
        if owner.stalled:
            self.stalled_blocks += blocks

    def check(self) -> None:
        """Raises `CheckError` if the counts are not those of the runs."""
        runs = list(self)
        for run in runs:
            assert run.prev_free is not None
            agree("the neighbour in the free queue", run.prev_free.next_free is run, True)
        owners = dict.fromkeys(run.owner for run in runs if run.owner is not None)
        for owner in owners:
            idle = sum(run.end_block - run.first_block for run in runs if run.owner is owner)
            agree(f"idle blocks of {owner.name!r}", owner.idle_blocks, idle)
        stalled = sum(owner.idle_blocks for owner in owners if owner.stalled)
        agree("idle blocks of stalled agents", self.stalled_blocks, stalled)

    def link(self, run: BlockRun, ahead: BlockRun) -> None:
        """Put a run right behind another one, or behind the `head`."""
        behind = ahead.next_free
        assert behind is not None
        run.prev_free = ahead
        run.next_free = behind
        ahead.next_free = run
        behind.prev_free = run

    def unlink(self, run: BlockRun) -> None:
        """Take a run out, to put it elsewhere."""
        ahead, behind = run.prev_free, run.next_free
        assert ahead is not None
        assert behind is not None
        ahead.next_free = behind
        behind.prev_free = ahead
        run.prev_free = run.next_free = None
