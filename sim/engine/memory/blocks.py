"""Nodes of the tree of contexts, the runs of blocks that lie in them, who holds these, and whose cache they are."""

from __future__ import annotations

from typing import Final

from ....traces.apps import Segment

Span = tuple[int, int]  # blocks of a context: the first one, and the end


class Node:
    """Tokens at the positions `start` … `end − 1` of every context that goes through it."""

    __slots__ = (
        "changes",
        "children",
        "end_token",
        "is_stub",
        "parent",
        "ref_cnt",
        "runs",
        "segment_end_tokens",
        "segments",
        "start_token",
    )

    def __init__(self, parent: Node | None, start: int, runs: tuple[list[BlockRun], ...]) -> None:
        self.parent = parent
        self.start_token = start
        self.end_token = start
        self.segments: list[Segment] = []
        self.segment_end_tokens: list[int] = []  # the position behind each segment
        # by position, source and offset of their first token; most nodes have none
        self.children: dict[tuple[int, str, int], Node] | None = None
        self.is_stub = False  # nothing is known to continue it
        self.ref_cnt = 0  # contexts, children and runs that need it: at none it goes
        self.changes = 0  # rises with all that changes what a look-up finds in it, on either side
        # By side: the runs that look-ups find, disjoint and by position. `CachedRuns` changes them. Those of the first
        # KV cache group on the GPU and on the host come first, then those of the second one.
        self.runs = runs


class Owner:
    """Whose cache a free block is: the one who released it last."""

    __slots__ = ("idle_blocks", "kept_holds", "name", "stalled")

    def __init__(self, name: str) -> None:
        self.name = name
        self.idle_blocks = 0  # cached and free
        self.kept_holds: tuple[BlockHold, ...] = ()  # what is held for it although no call of its runs
        self.stalled = False


class BlockRun:
    """Blocks `first` … `end − 1` of a node's contexts: one copy of each, all with as many holders."""

    __slots__ = (
        "end_block", "first_block", "is_first_copy", "is_named", "keepers", "next_free", "next_part", "node", "owner",
        "prev_free", "ref_cnt", "side", "stalled_keepers",
    )  # fmt: skip

    def __init__(self, node: Node, first: int, end: int, refs: int, found: bool, side: int) -> None:
        self.node = node
        self.side = side
        self.first_block = first
        self.end_block = end
        self.ref_cnt = refs
        self.keepers = 0  # of the holders, those that keep it for an owner (see `BlockPool.keep`)
        self.stalled_keepers = 0  # of these, those that keep it for a stalled one
        self.is_first_copy = found  # by look-ups; otherwise an earlier copy is
        self.is_named = not found  # a holder names this very run, so it stays apart (see `HeldPart`)
        self.next_part: BlockRun | None = None  # what a holder that names the run held before it was split
        self.prev_free: BlockRun | None = None  # neighbours in the free queue
        self.next_free: BlockRun | None = None
        self.owner: Owner | None = None  # while it is free


NO_RUNS: Final[list[BlockRun]] = []  # shared by all nodes that have none on a side


class HeldPart:
    """Blocks `first` … `end − 1` of a node that somebody holds: those that look-ups find there, or a later copy.

    Who holds what look-ups find says only where: nothing takes it away while it is held, and its runs may be split and
    joined as its holders come and go. A later copy may be found one day; so its holder names its first run.
    """

    __slots__ = ("end_block", "first_block", "later_copy", "node")

    def __init__(self, node: Node, first: int, end: int, later_copy: BlockRun | None = None) -> None:
        self.node = node
        self.first_block = first
        self.end_block = end
        self.later_copy = later_copy


class BlockHold:
    """Blocks that somebody holds, from the first block of a context on: cached ones, then others."""

    __slots__ = ("cached_end_block", "keeper", "parts", "start_block", "uncached_blocks")

    def __init__(self, start: int) -> None:
        self.keeper: Owner | None = None  # for whom it is kept, if no running call holds it
        self.start_block = start  # the first block; 0 but for copies of a part
        self.parts: list[HeldPart] = []  # by position
        self.cached_end_block = start  # end of the cached part
        self.uncached_blocks = 0  # blocks behind it that are not cached

    @property
    def num_blocks(self) -> int:
        return self.cached_end_block - self.start_block + self.uncached_blocks


def split_off(run: BlockRun, end: int) -> list[BlockRun]:
    """A run and what was split off it up to block `end`, by position."""
    chain = [run]
    while run.end_block != end:
        rest = run.next_part
        assert rest is not None
        chain.append(rest)
        run = rest
    return chain
