"""vLLM's block pool plainly: blocks, the queue of the free ones, and what is found of them by content and group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """What a look-up asks for."""

    group: int
    hash: int  # interned BlockHash


@dataclass(eq=False, slots=True)
class Block:
    key: Key | None = None
    users: int = 0


class OracleBlockPool:
    """All blocks, the queue of the free ones, and the look-up of cached ones."""

    def __init__(self, blocks: int) -> None:
        self.free: dict[Block, None] = dict.fromkeys(Block() for _ in range(blocks))  # in the order of reuse
        self._cached: dict[Key, dict[Block, None]] = {}  # copies of the same content, first inserted first
        self.evicted = 0

    def cached(self, key: Key) -> Block | None:
        """The copy that a look-up finds."""
        return next(iter(self._cached.get(key, ())), None)

    def cache(self, block: Block, key: Key) -> None:
        block.key = key
        self._cached.setdefault(key, {})[block] = None

    def use(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.free.pop(block, None)
            block.users += 1

    def take(self, count: int) -> list[Block]:
        """Free blocks from the front of the queue. Only now do they lose what was cached in them."""
        taken = [block for block, _ in zip(self.free, range(count), strict=False)]
        for block in taken:
            if block.key is not None:
                self._forget(block, block.key)
        self.use(taken)
        return taken

    def release(self, blocks: Iterable[Block]) -> None:
        """The first one is to be reused first; blocks that cannot be hit go to the front of the queue, the others to
        its end."""
        front: dict[Block, None] = {}
        for block in blocks:
            block.users -= 1
            if not block.users:
                (front if block.key is None else self.free)[block] = None
        if front:
            self.free = front | self.free

    def _forget(self, block: Block, key: Key) -> None:
        self.evicted += 1
        block.key = None
        copies = self._cached[key]
        del copies[block]
        if not copies:
            del self._cached[key]
