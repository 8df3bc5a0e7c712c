"""One KV cache group of several: what it keeps of a call, and what of that a later one can hit.

vLLM's rules, from its `SingleTypeKVCacheManager`s (`v1/core/single_type_kv_cache_manager.py`). All groups have pages of
as many tokens, which come out of one free queue. Of a call a group holds pages at some positions:

    full            0 … 9      all
    sliding_window        7 8 9    those in which the next token's window lies
    chunked_local       6 7 8 9    those of the current chunk
    mamba                     9    the newest state

What is behind is given back while the call runs. Positions are pages of the context, as those of a full group.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....traces.arithmetic import div_ceil
from ...machine.kv_groups import KvGroup
from ...machine.machine import Machine
from ..memory.block_pool import BlockPool
from ..memory.blocks import BlockHold, BlockRun, HeldPart, Owner, Span
from ..memory.context_tree import ContextTree, Path
from ..memory.free_queue import FreeQueue

UNBOUNDED = 2**62  # blocks


class GroupHold(BlockHold):
    """A call's pages in one group. Those at positions before `start_block` were given back, or never there."""

    __slots__ = ("end_block", "state_blocks")

    def __init__(self, start: int, end: int) -> None:
        super().__init__(start)
        self.end_block = end  # of the positions that have been given a page
        self.cached_end_block = end  # up to here all is cached that ever will be
        self.state_blocks: list[int] = []  # of a Mamba group: the positions that have a page


class GroupPool(BlockPool):
    """A group of full attention: it keeps all, and a hit is all of it from the first page on."""

    def __init__(
        self, tree: ContextTree, blocks: int, side: int, queue: FreeQueue, group: KvGroup, machine: Machine
    ) -> None:
        super().__init__(tree, blocks, side, queue)
        self.group = group
        self._block_tokens = machine.block_tokens
        self._window_tokens = group.window_tokens
        self._retention_blocks = machine.prefix_cache_retention_interval // machine.block_tokens  # -1: all is kept
        self._in_flight_tokens = machine.step_budget_tokens * (2 if machine.asynchronous else 1)
        self._max_context_tokens = machine.max_context_tokens

    # -- the rule

    def first_needed(self, tokens: int) -> int:
        """The first page that the token behind so many ones needs."""
        return 0

    def next_slide_tokens(self, hold: GroupHold) -> int:
        """With how many computed tokens a holder can give back its first page."""
        return UNBOUNDED

    def held_blocks(self, tokens: int) -> int:
        """Pages of a call with so many computed tokens."""
        return div_ceil(tokens, self._block_tokens) - self.first_needed(tokens)

    def most_blocks(self) -> int:
        """Pages that are enough for any prompt, where admission asks for the room of a whole one."""
        return UNBOUNDED

    def new_blocks(self, end: int, tokens: int) -> int:
        """Pages that it takes to have so many tokens, where positions before `end` have been given theirs."""
        return max(0, div_ceil(tokens, self._block_tokens) - end)

    def hit(self, cached: Sequence[Span], limit: int) -> int:
        """The end of the longest hit of at most `limit` pages, where these are cached."""
        return cached[0][1] if cached and not cached[0][0] else 0

    def kept(self, first: int, end: int, boundaries: Sequence[int]) -> list[Span]:
        """Which full pages at the positions `first` … `end − 1` are cached; at `boundaries` others may go on."""
        return [(first, end)]

    def all_runs(self) -> list[BlockRun]:
        """All that is cached. Raises `CheckError` if it is not where it belongs."""
        return self._cached.check()

    # -- what a call holds

    def start(self, path: Path, hits: int, end: int) -> GroupHold:
        """Hold what the token behind `end` pages needs of a hit of `hits` pages."""
        first = min(self.first_needed(end * self._block_tokens), hits)
        hold = GroupHold(first, hits)
        touched = self.touch(path, hits, first)
        hold.parts = touched.parts
        return hold

    def add(self, hold: GroupHold, tokens: int) -> None:
        """The holder has been given the pages for so many tokens."""
        end = div_ceil(tokens, self._block_tokens)
        hold.uncached_blocks += max(0, end - hold.end_block)
        hold.end_block = max(hold.end_block, end)

    def slide(self, hold: GroupHold, path: Path, tokens: int, boundaries: Sequence[int], owner: Owner | None) -> None:
        """Give back what the token behind so many ones does not need, the last page first.

        What a call generates nobody can look for before it has ended, so it is made known only now.
        """
        first = min(self.first_needed(tokens), hold.end_block)
        if first > hold.start_block:
            self.cache_up_to(hold, path, first, boundaries)
            self.give_back(hold, first, first - hold.start_block, owner)
            hold.start_block = first

    def give_back(self, hold: GroupHold, upto: int, blocks: int, owner: Owner | None) -> None:
        """Give back the first `blocks` pages of a holder: those at positions before `upto`."""
        queue = self._queue
        queue.version += 1
        cached = 0
        gone = 0
        for part in hold.parts:
            if part.first_block >= upto:
                break
            gone += 1
        for i in range(gone - 1, -1, -1):
            part = hold.parts[i]
            rest = None
            if part.end_block > upto:
                rest = self._cut(part, upto)
            for run in reversed(self._cached.runs_of(part)):
                cached += run.end_block - run.first_block
                self._give_back(run, owner)
            self._cached.join(part)
            if rest is not None:
                hold.parts[i] = rest
                gone -= 1
        del hold.parts[:gone]
        uncached = blocks - cached
        hold.uncached_blocks -= uncached
        queue.uncached_blocks += uncached
        queue.num_free_blocks += uncached

    def _cut(self, part: HeldPart, block: int) -> HeldPart:
        """Cut a part before a position; the second part of it is returned."""
        rest = HeldPart(part.node, block, part.end_block)
        if part.later_copy is not None:
            for run in self._cached.runs_of(part):
                if run.end_block > block:
                    rest.later_copy = run if run.first_block == block else self._cached.split(run, block)
                    break
        part.end_block = block
        return rest

    def cache_up_to(self, hold: GroupHold, path: Path, end: int, boundaries: Sequence[int]) -> None:
        """The holder's pages before position `end` are full: those that the group keeps can be found from now on."""
        if end <= hold.cached_end_block:
            return
        for first, upto in self.kept(hold.cached_end_block, end, boundaries):
            if upto > hold.start_block:
                self.cache_span(hold, path, max(first, hold.start_block), upto)
        hold.cached_end_block = end

    def append(self, hold: GroupHold, first: int, end: int) -> None:
        """The holder has been given pages for the positions `first` … `end − 1`, and for none before them."""
        hold.uncached_blocks += end - first
        if not hold.parts:
            hold.start_block = first
        hold.end_block = end

    def parts_of(self, path: Path, first: int, end: int) -> list[HeldPart]:
        """What somebody holds who touched these pages."""
        if first >= end:
            return []
        return [
            HeldPart(node, max(start, first), min(upto, end))
            for node, start, upto in path
            if start < end and upto > first
        ]

    def cache_span(self, hold: GroupHold, path: Path, first: int, end: int) -> None:
        """Pages of a holder can be found from now on, those at positions at which it has some."""
        self.cache_blocks(hold, path, first, end)

    def cached_spans(self, path: Path, limit: int) -> list[Span]:
        """What is cached of the first `limit` pages, by position."""
        spans: list[Span] = []
        for node, first, upto in path:
            if first >= limit:
                break
            for run in node.runs[self._side]:
                start = run.first_block if run.first_block > first else first
                end = min(run.end_block, upto, limit)
                if start >= end:
                    continue
                if spans and spans[-1][1] == start:
                    start = spans.pop()[0]
                spans.append((start, end))
        return spans


class SlidingWindowPool(GroupPool):
    """A token attends to the last `window_tokens` ones, itself included."""

    def __init__(
        self, tree: ContextTree, blocks: int, side: int, queue: FreeQueue, group: KvGroup, machine: Machine
    ) -> None:
        super().__init__(tree, blocks, side, queue, group, machine)
        self._hit_blocks = div_ceil(group.window_tokens - 1, machine.block_tokens)

    def first_needed(self, tokens: int) -> int:
        return max(0, tokens - self._window_tokens + 1) // self._block_tokens

    def next_slide_tokens(self, hold: GroupHold) -> int:
        return (hold.start_block + 1) * self._block_tokens + self._window_tokens - 1

    def most_blocks(self) -> int:
        tokens = min(self._window_tokens - 1 + self._in_flight_tokens, self._max_context_tokens)
        return div_ceil(tokens, self._block_tokens) + 1

    def hit(self, cached: Sequence[Span], limit: int) -> int:
        """The end of the last stretch that fills a window; else of one from the first page on."""
        for first, end in reversed(cached):
            if end - first >= self._hit_blocks or not first:
                return end
        return 0

    def kept(self, first: int, end: int, boundaries: Sequence[int]) -> list[Span]:
        return _tails(first, end, boundaries, self._retention_blocks, self._hit_blocks)


class ChunkedLocalPool(GroupPool):
    """A token attends to those of its own chunk of `window_tokens`."""

    def first_needed(self, tokens: int) -> int:
        return tokens // self._window_tokens * self._window_tokens // self._block_tokens

    def next_slide_tokens(self, hold: GroupHold) -> int:
        return div_ceil((hold.start_block + 1) * self._block_tokens, self._window_tokens) * self._window_tokens

    def most_blocks(self) -> int:
        tokens = min(self._window_tokens + self._in_flight_tokens, self._max_context_tokens)
        return div_ceil(tokens, self._block_tokens)

    def hit(self, cached: Sequence[Span], limit: int) -> int:
        """What is cached of the chunk in which the limit lies; all before it is needed no more."""
        start = self.first_needed(limit * self._block_tokens)
        for first, end in reversed(cached):
            if first <= start < end:
                return end
        return start


class MambaPool(GroupPool):
    """A state says all about the tokens before it: vLLM's cache mode `align`, a page for the newest one."""

    def first_needed(self, tokens: int) -> int:
        return max(0, tokens - 1) // self._block_tokens

    def next_slide_tokens(self, hold: GroupHold) -> int:
        return (hold.state_blocks[0] + 1) * self._block_tokens + 1

    def new_blocks(self, end: int, tokens: int) -> int:
        return min(1, super().new_blocks(end, tokens))

    def hit(self, cached: Sequence[Span], limit: int) -> int:
        """The last state."""
        return cached[-1][1] if cached else 0

    def kept(self, first: int, end: int, boundaries: Sequence[int]) -> list[Span]:
        return _tails(first, end, boundaries, self._retention_blocks, 1)

    def start(self, path: Path, hits: int, end: int) -> GroupHold:
        hold = super().start(path, hits, end)
        hold.state_blocks = list(range(hold.start_block, hits))
        return hold

    def add(self, hold: GroupHold, tokens: int) -> None:
        end = div_ceil(tokens, self._block_tokens)
        if end > hold.end_block:
            hold.uncached_blocks += 1
            hold.end_block = end
            hold.state_blocks.append(end - 1)

    def append(self, hold: GroupHold, first: int, end: int) -> None:
        super().append(hold, first, end)
        hold.state_blocks += range(first, end)

    def slide(self, hold: GroupHold, path: Path, tokens: int, boundaries: Sequence[int], owner: Owner | None) -> None:
        first = self.first_needed(tokens)
        gone = sum([block < first for block in hold.state_blocks])
        if gone:
            self.cache_up_to(hold, path, first, boundaries)
            self.give_back(hold, first, gone, owner)
            del hold.state_blocks[:gone]
        hold.start_block = max(hold.start_block, min(first, hold.end_block))

    def cache_span(self, hold: GroupHold, path: Path, first: int, end: int) -> None:
        for block in hold.state_blocks:
            if first <= block < end:
                self.cache_blocks(hold, path, block, block + 1)


def _tails(first: int, end: int, boundaries: Sequence[int], interval: int, blocks: int) -> list[Span]:
    """The `blocks` pages before each boundary and each so-manieth page; `interval` −1: all pages, 0: boundaries alone.

    Positions are pages; of boundaries, too.
    """
    if interval < 0 or 0 < interval <= blocks:
        return [(first, end)]
    ends = [*boundaries]
    if interval:
        ends += range(first // interval * interval + interval, end + blocks, interval)
    spans: list[Span] = []
    for upto in sorted(ends):
        start, upto = max(first, upto - blocks), min(end, upto)
        if spans:
            start = max(start, spans[-1][1])
        if start < upto:
            spans.append((start, upto))
    return spans
