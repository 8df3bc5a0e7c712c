"""A KV pool block by block, as vLLM's `PlainBlockPool` does it: what the pool on runs is held to.

Same interface as `sim.engine.memory.block_pool.BlockPool`; every block is an object here, every queue a list of blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

from tokencake.sim.engine.memory.blocks import Node, Owner
from tokencake.sim.engine.memory.context_tree import ContextTree, Path

Key = tuple[Node, int]


class Block:
    def __init__(self) -> None:
        self.key: Key | None = None
        self.ref_cnt = 0
        self.owner: Owner | None = None
        self.keepers: list[Owner] = []


class PlainBlockHold:
    """Registered blocks from `start` on, then `uncached_blocks` others, which come from the pool's nameless ones."""

    def __init__(self, pool: PlainBlockPool, start: int) -> None:
        self._pool = pool
        self.start_block = start
        self.full: list[Block] = []
        self.others: list[Block] = []
        self.keeper: Owner | None = None

    @property
    def cached_end_block(self) -> int:
        return self.start_block + len(self.full)

    @property
    def num_blocks(self) -> int:
        return len(self.full) + len(self.others)

    @property
    def uncached_blocks(self) -> int:
        return len(self.others)

    @uncached_blocks.setter
    def uncached_blocks(self, blocks: int) -> None:
        while len(self.others) < blocks:
            self.others.append(self._pool.nameless.pop())
        while len(self.others) > blocks:
            self._pool.nameless.append(self.others.pop())


class PlainBlockPool:
    def __init__(self, tree: ContextTree, blocks: int, side: int = 0) -> None:
        self._tree = tree
        self.num_blocks = blocks
        self.num_evicted_blocks = 0
        self.version = 0
        self.nameless: list[Block] = []  # handed out, not yet booked by a holder
        self._queue: OrderedDict[int, Block] = OrderedDict(
            (id(block), block) for block in [Block() for _ in range(blocks)]
        )
        self._known: dict[Key, list[Block]] = {}  # copies of a block, first registered first
        self._stalled: list[Owner] = []
        self._kept: dict[int, Block] = {}

    @property
    def kept_blocks(self) -> int:
        return len(self._kept)

    @property
    def kept_stalled_blocks(self) -> int:
        return sum(any(owner.stalled for owner in block.keepers) for block in self._kept.values())

    @property
    def num_free_blocks(self) -> int:
        return len(self._queue)

    @property
    def queue(self) -> list[Block]:
        """The free blocks, the next one to be handed out first."""
        return list(self._queue.values())

    @property
    def stalled_idle_blocks(self) -> int:
        return sum(owner.idle_blocks for owner in self._stalled)

    @property
    def in_use(self) -> bool:
        return self.num_free_blocks < self.num_blocks or bool(self._known)

    def cached_prefix(self, path: Path, limit: int, start: int = 0) -> tuple[int, int]:
        at = start
        idle = 0
        for key in _keys(path, start, limit):
            if key not in self._known:
                break
            idle += not self._known[key][0].ref_cnt
            at += 1
        return at, idle

    def uncached_spans(self, path: Path, first: int, end: int) -> list[tuple[int, int]]:
        gaps = [first + i for i, key in enumerate(_keys(path, first, end)) if key not in self._known]
        starts = [at for at in gaps if at - 1 not in gaps]
        return [(at, next(end for end in range(at, end + 1) if end not in gaps)) for at in starts]

    def held_prefix(self, path: Path, limit: int) -> int:
        end, idle = self.cached_prefix(path, limit)
        return end - idle

    def touch(self, path: Path, end: int, start: int = 0) -> PlainBlockHold:
        self.version += 1
        hold = PlainBlockHold(self, start)
        for key in _keys(path, start, end):
            key[0].changes += 1
            block = self._known[key][0]
            if not block.ref_cnt:
                self._unqueue(block)
            block.ref_cnt += 1
            hold.full.append(block)
        assert hold.cached_end_block == end
        return hold

    def touched(self, path: Path, end: int) -> PlainBlockHold:
        hold = PlainBlockHold(self, 0)
        hold.full = [self._known[key][0] for key in _keys(path, 0, end)]
        return hold

    def allocate(self, hold: PlainBlockHold, blocks: int) -> None:
        self.get_new_blocks(blocks)
        hold.uncached_blocks += blocks

    def get_new_blocks(self, blocks: int) -> None:
        for _ in range(blocks):
            block = next(iter(self._queue.values()))
            self._unqueue(block)
            if block.key is not None:
                self.num_evicted_blocks += 1
                self._forget(block)
            block.ref_cnt = 1
            self.nameless.append(block)

    def spares_stalled(self, blocks: int) -> bool:
        del blocks
        return False

    def cache(self, hold: PlainBlockHold, path: Path, end: int) -> None:
        self.version += 1
        for key in _keys(path, hold.cached_end_block, end):
            key[0].changes += 1
            block = hold.others.pop()
            block.key = key
            key[0].ref_cnt += 1
            self._known.setdefault(key, []).append(block)
            hold.full.append(block)

    def keep(self, hold: PlainBlockHold, owner: Owner) -> None:
        hold.keeper = owner
        for block in (*hold.full, *hold.others):
            block.keepers.append(owner)
            self._kept[id(block)] = block

    def free(self, hold: PlainBlockHold, owner: Owner | None) -> None:
        self.version += 1
        if hold.keeper is not None:
            for block in (*hold.full, *hold.others):
                block.keepers.remove(hold.keeper)
                if not block.keepers:
                    del self._kept[id(block)]
            hold.keeper = None
        for block in hold.others:
            block.ref_cnt = 0
            self._queue[id(block)] = block
            self._queue.move_to_end(id(block), last=False)
        for block in reversed(hold.full):
            block.ref_cnt -= 1
            if not block.ref_cnt:
                assert block.key is not None
                block.key[0].changes += 1
                self._queue[id(block)] = block
                block.owner = owner
                if owner is not None:
                    owner.idle_blocks += 1
        hold.full, hold.others = [], []

    def discard(self, hold: PlainBlockHold, owner: Owner | None) -> int:
        alone = [block for block in hold.full if block.ref_cnt == 1]
        for block in alone:
            self._forget(block)
            hold.full.remove(block)
            hold.others.append(block)
        self.free(hold, owner)
        return len(alone)

    def evict_first(self, path: Path, end: int, moved: set[Block]) -> None:
        nameless = list(takewhile(lambda block: block.key is None, self._queue.values()))
        for key in _keys(path, 0, end):
            copies = self._known.get(key)
            if copies and not copies[0].ref_cnt and copies[0] not in moved:
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
        block.key[0].changes += 1
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
