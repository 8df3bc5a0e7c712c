"""What each kind of KV cache group keeps of a call, as vLLM's `SingleTypeKVCacheManager`s do it, block by block.

All groups have blocks of as many tokens. A call's blocks in a group are a list by position, None where there is none
(vLLM's null block): what fell out of a window, or a state that was never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tokencake.sim.machine.engine_versions import STATES_ARE_MADE_KNOWN_AGAIN
from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import Machine

from .block_pool import Block, Key, OracleBlockPool


@dataclass(eq=False, slots=True)
class Held:
    """A call's blocks in one group."""

    blocks: list[Block | None] = field(default_factory=list)
    cached: int = 0  # of its first blocks, those that are cached or never will be
    last_state: int | None = None  # of a Mamba group: where the state lies that the newest one continues


class Group:
    """Full attention: it needs all blocks, and a hit is all of them from the first one on."""

    def __init__(self, index: int, spec: KvGroup, machine: Machine, pool: OracleBlockPool) -> None:
        self.index = index
        self.spec = spec
        self.pool = pool
        self.size = machine.block_tokens
        self.retention = machine.prefix_cache_retention_interval
        self.most_in_flight_tokens = machine.step_budget_tokens * (2 if machine.asynchronous else 1)
        self.max_context_tokens = machine.max_context_tokens
        self.cached_this_step: set[Key] = set()
        self.again = machine.has(STATES_ARE_MADE_KNOWN_AGAIN)

    # -- look-ups, of the hashes of a prompt's full blocks

    def found(self, has: Callable[[int], bool], limit: int, max_tokens: int) -> int:
        """How many of the first `limit` blocks are a hit, of at most `max_tokens` tokens; `has`: which are cached."""
        del max_tokens
        return next((at for at in range(limit) if not has(at)), limit)

    def has(self, block_hash: int) -> bool:
        return self.pool.cached(Key(self.index, block_hash)) is not None

    def hit(self, hashes: Sequence[int], end: int) -> list[Block | None]:
        """The blocks of a hit that ends behind block `end - 1`: those that the next token needs."""
        skipped = self.skipped_tokens(end * self.size) // self.size
        return [None] * skipped + [self.pool.cached(Key(self.index, hashes[at])) for at in range(skipped, end)]

    def is_too_new(self, hit: Sequence[Block | None]) -> bool:
        """Whether the content of a hit will not be there when the step begins."""
        del hit
        return False

    # -- room

    def skipped_tokens(self, computed: int) -> int:
        """How many tokens from the first one on the next one does not attend to."""
        del computed
        return 0

    def most_blocks(self) -> int:
        """So many blocks are enough for a call of any length."""
        return 2**62

    def needs(self, held: Held, tokens: int, hit: Sequence[Block | None], *, whole: bool) -> int:
        """Blocks that are taken off the queue so that the group holds `tokens` tokens; `whole`: a whole prompt."""
        required = -(-tokens // self.size)
        if whole:
            required = min(required, self.most_blocks())
        idle = sum(block is not None and not block.users for block in hit)
        return max(required - max(len(hit), len(held.blocks)), 0) + idle

    def allocate(self, held: Held, tokens: int) -> None:
        held.blocks += self.pool.take(max(-(-tokens // self.size) - len(held.blocks), 0))

    def remove_skipped(self, held: Held, processed: int) -> None:
        """Blocks that no later token attends to are given back, the last one first."""
        end = min(self.skipped_tokens(processed) // self.size, len(held.blocks))
        gone = [block for block in reversed(held.blocks[:end]) if block is not None]
        held.blocks[:end] = [None] * end
        self.pool.release(gone)

    def release(self, held: Held) -> None:
        self.pool.release(block for block in reversed(held.blocks) if block is not None)

    # -- what can be hit later

    def cache(self, held: Held, hashes: Sequence[int], tokens: int, boundaries: Sequence[int]) -> None:
        """The first `tokens` tokens are computed. `boundaries`: token positions at which others may go on."""
        end = tokens // self.size
        for at in range(held.cached, end):
            block = held.blocks[at]
            if block is not None and self.keeps(at, boundaries):
                self.pool.cache(block, Key(self.index, hashes[at]))
                self.cached_this_step.add(Key(self.index, hashes[at]))
        held.cached = max(held.cached, end)

    def keeps(self, at: int, boundaries: Sequence[int]) -> bool:
        """Whether block `at` is cached when it is full."""
        del at, boundaries
        return True


class SlidingWindow(Group):
    """It needs the last `window_tokens - 1` tokens; a hit is the blocks that hold these."""

    @property
    def blocks_for_hit(self) -> int:
        return -(-(self.spec.window_tokens - 1) // self.size)

    def found(self, has: Callable[[int], bool], limit: int, max_tokens: int) -> int:
        """The end of the last stretch that is long enough, or of one from the first block on."""
        del max_tokens
        stretch = 0
        for at in reversed(range(limit)):
            stretch = stretch + 1 if has(at) else 0
            if stretch == self.blocks_for_hit:
                return at + stretch
        return stretch

    def skipped_tokens(self, computed: int) -> int:
        return max(0, computed - self.spec.window_tokens + 1)

    def most_blocks(self) -> int:
        tokens = min(self.spec.window_tokens - 1 + self.most_in_flight_tokens, self.max_context_tokens)
        return -(-tokens // self.size) + 1

    def keeps(self, at: int, boundaries: Sequence[int]) -> bool:
        """All blocks, or those before every so-manieth token and before the boundaries."""
        if self.retention < 0:
            return True
        segment = self.retention // self.size
        if segment and at % segment >= segment - self.blocks_for_hit:
            return True
        ends = [boundary // self.size for boundary in boundaries]
        return any(end - self.blocks_for_hit <= at < end for end in ends)


class ChunkedLocal(Group):
    """It needs the tokens of the current chunk."""

    def found(self, has: Callable[[int], bool], limit: int, max_tokens: int) -> int:
        start = min(self.skipped_tokens(max_tokens) // self.size, limit)
        return next((at for at in range(start, limit) if not has(at)), limit)

    def skipped_tokens(self, computed: int) -> int:
        return computed // self.spec.window_tokens * self.spec.window_tokens

    def most_blocks(self) -> int:
        return -(-min(self.spec.window_tokens + self.most_in_flight_tokens, self.max_context_tokens) // self.size)


class Mamba(Group):
    """It needs the state behind the last token; a hit is the state at its end. vLLM's cache mode `align`."""

    def found(self, has: Callable[[int], bool], limit: int, max_tokens: int) -> int:
        del max_tokens
        return next((at + 1 for at in reversed(range(limit)) if has(at)), 0)

    def is_too_new(self, hit: Sequence[Block | None]) -> bool:
        """A state that is computed in this step can be copied in the next one."""
        return bool(hit) and hit[-1] is not None and hit[-1].key in self.cached_this_step

    def skipped_tokens(self, computed: int) -> int:
        return max(0, computed - 1)

    def needs(self, held: Held, tokens: int, hit: Sequence[Block | None], *, whole: bool) -> int:
        del whole
        new = -(-tokens // self.size) - len(hit) - len(held.blocks)
        return min(new, 1) + sum(block is not None and not block.users for block in hit)

    def allocate(self, held: Held, tokens: int) -> None:
        required = -(-tokens // self.size)
        if required <= len(held.blocks):
            return
        if held.blocks:
            held.last_state = len(held.blocks) - 1
        held.blocks += [None] * (required - 1 - len(held.blocks))
        held.blocks += self.pool.take(1)

    def remove_skipped(self, held: Held, processed: int) -> None:
        super().remove_skipped(held, processed)
        at = held.last_state
        if at is not None and at < -(-processed // self.size) - 1 and (block := held.blocks[at]) is not None:
            self.pool.release([block])
            held.blocks[at] = None

    def cache(self, held: Held, hashes: Sequence[int], tokens: int, boundaries: Sequence[int]) -> None:
        super().cache(held, hashes, tokens, boundaries)
        if not self.again:
            return
        at = tokens // self.size - 1
        if at >= 0 and at == boundaries[0] // self.size - 1 and (block := held.blocks[at]) is not None:
            assert block.key is not None  # a state at the end of a prompt is always kept
            self.cached_this_step.add(block.key)

    def keeps(self, at: int, boundaries: Sequence[int]) -> bool:
        if self.retention < 0:
            return True
        segment = self.retention // self.size
        if segment and (at + 1) % segment == 0:
            return True
        return any(at == boundary // self.size - 1 for boundary in boundaries)


KINDS = {"full": Group, "sliding_window": SlidingWindow, "chunked_local": ChunkedLocal, "mamba": Mamba}


class Hit:
    """What is cached of a prompt: how many blocks in all groups, which ones, and where one group has more."""

    def __init__(self, num_blocks: int, blocks: list[list[Block | None]], shared_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.blocks = blocks  # by group
        self.shared_tokens = shared_tokens  # a prefix that a group has which is longer than the hit; 0: none has


class KvGroups:
    """All groups of a machine, with one pool."""

    def __init__(self, machine: Machine, pool: OracleBlockPool) -> None:
        self._size = machine.block_tokens
        self.groups = [KINDS[spec.kind](at, spec, machine, pool) for at, spec in enumerate(machine.kv_groups)]
        alike = sorted(self.groups, key=lambda group: (group.spec.kind != "full", machine.kv_groups.index(group.spec)))
        self._alike = [list(groups) for _, groups in groupby(alike, key=lambda group: group.spec)]

    def begin_step(self) -> None:
        for group in self.groups:
            group.cached_this_step.clear()

    def hit(self, hashes: Sequence[int], max_tokens: int) -> Hit:
        """The longest hit of at most `max_tokens` tokens; groups of the same kind are looked up together."""
        end_tokens, longest = max_tokens, 0
        full: int | None = None
        while True:
            before = end_tokens
            for groups in self._alike:
                if groups[0].spec.kind == "full" and full is not None:
                    end_tokens = min(end_tokens, full)
                    continue
                found = groups[0].found(_in_all(groups, hashes), end_tokens // self._size, end_tokens)
                end_tokens = found * self._size
                longest = max(longest, end_tokens)
                if groups[0].spec.kind == "full":
                    full = end_tokens
            if end_tokens >= before or (len(self._alike) == 2 and full is not None):
                break
        end = end_tokens // self._size
        return Hit(end, [group.hit(hashes, end) for group in self.groups], longest if longest > end_tokens else 0)


def _in_all(groups: Sequence[Group], hashes: Sequence[int]) -> Callable[[int], bool]:
    """Whether all of these groups have a block."""
    return lambda at: all(group.has(hashes[at]) for group in groups)
