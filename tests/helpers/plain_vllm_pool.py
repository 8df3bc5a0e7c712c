"""vLLM's block pool in as few lines as say what it does: for tests of our half of an engine without vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tokencake.live.engine.vllm_surface import Hash


@dataclass(eq=False)
class PlainBlock:
    block_id: int
    ref_cnt: int = 0
    block_hash: Hash | None = None
    next_free_block: Any = None


class PlainFreeQueue:
    """Free blocks as a list; the links are what our half walks along."""

    def __init__(self, blocks: list[PlainBlock]) -> None:
        self.fake_free_list_head: Any = PlainBlock(-1)
        self.fake_free_list_tail: Any = PlainBlock(-2)
        self.blocks = blocks
        self._link()

    def remove(self, block: Any) -> None:
        self.blocks.remove(block)
        self._link()

    def popleft_n(self, n: int) -> list[Any]:
        first, self.blocks = self.blocks[:n], self.blocks[n:]
        self._link()
        return first

    def prepend_n(self, blocks: list[Any]) -> None:
        self.blocks = [*blocks, *self.blocks]
        self._link()

    def append_n(self, blocks: list[Any]) -> None:
        self.blocks = [*self.blocks, *blocks]
        self._link()

    def _link(self) -> None:
        line = [self.fake_free_list_head, *self.blocks, self.fake_free_list_tail]
        for block, behind in pairwise(line):
            block.next_free_block = behind


@dataclass
class PlainVllmPool:
    """`num_gpu_blocks` with the null block. The first block that got a content is the one that is found."""

    num_gpu_blocks: int
    enable_kv_cache_events: bool = False
    by_hash: dict[Hash, list[PlainBlock]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = [PlainBlock(number) for number in range(self.num_gpu_blocks)]
        self.free_block_queue: Any = PlainFreeQueue(self.blocks[1:])

    def get_num_free_blocks(self) -> int:
        return len(self.free_block_queue.blocks)

    def get_cached_block(self, block_hash: Hash, kv_cache_group_ids: list[int], /) -> list[Any] | None:
        assert kv_cache_group_ids == [0]
        blocks = self.by_hash.get(block_hash)
        return blocks[:1] if blocks else None

    def touch(self, blocks: Sequence[Any]) -> None:
        for block in blocks:
            if not block.ref_cnt:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1

    def get_new_blocks(self, num_blocks: int) -> list[Any]:
        assert num_blocks <= self.get_num_free_blocks()
        taken: list[Any] = self.free_block_queue.popleft_n(num_blocks)
        self.evict_blocks({block.block_id for block in taken})
        for block in taken:
            block.ref_cnt = 1
        return taken

    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None:
        freed = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if not block.ref_cnt:
                freed.append(block)
        self.free_block_queue.prepend_n([block for block in freed if block.block_hash is None])
        self.free_block_queue.append_n([block for block in freed if block.block_hash is not None])

    def evict_blocks(self, block_ids: set[int]) -> None:
        for block_id in block_ids:
            block = self.blocks[block_id]
            if block.block_hash is not None:
                self.by_hash[block.block_hash].remove(block)
                block.block_hash = None

    def cache_full_blocks(
        self, request: Any, blocks: list[Any], first: int, end: int, block_size: int, group: int, /
    ) -> None:
        for block, content in zip(blocks[first:end], request.block_hashes[first:end], strict=True):
            assert block.block_hash is None
            block.block_hash = content
            self.by_hash.setdefault(content, []).append(block)
