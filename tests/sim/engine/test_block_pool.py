"""The pool on runs against a pool block by block: the same operations, the same answers.

Later copies of a block are where such a pool goes wrong, and workloads of whole calls hardly reach them: so the pool is
driven by itself here, with holders that do not take what they could hit, and with less memory than anybody wants.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from oracle.blocks import Block, PlainBlockHold, PlainBlockPool

from tokencake.sim.engine.memory.block_pool import BlockPool
from tokencake.sim.engine.memory.blocks import BlockHold, BlockRun, Owner
from tokencake.sim.engine.memory.context_tree import Context, ContextTree, Path, changes, full_blocks
from tokencake.traces.apps import Segment

SIDES = 2


class Text(NamedTuple):
    """One context in two trees: that of the pool on runs, that of the pool of blocks."""

    fast: Context
    plain: Context
    fast_path: Path
    plain_path: Path
    blocks: int


class Holder:
    """One who holds blocks of a text in both pools, from block `start` on."""

    def __init__(self, text: Text, fast: BlockHold, plain: PlainBlockHold) -> None:
        self.text = text
        self.fast = fast
        self.plain = plain
        self.kept = False


class Twins:
    """A pool on runs and a pool of blocks that are told the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.size = rng.choice((1, 1, 2, 3))
        blocks = rng.choice((4, 9, 20, 20, 60))
        side = rng.randrange(SIDES)
        self.fast_tree, self.plain_tree = ContextTree(), ContextTree()
        self.fast = BlockPool(self.fast_tree, blocks, side)
        self.plain = PlainBlockPool(self.plain_tree, blocks, side)
        names = ("a", "b", "c")
        self.owners = [(Owner(name), Owner(name)) for name in names]
        self.texts: list[Text] = []
        self.holders: list[Holder] = []
        self.found: list[tuple[Text, int, object]] = []  # how often anything near a text had changed, and look-ups
        self.longest = rng.choice((3, 12, 30)) * self.size
        for _ in range(3):
            self.write()

    # -- what can be done

    def write(self) -> None:
        """A text that continues another one, or starts anew; of few sources, so that texts share beginnings."""
        rng = self.rng
        if self.texts and rng.random() < 0.6:
            base = rng.choice(self.texts)
            keep = rng.choice((base.fast.num_tokens, rng.randint(0, base.fast.num_tokens)))
            bases = self.fast_tree.cut(base.fast, keep), self.plain_tree.cut(base.plain, keep)
        else:
            bases = self.fast_tree.empty, self.plain_tree.empty
        segments = [
            Segment(rng.choice("xy"), rng.choice((0, 0, 0, 1, 5)), rng.randint(1, self.longest))
            for _ in range(rng.randint(1, 2))
        ]
        fast, plain = self.fast_tree.follow(bases[0], segments), self.plain_tree.follow(bases[1], segments)
        paths = full_blocks(fast, self.size), full_blocks(plain, self.size)
        self.texts.append(Text(fast, plain, *paths, fast.num_tokens // self.size))

    def erase(self) -> None:
        """Nobody continues a text any more; what is cached of it stays."""
        held = {id(holder.text) for holder in self.holders}
        idle = [text for text in self.texts if id(text) not in held]
        if len(idle) < 3:
            return
        text = self.rng.choice(idle)
        self.texts = [other for other in self.texts if other is not text]
        self.fast_tree.release(text.fast.node)
        self.plain_tree.release(text.plain.node)

    def open(self) -> None:
        """Hold what is found of a text, or less: even nothing, and so make later copies."""
        rng = self.rng
        text = rng.choice(self.texts)
        start = rng.choice((0, 0, 0, rng.randint(0, text.blocks)))
        found, _ = self.fast.cached_prefix(text.fast_path, text.blocks, start)
        end = rng.choice((start, found, rng.randint(start, found)))
        fast, plain = self.fast.touch(text.fast_path, end, start), self.plain.touch(text.plain_path, end, start)
        self.holders.append(Holder(text, fast, plain))

    def take(self) -> None:
        """Some more blocks for a holder, even more than its text is long: then the last ones stay without content."""
        takers = [holder for holder in self.holders if not holder.kept]
        if not takers:
            return
        holder = self.rng.choice(takers)
        blocks = min(self.fast.num_free_blocks, self.rng.choice((1, 1, 2, self.rng.randint(0, 40))))
        if self.rng.random() < 0.5:
            self.fast.allocate(holder.fast, blocks)
            self.plain.allocate(holder.plain, blocks)
            return
        self.fast.get_new_blocks(blocks)
        self.plain.get_new_blocks(blocks)
        holder.fast.uncached_blocks += blocks
        holder.plain.uncached_blocks += blocks

    def register(self) -> None:
        ready = [h for h in self.holders if h.fast.uncached_blocks and h.fast.cached_end_block < h.text.blocks]
        if not ready:
            return
        holder = self.rng.choice(ready)
        most = min(holder.fast.cached_end_block + holder.fast.uncached_blocks, holder.text.blocks)
        end = self.rng.choice((most, self.rng.randint(holder.fast.cached_end_block, most)))
        self.fast.cache(holder.fast, holder.text.fast_path, end)
        self.plain.cache(holder.plain, holder.text.plain_path, end)

    def fill(self) -> None:
        """A holder goes on as a call does: takes blocks and registers them."""
        self.take()
        self.register()

    def release(self) -> None:
        if self.holders:
            holder = self.holders.pop(self.rng.randrange(len(self.holders)))
            fast, plain = self._somebody()
            self.fast.free(holder.fast, fast)
            self.plain.free(holder.plain, plain)
            assert holder.fast.num_blocks == holder.plain.num_blocks == 0

    def drop(self) -> None:
        if self.holders:
            holder = self.holders.pop(self.rng.randrange(len(self.holders)))
            fast, plain = self._somebody()
            assert self.fast.discard(holder.fast, fast) == self.plain.discard(holder.plain, plain)

    def expose(self) -> None:
        """Some contexts in one pass: what they share goes with the first of them."""
        fast_moved: set[BlockRun] = set()
        plain_moved: set[Block] = set()
        for _ in range(self.rng.randint(1, 3)):
            text = self.rng.choice(self.texts)
            end = self.rng.randint(0, text.blocks)
            self.fast.evict_first(text.fast_path, end, fast_moved)
            self.plain.evict_first(text.plain_path, end, plain_moved)

    def stall(self) -> None:
        fast, plain = self.rng.choice(self.owners)
        self.fast.set_stalled(fast, not fast.stalled)
        self.plain.set_stalled(plain, not plain.stalled)

    def keep(self) -> None:
        """What somebody holds is held for an owner of whom no call runs."""
        others = [holder for holder in self.holders if not holder.kept]
        if others:
            holder = self.rng.choice(others)
            fast, plain = self.rng.choice(self.owners)
            self.fast.keep(holder.fast, fast)
            self.plain.keep(holder.plain, plain)
            holder.kept = True

    def _somebody(self) -> tuple[Owner | None, Owner | None]:
        return self.rng.choice([*self.owners, (None, None)])

    # -- what must be equal

    def compare(self) -> None:
        fast, plain = self.fast, self.plain
        assert (fast.num_free_blocks, fast.num_evicted_blocks, fast.stalled_idle_blocks) == (
            plain.num_free_blocks,
            plain.num_evicted_blocks,
            plain.stalled_idle_blocks,
        )
        assert (fast.kept_blocks, fast.kept_stalled_blocks) == (plain.kept_blocks, plain.kept_stalled_blocks)
        assert 0 <= fast.kept_stalled_blocks <= fast.kept_blocks <= fast.num_blocks - fast.num_free_blocks
        assert fast.in_use == plain.in_use
        assert self.fast_tree.nodes == self.plain_tree.nodes
        for mine, theirs in self.owners:
            assert mine.idle_blocks == theirs.idle_blocks
        for holder in self.holders:
            assert (holder.fast.cached_end_block, holder.fast.uncached_blocks) == (
                holder.plain.cached_end_block,
                holder.plain.uncached_blocks,
            )
            assert holder.fast.num_blocks == holder.plain.num_blocks
        self._compare_spared()
        self._compare_unchanged()
        for text in self.rng.sample(self.texts, min(4, len(self.texts))):
            start = self.rng.randint(0, text.blocks)
            limit = self.rng.randint(start, text.blocks)
            for first, upto in ((0, text.blocks), (start, text.blocks), (start, limit)):
                assert fast.cached_prefix(text.fast_path, upto, first) == plain.cached_prefix(
                    text.plain_path, upto, first
                )
                assert fast.uncached_spans(text.fast_path, first, upto) == plain.uncached_spans(
                    text.plain_path, first, upto
                )
            assert fast.held_prefix(text.fast_path, limit) == plain.held_prefix(text.plain_path, limit)

    def _compare_unchanged(self) -> None:
        """While nothing near a text has changed, look-ups find what they found before."""
        before = {id(text): (count, finds) for text, count, finds in self.found}
        self.found = []
        for text in self.texts:
            finds = [self.fast.cached_prefix(text.fast_path, text.blocks, start) for start in range(text.blocks)]
            count = changes(text.fast_path)
            if id(text) in before and before[id(text)][0] == count:
                assert finds == before[id(text)][1]
            self.found.append((text, count, finds))

    def _compare_spared(self) -> None:
        """Whether the next blocks to be handed out are no stalled owner's."""
        stalled = [block.owner is not None and block.owner.stalled for block in self.plain.queue]
        blocks = self.rng.randint(0, self.plain.num_free_blocks)
        assert self.fast.spares_stalled(blocks) == (not any(stalled[:blocks]))

    def step(self) -> None:
        acts = (
            self.open,
            self.open,
            self.fill,
            self.fill,
            self.fill,
            self.take,
            self.register,
            self.release,
            self.release,
            self.keep,
        )
        rare = (self.write, self.erase, self.drop, self.expose, self.stall)
        self.rng.choice((*acts, *acts, *rare))()
        self.compare()

    def end(self) -> None:
        """Everything is given back and handed out again: then nothing is left in the trees."""
        while self.holders:
            self.release()
            self.compare()
        for blocks in (1, 2, self.fast.num_free_blocks - 3):
            self.fast.get_new_blocks(blocks)
            self.plain.get_new_blocks(blocks)
            self.compare()
        for text in self.texts:
            self.fast_tree.release(text.fast.node)
            self.plain_tree.release(text.plain.node)
        assert self.fast_tree.nodes == self.plain_tree.nodes == 1
        assert all(not owner.idle_blocks for pair in self.owners for owner in pair)


@pytest.mark.parametrize("seed", range(300))
def test_runs_and_blocks_do_the_same(seed: int) -> None:
    twins = Twins(random.Random(seed))
    for _ in range(100):
        twins.step()
        twins.fast.check()
        twins.fast.check_holds((holder.fast, holder.fast.uncached_blocks) for holder in twins.holders)
    twins.end()
