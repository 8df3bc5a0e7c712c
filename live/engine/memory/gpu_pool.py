"""vLLM's block pool as the copies see it: contents by hash, blocks that are held, and what can be had.

For models whose layers have one KV cache group of full attention: there a block's hash says all. Others have
`grouped_gpu_pool`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..vllm_surface import Hash, VllmBlock, VllmBlockPool, VllmFreeQueue, VllmRequest
from .page_rules import PageRule, Rules

GROUP = 0
GROUPS = [GROUP]


class Source(NamedTuple):
    """What vLLM asks of a request when it registers blocks. A request itself, where its events need more."""

    block_hashes: Sequence[Hash]


class GpuPool:
    """Blocks are vLLM's `KVCacheBlock`s; a block that has a reference is not handed out."""

    def __init__(self, pool: VllmBlockPool, block_tokens: int, rules: Rules | None = None) -> None:
        self._pool = pool
        self.block_tokens = block_tokens
        self.rules: Rules = rules or (PageRule("full", block_tokens),)  # of the KV cache groups

    @property
    def blocks(self) -> int:
        """Usable ones: vLLM's null block is not counted."""
        return self._pool.num_gpu_blocks - 1

    @property
    def free(self) -> int:
        return self._pool.get_num_free_blocks()

    @property
    def tells_events(self) -> bool:
        """Whether vLLM publishes what is cached: then it reads more of a request than its hashes."""
        return self._pool.enable_kv_cache_events

    def cached(self, content: Hash) -> VllmBlock | None:
        """A block with this content, or None."""
        blocks = self._pool.get_cached_block(content, GROUPS)
        return None if blocks is None else blocks[0]

    def found(self, hashes: Sequence[Hash], first: int, upto: int) -> list[VllmBlock]:
        """The cached blocks from `first` on, without a gap, at most to `upto`."""
        lookup = self._pool.get_cached_block
        blocks = []
        for at in range(first, upto):
            cached = lookup(hashes[at], GROUPS)
            if cached is None:
                break
            blocks.append(cached[0])
        return blocks

    def look_up(self, hashes: Sequence[Hash], upto: int) -> Iterator[VllmBlock | None]:
        """The cached blocks of a context's first ones, as far as there is no gap; None for the first that is not."""
        for at in range(upto):
            block = self.cached(hashes[at])
            yield block
            if block is None:
                return

    def end(self, hashes: Sequence[Hash], first: int, upto: int) -> int:
        """How far the blocks from `first` on are cached without a gap, at most to `upto`."""
        lookup = self._pool.get_cached_block
        at = first
        while at < upto and lookup(hashes[at], GROUPS) is not None:
            at += 1
        return at

    def hold(self, blocks: list[VllmBlock]) -> None:
        """Keep blocks that are cached from being handed out."""
        self._pool.touch(blocks)

    def take(self, count: int) -> list[VllmBlock]:
        """New blocks, held. There must be room."""
        return self._pool.get_new_blocks(count)

    def register(self, source: VllmRequest | Source, blocks: Sequence[VllmBlock], first: int) -> None:
        """These blocks hold the source's contents from block `first` on: they can be hit."""
        end = first + len(blocks)
        padded = [None] * first + list(blocks)
        self._pool.cache_full_blocks(source, padded, first, end, self.block_tokens, GROUP)

    def release(self, blocks: Sequence[VllmBlock]) -> None:
        """Give blocks up, the last one first to be handed out."""
        self._pool.free_blocks(reversed(blocks))

    def drop(self, blocks: Sequence[VllmBlock]) -> None:
        """Give blocks up, and forget what nobody else holds. Forget first: what has no content is handed out first."""
        self._pool.evict_blocks({block.block_id for block in blocks if block.ref_cnt == 1})
        self.release(blocks)

    def expose(self, hashes: Sequence[Hash], upto: int, moved: set[int]) -> None:
        """Let the free ones of these blocks be handed out before all other cached ones, the last first.

        But for those that were `moved` there before, by id, which are added to: whoever keeps a block longest says when
        it goes.
        """
        lookup = self._pool.get_cached_block
        known = [cached[0] for at in range(upto) if (cached := lookup(hashes[at], GROUPS)) is not None]
        self._expose(known, moved)

    def _expose(self, known: Sequence[VllmBlock], moved: set[int]) -> None:
        queue = self._pool.free_block_queue
        idle = [block for block in known if block.ref_cnt == 0 and block.block_id not in moved]
        moved.update(block.block_id for block in idle)
        for block in idle:
            queue.remove(block)
        blank = queue.popleft_n(self._leading_blanks(queue))  # what has no content still goes first
        queue.prepend_n(idle[::-1])
        queue.prepend_n(blank)

    @staticmethod
    def _leading_blanks(queue: VllmFreeQueue) -> int:
        count = 0
        block = queue.fake_free_list_head.next_free_block
        while block is not None and block is not queue.fake_free_list_tail and block.block_hash is None:
            count += 1
            block = block.next_free_block
        return count


def idle(blocks: Sequence[VllmBlock]) -> int:
    """How many of these blocks nobody holds: taking them takes free blocks."""
    return sum(block.ref_cnt == 0 for block in blocks)
