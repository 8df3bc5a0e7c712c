"""A KV pool block by block, as vLLM's `BlockPool` does it: what the pool on runs is held to.

Same interface as `sim.engine.memory.block_pool.KvPool`; every block is an object here, every queue a list of blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

from tokencake.sim.engine.memory.block_pool import Owner
from tokencake.sim.engine.memory.context_tree import ContextTree, Node, Path

Key = tuple[Node, int]


class Block:
    def __init__(self) -> None:
        self.key: Key | None = None
        self.refs = 0
        self.owner: Owner | None = None
        self.keepers: list[Owner] = []


class BlockHold:
    """Registered blocks from `start` on, then `blank` others, which come from the pool's nameless ones."""

    def __init__(self, pool: BlockPool, start: int) -> None:
        self._pool = pool
        self.start = start
        self.full: list[Block] = []
        self.others: list[Block] = []
        self.keeper: Owner | None = None

    @property
    def registered(self) -> int:
        return self.start + len(self.full)

    @property
    def blocks(self) -> int:
        return len(self.full) + len(self.others)

    @property
    def blank(self) -> int:
        return len(self.others)

    @blank.setter
    def blank(self, blocks: int) -> None:
        while len(self.others) < blocks:
            self.others.append(self._pool.nameless.pop())
        while len(self.others) > blocks:
            self._pool.nameless.append(self.others.pop())


class BlockPool:
    def __init__(self, tree: ContextTree, blocks: int, side: int = 0) -> None:
        self._tree = tree
        self.blocks = blocks
        self.evicted = 0
        self.version = 0
        self.nameless: list[Block] = []  # handed out, not yet booked by a holder
        self._queue: OrderedDict[int, Block] = OrderedDict(
            (id(block), block) for block in [Block() for _ in range(blocks)]
        )
        self._known: dict[Key, list[Block]] = {}  # copies of a block, first registered first
        self._stalled: list[Owner] = []
        self._kept: dict[int, Block] = {}

    @property
    def kept(self) -> int:
        return len(self._kept)

    @property
    def kept_stalled(self) -> int:
        return sum(any(owner.stalled for owner in block.keepers) for block in self._kept.values())

    @property
    def free(self) -> int:
        return len(self._queue)

    @property
    def queue(self) -> list[Block]:
        """The free blocks, the next one to be handed out first."""
        return list(self._queue.values())

    @property
    def stalled_idle(self) -> int:
        return sum(owner.idle_blocks for owner in self._stalled)

    @property
    def touched(self) -> bool:
        return self.free < self.blocks or bool(self._known)

    def hits(self, path: Path, limit: int, start: int = 0) -> tuple[int, int]:
        at = start
        idle = 0
        for key in _keys(path, start, limit):
            if key not in self._known:
                break
            idle += not self._known[key][0].refs
            at += 1
        return at, idle

    def missing(self, path: Path, first: int, end: int) -> list[tuple[int, int]]:
        gaps = [first + i for i, key in enumerate(_keys(path, first, end)) if key not in self._known]
        starts = [at for at in gaps if at - 1 not in gaps]
        return [(at, next(end for end in range(at, end + 1) if end not in gaps)) for at in starts]

    def held(self, path: Path, limit: int) -> int:
        end, idle = self.hits(path, limit)
        return end - idle

    def open(self, path: Path, end: int, start: int = 0) -> BlockHold:
        self.version += 1
        hold = BlockHold(self, start)
        for key in _keys(path, start, end):
            block = self._known[key][0]
            if not block.refs:
                self._unqueue(block)
            block.refs += 1
            hold.full.append(block)
        assert hold.registered == end
        return hold

    def take(self, hold: BlockHold, blocks: int) -> None:
        self.allocate(blocks)
        hold.blank += blocks

    def allocate(self, blocks: int) -> None:
        for _ in range(blocks):
            block = next(iter(self._queue.values()))
            self._unqueue(block)
            if block.key is not None:
                self.evicted += 1
                self._forget(block)
            block.refs = 1
            self.nameless.append(block)

    def spares_stalled(self, blocks: int) -> bool:
        del blocks
        return False

    def register(self, hold: BlockHold, path: Path, end: int) -> None:
        self.version += 1
        for key in _keys(path, hold.registered, end):
            block = hold.others.pop()
            block.key = key
            key[0].refs += 1
            self._known.setdefault(key, []).append(block)
            hold.full.append(block)

    def keep(self, hold: BlockHold, owner: Owner) -> None:
        hold.keeper = owner
        for block in (*hold.full, *hold.others):
            block.keepers.append(owner)
            self._kept[id(block)] = block

    def release(self, hold: BlockHold, owner: Owner | None) -> None:
        self.version += 1
        if hold.keeper is not None:
            for block in (*hold.full, *hold.others):
                block.keepers.remove(hold.keeper)
                if not block.keepers:
                    del self._kept[id(block)]
            hold.keeper = None
        for block in hold.others:
            block.refs = 0
            self._queue[id(block)] = block
            self._queue.move_to_end(id(block), last=False)
        for block in reversed(hold.full):
            block.refs -= 1
            if not block.refs:
                self._queue[id(block)] = block
                block.owner = owner
                if owner is not None:
                    owner.idle_blocks += 1
        hold.full, hold.others = [], []

    def drop(self, hold: BlockHold, owner: Owner | None) -> int:
        alone = [block for block in hold.full if block.refs == 1]
        for block in alone:
            self._forget(block)
            hold.full.remove(block)
            hold.others.append(block)
        self.release(hold, owner)
        return len(alone)

    def expose(self, path: Path, end: int, moved: set[Block]) -> None:
        nameless = list(takewhile(lambda block: block.key is None, self._queue.values()))
        for key in _keys(path, 0, end):
            copies = self._known.get(key)
            if copies and not copies[0].refs and copies[0] not in moved:
                moved.add(copies[0])
                self._queue.move_to_end(id(copies[0]), last=False)
        for block in reversed(nameless):
            self._queue.move_to_end(id(block), last=False)  # blocks without content still come first

    def set_stalled(self, owner: Owner, stalled: bool) -> None:
        if owner.stalled != stalled:
            owner.stalled = stalled
            if stalled:
                self._stalled.append(owner)
            else:
                self._stalled.remove(owner)

    def _unqueue(self, block: Block) -> None:
        del self._queue[id(block)]
        if block.owner is not None:
            block.owner.idle_blocks -= 1
            block.owner = None

    def _forget(self, block: Block) -> None:
        assert block.key is not None
        copies = self._known[block.key]
        copies.remove(block)
        if not copies:
            del self._known[block.key]
        self._tree.release(block.key[0])
        block.key = None


def _keys(path: Path, start: int, end: int) -> Iterator[Key]:
    for node, first, upto in path:
        for i in range(max(first, start), min(upto, end)):
            yield node, i
