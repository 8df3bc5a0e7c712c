"""A pool of KV blocks with prefix caching, on runs of blocks instead of single ones: vLLM's rules at a cost a run.

The rules (vLLM 0.26 to 0.32, `BlockPool` and `KVCacheManager`):

- a full block is found under its content as soon as it is registered, until it is handed out again;
- a second block of the same content stays known too: the first registered is found, the next one when that goes;
- a released block that is registered goes to the end of the free queue, any other one to its front; a holder releases
  its last block first; blocks are handed out from the front; a hit takes a block out of the queue wherever it is.

A *run* is a stretch of blocks of one node that have the same holders and lie side by side in the free queue, from which
it gives up its last block first. Blocks that are not registered have no identity: those that are free are one number.
"""

from __future__ import annotations

from .context_tree import ContextTree, Node, Path

Span = tuple[int, int]  # blocks of a context: the first one, and the end


class Owner:
    """Whose cache a free block is: the one who released it last."""

    __slots__ = ("idle_blocks", "kept_holds", "name", "stalled")

    def __init__(self, name: str) -> None:
        self.name = name
        self.idle_blocks = 0  # registered and free
        self.kept_holds: list[BlockHold] = []  # what is held for it although no call of its runs
        self.stalled = False


class BlockRun:
    """Blocks `first` … `end − 1` of a node's contexts: one copy of each, all with the same holders."""

    __slots__ = (
        "end_block", "first_block", "is_first_copy", "keepers", "next_free", "next_part", "node", "owner",
        "prev_free", "ref_cnt", "stalled_keepers",
    )  # fmt: skip

    def __init__(self, node: Node, first: int, end: int, refs: int, found: bool) -> None:
        self.node = node
        self.first_block = first
        self.end_block = end
        self.ref_cnt = refs
        self.keepers = 0  # of the holders, those that keep it for an owner (see `BlockPool.keep`)
        self.stalled_keepers = 0  # of these, those that keep it for a stalled one
        self.is_first_copy = found  # by look-ups; otherwise an earlier copy is
        self.next_part: BlockRun | None = None  # what a holder of the run before it was split holds too
        self.prev_free: BlockRun | None = None  # neighbours in the free queue
        self.next_free: BlockRun | None = None
        self.owner: Owner | None = None  # while it is free


class BlockHold:
    """Blocks that somebody holds, from the first block of a context on: registered ones, then others."""

    __slots__ = ("cached_end_block", "keeper", "runs", "start_block", "uncached_blocks")

    def __init__(self, start: int) -> None:
        self.keeper: Owner | None = None  # for whom it is kept, if no running call holds it
        self.start_block = start  # the first block; 0 but for copies of a part
        self.runs: list[tuple[BlockRun, int]] = []  # (first run, end block): with what was split off it up to there
        self.cached_end_block = start  # end of the registered part
        self.uncached_blocks = 0  # blocks behind it that are not registered

    @property
    def num_blocks(self) -> int:
        return self.cached_end_block - self.start_block + self.uncached_blocks


class BlockPool:
    """`blocks` KV blocks on one side (0: GPU, 1: host)."""

    def __init__(self, tree: ContextTree, blocks: int, side: int = 0) -> None:
        self._tree = tree
        self._side = side
        self.num_blocks = blocks
        self.num_free_blocks = blocks  # in nobody's use
        self._uncached_free_blocks = blocks  # of these, not registered
        self.num_evicted_blocks = 0  # registered blocks that were handed out again
        self.version = 0  # rises with everything that can let somebody find more, or need less, than before
        self.stalled_idle_blocks = 0  # free blocks that cache the contexts of stalled owners
        self.kept_blocks = 0  # blocks that are kept for owners without a running call, each once
        self.kept_stalled_blocks = 0  # blocks that are kept for stalled owners, each once
        self._queue = BlockRun(tree.empty.node, -1, -1, 0, False)  # a ring: behind it the first to be handed out
        self._queue.prev_free = self._queue.next_free = self._queue

    @property
    def in_use(self) -> bool:
        """Whether any block is held or registered."""
        return self._uncached_free_blocks < self.num_blocks

    # -- questions

    def cached_prefix(self, path: Path, limit: int, start: int = 0) -> tuple[int, int]:
        """The end of the longest registered stretch from block `start` on, at most `limit`; and how many are free."""
        at = start
        idle = 0
        side = self._side
        for node, _, end in path:
            if end <= at:
                continue
            if end > limit:
                end = limit
            for run in node.runs[side]:
                if run.end_block <= at:
                    continue
                if run.first_block > at:
                    break
                taken = (run.end_block if run.end_block < end else end) - at
                if taken <= 0:
                    break
                if not run.ref_cnt:
                    idle += taken
                at += taken
            if at < end or at == limit:
                break
        return at, idle

    def uncached_spans(self, path: Path, first: int, end: int) -> list[Span]:
        """The spans of the blocks `first` … `end − 1` that are not registered, by position."""
        spans: list[Span] = []
        at = first
        for node, _, upto in path:
            if upto <= at:
                continue
            if at >= end:
                break
            if upto > end:
                upto = end
            for run in node.runs[self._side]:
                if run.end_block <= at:
                    continue
                if run.first_block >= upto:
                    break
                if run.first_block > at:
                    _append(spans, at, run.first_block)
                at = run.end_block if run.end_block < upto else upto
            if at < upto:
                _append(spans, at, upto)
                at = upto
        return spans

    def held_prefix(self, path: Path, limit: int) -> int:
        """How many of the first `limit` blocks are registered from the start on and held by somebody."""
        end, idle = self.cached_prefix(path, limit)
        return end - idle

    # -- taking

    def touch(self, path: Path, end: int, start: int = 0) -> BlockHold:
        """Hold the registered blocks `start` … `end − 1`, which the caller has just found."""
        self.version += 1
        hold = BlockHold(start)
        at = start
        for node, _, upto in path:
            if upto <= at:
                continue
            if at >= end:
                break
            if upto > end:
                upto = end
            while at < upto:
                run = self._found(node, at)
                if run.first_block < at:
                    run = self._cut(run, at)
                if run.end_block > upto:
                    self._cut(run, upto)
                if not run.ref_cnt:
                    self._unlink(run)
                    self.num_free_blocks -= run.end_block - run.first_block
                run.ref_cnt += 1
                hold.runs.append((run, run.end_block))
                at = run.end_block
        hold.cached_end_block = at
        assert at == end, "the caller asked for blocks that are not registered"
        return hold

    def allocate(self, hold: BlockHold, blocks: int) -> None:
        """Hand out `blocks` free blocks to a holder; what was cached in them is forgotten."""
        self.get_new_blocks(blocks)
        hold.uncached_blocks += blocks

    def get_new_blocks(self, blocks: int) -> None:
        """Hand out free blocks whose holder books them itself (see `BlockHold.uncached_blocks`)."""
        self.num_free_blocks -= blocks
        assert self.num_free_blocks >= 0, "more blocks handed out than are free"
        if blocks <= self._uncached_free_blocks:
            self._uncached_free_blocks -= blocks
            return
        blocks -= self._uncached_free_blocks
        self._uncached_free_blocks = 0
        while blocks:
            run = self._queue.next_free
            assert run is not None
            num_blocks = run.end_block - run.first_block
            gone = num_blocks if num_blocks < blocks else blocks
            self._evict(run, gone)
            blocks -= gone

    def spares_stalled(self, blocks: int) -> bool:
        """Whether handing out so many blocks would take none that caches a stalled owner's context."""
        if not self.stalled_idle_blocks:
            return True
        blocks -= self._uncached_free_blocks
        run = self._queue.next_free
        while blocks > 0:
            assert run is not None
            if run.owner is not None and run.owner.stalled:
                return False
            blocks -= run.end_block - run.first_block
            run = run.next_free
        return True

    def cache(self, hold: BlockHold, path: Path, end: int) -> None:
        """The holder's blocks up to `end` are full: from now on others find them."""
        at = hold.cached_end_block
        if end <= at:
            return
        self.version += 1
        hold.uncached_blocks -= end - at
        assert hold.uncached_blocks >= 0, "more blocks registered than held"
        for node, _, upto in path:
            if upto <= at:
                continue
            if at >= end:
                break
            upto = min(upto, end)
            self._cache(hold, node, at, upto)
            at = upto
        hold.cached_end_block = end

    def keep(self, hold: BlockHold, owner: Owner) -> None:
        """Count these blocks as kept for an owner of whom no call runs, until they are given back.

        The holder has taken all that it will ever hold. A block that several keep counts once.
        """
        hold.keeper = owner
        owner.kept_holds.append(hold)
        self._count(hold, 1, owner.stalled)

    # -- giving back

    def free(self, hold: BlockHold, owner: Owner | None) -> None:
        """Give everything back, the last block first."""
        self.version += 1
        if hold.keeper is not None:
            self._stop_keeping(hold, hold.keeper)
        self._uncached_free_blocks += hold.uncached_blocks
        self.num_free_blocks += hold.uncached_blocks
        hold.uncached_blocks = 0
        for first, end in reversed(hold.runs):
            for run in _last_first(first, end):
                self._give_back(run, owner)
        hold.runs.clear()
        hold.cached_end_block = hold.start_block

    def discard(self, hold: BlockHold, owner: Owner | None) -> int:
        """Give everything back, and forget what nobody else holds: those blocks go first. How many they are."""
        self.version += 1
        if hold.keeper is not None:
            self._stop_keeping(hold, hold.keeper)
        dropped = 0
        for first, end in reversed(hold.runs):
            for run in _last_first(first, end):
                if run.ref_cnt > 1:
                    run.ref_cnt -= 1
                    continue
                num_blocks = run.end_block - run.first_block
                run.ref_cnt = 0
                self._forget(run, run.first_block, run.end_block)
                self._uncached_free_blocks += num_blocks
                self.num_free_blocks += num_blocks
                dropped += num_blocks
        self._uncached_free_blocks += hold.uncached_blocks
        self.num_free_blocks += hold.uncached_blocks
        hold.uncached_blocks = 0
        hold.runs.clear()
        hold.cached_end_block = hold.start_block
        return dropped

    def evict_first(self, path: Path, end: int, moved: set[BlockRun]) -> None:
        """Let the free ones of these blocks be handed out before all other registered ones, the last first.

        But for those that were `moved` there before, which are added to: who keeps a block longest says when it goes.
        """
        for node, first, upto in path:
            upto = min(upto, end)
            for run in [
                r for r in node.runs[self._side] if not r.ref_cnt and r.first_block < upto and r.end_block > first
            ]:
                if run in moved:
                    continue
                if run.end_block > upto:
                    self._cut(run, upto)
                moved.add(run)
                self._unqueue(run)
                self._link(run, self._queue)

    def set_stalled(self, owner: Owner, stalled: bool) -> None:
        """Count, or no longer count, an owner's blocks as those of a stalled one: free ones, and those kept for it."""
        if owner.stalled != stalled:
            owner.stalled = stalled
            self.stalled_idle_blocks += owner.idle_blocks if stalled else -owner.idle_blocks
            for hold in owner.kept_holds:
                self._count(hold, 0, 1 if stalled else -1)

    # -- blocks that are kept

    def _stop_keeping(self, hold: BlockHold, keeper: Owner) -> None:
        self._count(hold, -1, -keeper.stalled)
        keeper.kept_holds.remove(hold)
        hold.keeper = None

    def _count(self, hold: BlockHold, kept: int, stalled: int) -> None:
        """So many more keep these blocks, and so many more stalled ones."""
        self.kept_blocks += kept * hold.uncached_blocks
        self.kept_stalled_blocks += stalled * hold.uncached_blocks
        for first, end in hold.runs:
            run = first
            while True:
                num_blocks = run.end_block - run.first_block
                if kept:
                    was, run.keepers = run.keepers, run.keepers + kept
                    self.kept_blocks += num_blocks * ((run.keepers > 0) - (was > 0))
                if stalled:
                    was, run.stalled_keepers = run.stalled_keepers, run.stalled_keepers + stalled
                    self.kept_stalled_blocks += num_blocks * ((run.stalled_keepers > 0) - (was > 0))
                if run.end_block == end:
                    break
                assert run.next_part is not None
                run = run.next_part

    # -- runs

    def _found(self, node: Node, block: int) -> BlockRun:
        for run in node.runs[self._side]:
            if run.first_block <= block < run.end_block:
                return run
        raise AssertionError(f"block {block} is not registered")

    def _cut(self, run: BlockRun, block: int) -> BlockRun:
        """Split a run before `block`; the second part is new, and whoever holds the first holds both."""
        rest = BlockRun(run.node, block, run.end_block, run.ref_cnt, run.is_first_copy)
        rest.keepers, rest.stalled_keepers = run.keepers, run.stalled_keepers
        run.end_block = block
        if run.ref_cnt:
            rest.next_part = run.next_part
            run.next_part = rest
        else:
            rest.owner = run.owner
            assert run.prev_free is not None
            self._link(rest, run.prev_free)  # the last block is handed out first
        run.node.ref_cnt += 1
        side = run.node.runs[self._side] if run.is_first_copy else run.node.later_copies[self._side]
        side.insert(side.index(run) + 1, rest)
        return rest

    def _cache(self, hold: BlockHold, node: Node, first: int, end: int) -> None:
        runs = node.runs[self._side]
        i = len(runs)
        while i and runs[i - 1].first_block >= first:
            i -= 1
        overlap = (i and runs[i - 1].end_block > first) or (i < len(runs) and runs[i].first_block < end)
        if overlap:
            self._cache_later_copies(hold, node, first, end)
            return
        if hold.runs:
            last, last_end = hold.runs[-1]
            if last.node is node and last.ref_cnt == 1 and last.is_first_copy and last.end_block == first == last_end:
                last.end_block = end
                hold.runs[-1] = (last, end)
                return
        run = _new(hold, node, first, end, True)
        runs.insert(i, run)
        hold.runs.append((run, end))

    def _cache_later_copies(self, hold: BlockHold, node: Node, first: int, end: int) -> None:
        """Register blocks some of which are known already: those become later copies."""
        runs = node.runs[self._side]
        at = first
        while at < end:
            i = 0
            while i < len(runs) and runs[i].end_block <= at:
                i += 1
            known = i < len(runs) and runs[i].first_block <= at
            upto = end if i == len(runs) else min(end, runs[i].end_block if known else runs[i].first_block)
            run = _new(hold, node, at, upto, not known)
            if known:
                node.later_copies[self._side].append(run)
            else:
                runs.insert(i, run)
            hold.runs.append((run, upto))
            at = upto

    def _give_back(self, run: BlockRun, owner: Owner | None) -> None:
        run.ref_cnt -= 1
        if run.ref_cnt:
            return
        num_blocks = run.end_block - run.first_block
        self.num_free_blocks += num_blocks
        run.next_part = None
        if owner is not None:
            owner.idle_blocks += num_blocks
            if owner.stalled:
                self.stalled_idle_blocks += num_blocks
        last = self._queue.prev_free
        assert last is not None
        if (
            last.first_block == run.end_block
            and last.node is run.node
            and last.owner is owner
            and last.is_first_copy
            and run.is_first_copy
        ):
            last.first_block = run.first_block
            self._remove(run)
            run.node.ref_cnt -= 1  # `last` still needs it
            return
        run.owner = owner
        self._link(run, last)

    def _evict(self, run: BlockRun, blocks: int) -> None:
        """Forget the last `blocks` blocks of a free run: they were handed out."""
        self.num_evicted_blocks += blocks
        end = run.end_block
        if blocks == end - run.first_block:
            self._unlink(run)
        elif run.owner is not None:
            run.owner.idle_blocks -= blocks
            if run.owner.stalled:
                self.stalled_idle_blocks -= blocks
        self._forget(run, end - blocks, end)

    def _forget(self, run: BlockRun, first: int, end: int) -> None:
        """These last blocks of a run are no longer registered; the next copies of them are found instead."""
        node = run.node
        if first == run.first_block:
            self._remove(run)
        else:
            run.end_block = first
        if run.is_first_copy and node.later_copies[self._side]:
            self._promote(node, first, end)
        if first == run.first_block:
            run.end_block = run.first_block
            self._tree.release(node)

    def _remove(self, run: BlockRun) -> None:
        node = run.node
        (node.runs if run.is_first_copy else node.later_copies)[self._side].remove(run)

    def _promote(self, node: Node, first: int, end: int) -> None:
        """The oldest later copy of each of these blocks becomes the one that is found."""
        at = first
        extra = node.later_copies[self._side]
        while at < end:
            upto = end
            oldest = None
            for copy in extra:
                if copy.first_block <= at < copy.end_block:
                    oldest = copy
                    break
                if at < copy.first_block < upto:
                    upto = copy.first_block
            if oldest is None:
                at = upto
                continue
            if oldest.first_block < at:
                oldest = self._cut(oldest, at)
            if oldest.end_block > upto:
                self._cut(oldest, upto)
            extra.remove(oldest)
            oldest.is_first_copy = True
            runs = node.runs[self._side]
            i = 0
            while i < len(runs) and runs[i].first_block < at:
                i += 1
            runs.insert(i, oldest)
            at = oldest.end_block

    # -- the free queue: a ring of runs

    def _link(self, run: BlockRun, ahead: BlockRun) -> None:
        behind = ahead.next_free
        assert behind is not None
        run.prev_free = ahead
        run.next_free = behind
        ahead.next_free = run
        behind.prev_free = run

    def _unqueue(self, run: BlockRun) -> None:
        ahead, behind = run.prev_free, run.next_free
        assert ahead is not None
        assert behind is not None
        ahead.next_free = behind
        behind.prev_free = ahead
        run.prev_free = run.next_free = None

    def _unlink(self, run: BlockRun) -> None:
        """Out of the queue, and no longer anybody's idle cache."""
        self._unqueue(run)
        owner = run.owner
        if owner is not None:
            num_blocks = run.end_block - run.first_block
            owner.idle_blocks -= num_blocks
            if owner.stalled:
                self.stalled_idle_blocks -= num_blocks
            run.owner = None


def _append(spans: list[Span], first: int, end: int) -> None:
    if spans and spans[-1][1] == first:
        first = spans.pop()[0]
    spans.append((first, end))


def _new(hold: BlockHold, node: Node, first: int, end: int, found: bool) -> BlockRun:
    """A run of blocks that were a holder's uncached ones, who alone holds it."""
    run = BlockRun(node, first, end, 1, found)
    node.ref_cnt += 1
    if hold.keeper is not None:
        run.keepers, run.stalled_keepers = 1, int(hold.keeper.stalled)
    return run


def _last_first(run: BlockRun, end: int) -> list[BlockRun]:
    """A run and what was split off it up to block `end`, the last part first."""
    chain = [run]
    while run.end_block != end:
        rest = run.next_part
        assert rest is not None
        chain.append(rest)
        run = rest
    chain.reverse()
    return chain
