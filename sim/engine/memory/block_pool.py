"""A pool of KV blocks with prefix caching: vLLM's rules, on runs of blocks instead of single blocks.

The rules (`BlockPool` and `KVCacheManager` of vLLM 0.26 to 0.32):

- A full block is cached: look-ups find it under its content, until it is evicted.
- A second block with the same content is cached, too. Look-ups find the first one; when that is evicted, the next one.
- Freed blocks join the free queue: cached ones at its end, others at its front; of one holder the last block first.
- New blocks are taken from the front of the queue, which evicts what they cache. A hit takes a block out of it.

A *run* is a stretch of blocks of one node of the context tree that have as many holders or, if they have none, lie side
by side in the free queue. What is done to a run costs the same however long it is. Blocks that are not cached have no
identity: the free ones are a number (`FreeQueue.uncached_blocks`), and so are a holder's.

Two lists of runs for a node, and a queue through them:

    node.runs          [ A: held by 2 ][ B: free ]        [ C: free ]       found by look-ups
    later copies                [ D: free      ]                            found when A or B are evicted
    free queue         head -> C -> B -> D -> head                          C is evicted first

See `cached_runs` for the lists and `_promote`, `free_queue` for the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ....traces.agreement import agree
from .blocks import BlockHold, BlockRun, HeldPart, Owner, Span
from .cached_runs import CachedRuns
from .context_tree import ContextTree, Path
from .free_queue import FreeQueue


class BlockPool:
    """`blocks` KV blocks on one side (0: GPU, 1: host)."""

    def __init__(self, tree: ContextTree, blocks: int, side: int = 0, queue: FreeQueue | None = None) -> None:
        self._name = f"the {('GPU', 'host')[side % 2]}'s pool"
        self._side = side
        self.num_blocks = blocks
        self._queue = queue if queue is not None else FreeQueue(tree.empty.node, blocks)
        self._cached = CachedRuns(tree, side, self._queue)

    @property
    def num_free_blocks(self) -> int:
        """Blocks in nobody's use."""
        return self._queue.num_free_blocks

    @property
    def num_evicted_blocks(self) -> int:
        """Cached blocks that were handed out again, since the start."""
        return self._queue.num_evicted_blocks

    @property
    def version(self) -> int:
        """Rises with everything that can let somebody find more, or need less, than before."""
        return self._queue.version

    @property
    def kept_blocks(self) -> int:
        """Blocks that are kept for owners without a running call, each once."""
        return self._queue.kept_blocks

    @property
    def kept_stalled_blocks(self) -> int:
        """Blocks that are kept for stalled owners, each once."""
        return self._queue.kept_stalled_blocks

    @property
    def in_use(self) -> bool:
        """Whether any block is held or cached."""
        return self._queue.uncached_blocks < self.num_blocks

    @property
    def stalled_idle_blocks(self) -> int:
        """Free blocks that cache the contexts of stalled owners."""
        return self._queue.stalled_blocks

    # -- questions

    def cached_prefix(self, path: Path, limit: int, start: int = 0) -> tuple[int, int]:
        """The end of the longest cached stretch from block `start` on, at most `limit`; and how many are free."""
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
        """The spans of the blocks `first` … `end − 1` that are not cached, by position."""
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
                    _join(spans, at, run.first_block)
                at = run.end_block if run.end_block < upto else upto
            if at < upto:
                _join(spans, at, upto)
                at = upto
        return spans

    def held_prefix(self, path: Path, limit: int) -> int:
        """How many of the first `limit` blocks are cached from the start on and held by somebody."""
        end, idle = self.cached_prefix(path, limit)
        return end - idle

    # -- taking

    def touch(self, path: Path, end: int, start: int = 0) -> BlockHold:
        """Hold the cached blocks `start` … `end − 1`, which the caller has just found."""
        self._queue.version += 1
        hold = BlockHold(start)
        cached, at = self._cached, start
        for node, _, upto in path:
            if upto <= at:
                continue
            if at >= end:
                break
            if upto > end:
                upto = end
            part = HeldPart(node, at, upto)
            for run in cached.found(node, at, upto):
                assert run.first_block == at, "the caller asked for blocks that are not cached"
                if not run.ref_cnt:
                    node.changes += 1
                    self._queue.remove(run)
                    self._queue.num_free_blocks -= run.end_block - run.first_block
                run.ref_cnt += 1
                at = run.end_block
            cached.join(part)
            hold.parts.append(part)
        hold.cached_end_block = at
        assert at == end, "the caller asked for blocks that are not cached"
        return hold

    def touched(self, path: Path, end: int) -> BlockHold:
        """What somebody holds who touched the first `end` blocks, and kept no more than that."""
        hold = BlockHold(0)
        hold.parts = [HeldPart(node, first, min(upto, end)) for node, first, upto in path if first < end]
        hold.cached_end_block = end
        return hold

    def allocate(self, hold: BlockHold, blocks: int) -> None:
        """Hand out `blocks` free blocks to a holder; what was cached in them is forgotten."""
        self.get_new_blocks(blocks)
        hold.uncached_blocks += blocks

    def get_new_blocks(self, blocks: int) -> None:
        """Hand out free blocks whose holder books them itself (see `BlockHold.uncached_blocks`)."""
        self._queue.num_free_blocks -= blocks
        assert self.num_free_blocks >= 0, "more blocks handed out than are free"
        if blocks <= self._queue.uncached_blocks:
            self._queue.uncached_blocks -= blocks
            return
        blocks -= self._queue.uncached_blocks
        self._queue.uncached_blocks = 0
        while blocks:
            run = self._queue.head.next_free
            assert run is not None
            num_blocks = run.end_block - run.first_block
            gone = num_blocks if num_blocks < blocks else blocks
            self._evict(run, gone)
            blocks -= gone

    def spares_stalled(self, blocks: int) -> bool:
        """Whether handing out so many blocks would take none that caches a stalled owner's context."""
        if not self._queue.stalled_blocks:
            return True
        blocks -= self._queue.uncached_blocks
        run = self._queue.head.next_free
        while blocks > 0:
            assert run is not None
            if run.owner is not None and run.owner.stalled:
                return False
            blocks -= run.end_block - run.first_block
            run = run.next_free
        return True

    def cache(self, hold: BlockHold, path: Path, end: int) -> None:
        """The holder's blocks up to `end` are full: from now on others find them."""
        first = hold.cached_end_block
        if end > first:
            self.cache_blocks(hold, path, first, end)
            hold.cached_end_block = end

    def cache_blocks(self, hold: BlockHold, path: Path, first: int, end: int) -> None:
        """Others find these blocks from now on. The holder has all of them, and none is cached."""
        self._queue.version += 1
        hold.uncached_blocks -= end - first
        assert hold.uncached_blocks >= 0, "more blocks cached than held"
        at = first
        for node, _, upto in path:
            if upto <= at:
                continue
            if at >= end:
                break
            upto = min(upto, end)
            self._cached.add(hold, node, at, upto)
            at = upto

    def keep(self, hold: BlockHold, owner: Owner) -> None:
        """Count these blocks as kept for an owner of whom no call runs, until they are given back.

        The holder has taken all that it will ever hold. A block that several keep counts once.
        """
        hold.keeper = owner
        owner.kept_holds += (hold,)
        self.count(hold, 1, owner.stalled)

    # -- giving back

    def free(self, hold: BlockHold, owner: Owner | None) -> None:
        """Give everything back, the last block first."""
        self._queue.version += 1
        if hold.keeper is not None:
            self._stop_keeping(hold, hold.keeper)
        self._queue.uncached_blocks += hold.uncached_blocks
        self._queue.num_free_blocks += hold.uncached_blocks
        hold.uncached_blocks = 0
        for part in reversed(hold.parts):
            for run in reversed(self._cached.runs_of(part)):
                self._give_back(run, owner)
            self._cached.join(part)
        hold.parts.clear()
        hold.cached_end_block = hold.start_block

    def discard(self, hold: BlockHold, owner: Owner | None) -> int:
        """Give everything back, and forget what nobody else holds: those blocks go first. How many they are."""
        self._queue.version += 1
        if hold.keeper is not None:
            self._stop_keeping(hold, hold.keeper)
        dropped = 0
        for part in reversed(hold.parts):
            for run in reversed(self._cached.runs_of(part)):
                if run.ref_cnt > 1:
                    run.ref_cnt -= 1
                    continue
                num_blocks = run.end_block - run.first_block
                run.ref_cnt = 0
                self._cached.forget(run, run.first_block, run.end_block)
                self._queue.uncached_blocks += num_blocks
                self._queue.num_free_blocks += num_blocks
                dropped += num_blocks
            self._cached.join(part)
        self._queue.uncached_blocks += hold.uncached_blocks
        self._queue.num_free_blocks += hold.uncached_blocks
        hold.uncached_blocks = 0
        hold.parts.clear()
        hold.cached_end_block = hold.start_block
        return dropped

    def evict_first(self, path: Path, end: int, moved: set[BlockRun]) -> None:
        """Let the free ones of these blocks be handed out before all other cached ones, the last first.

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
                    self._cached.split(run, upto)
                moved.add(run)
                self._queue.unlink(run)
                self._queue.link(run, self._queue.head)

    def set_stalled(self, owner: Owner, stalled: bool) -> None:
        """Count, or no longer count, an owner's blocks as those of a stalled one: free ones, and those kept for it."""
        if owner.stalled != stalled:
            owner.stalled = stalled
            self._queue.stalled_blocks += owner.idle_blocks if stalled else -owner.idle_blocks
            for hold in owner.kept_holds:
                self.count(hold, 0, 1 if stalled else -1)

    # -- checks

    def check(self) -> None:
        """Raises `CheckError` if the pool's structures do not agree with each other. It looks at everything."""
        self._queue.check()
        runs = self._cached.check()
        free = [run for run in runs if not run.ref_cnt]
        agree(f"{self._name}: free runs", {id(run) for run in self._queue}, {id(run) for run in free})
        agree(f"{self._name}: free blocks", self.num_free_blocks, self._queue.uncached_blocks + _blocks_of(free))
        agree(f"{self._name}: whether there are free blocks without content", self._queue.uncached_blocks >= 0, True)
        for run in runs:
            keepers = 0 <= run.stalled_keepers <= run.keepers <= run.ref_cnt
            agree(f"{self._name}: whether those who keep a run hold it", keepers, True)

    def check_holds(self, holds: Iterable[tuple[BlockHold, int]]) -> None:
        """Raises `CheckError` if these are not all holders. Of each is given how many blocks it holds uncached."""
        runs = self._cached.check()
        cached = uncached = kept = 0
        for hold, uncached_blocks in holds:
            cached += hold.cached_end_block - hold.start_block
            uncached += uncached_blocks
            kept += uncached_blocks if hold.keeper is not None else 0
        held = [run for run in runs if run.ref_cnt]
        agree(
            f"{self._name}: references to blocks",
            sum(run.ref_cnt * (run.end_block - run.first_block) for run in held),
            cached,
        )
        agree(f"{self._name}: held blocks", self.num_blocks - self.num_free_blocks, _blocks_of(held) + uncached)
        kept += _blocks_of([run for run in held if run.keepers])
        agree(f"{self._name}: blocks that are kept", self.kept_blocks, kept)

    # -- blocks that are kept

    def _stop_keeping(self, hold: BlockHold, keeper: Owner) -> None:
        self.count(hold, -1, -keeper.stalled)
        keeper.kept_holds = tuple([kept for kept in keeper.kept_holds if kept is not hold])
        hold.keeper = None

    def count(self, hold: BlockHold, kept: int, stalled: int) -> None:
        """So many more keep these blocks, and so many more stalled ones."""
        self._queue.kept_blocks += kept * hold.uncached_blocks
        self._queue.kept_stalled_blocks += stalled * hold.uncached_blocks
        for part in hold.parts:
            for run in self._cached.runs_of(part):
                num_blocks = run.end_block - run.first_block
                if kept:
                    was, run.keepers = run.keepers, run.keepers + kept
                    self._queue.kept_blocks += num_blocks * ((run.keepers > 0) - (was > 0))
                if stalled:
                    was, run.stalled_keepers = run.stalled_keepers, run.stalled_keepers + stalled
                    self._queue.kept_stalled_blocks += num_blocks * ((run.stalled_keepers > 0) - (was > 0))
            self._cached.join(part)

    def _give_back(self, run: BlockRun, owner: Owner | None) -> None:
        run.ref_cnt -= 1
        if run.ref_cnt:
            return
        run.node.changes += 1
        self._queue.num_free_blocks += run.end_block - run.first_block
        run.next_part = None
        run.is_named = False
        if self._queue.append(run, owner):
            self._cached.remove(run)
            run.node.ref_cnt -= 1  # the run that has its blocks now still needs it

    def _evict(self, run: BlockRun, blocks: int) -> None:
        self.forget_free(run, blocks)

    def forget_free(self, run: BlockRun, blocks: int) -> None:
        """Forget the last `blocks` blocks of a free run: they were handed out."""
        self._queue.num_evicted_blocks += blocks
        end = run.end_block
        if blocks == end - run.first_block:
            self._queue.remove(run)
        elif run.owner is not None:
            self._queue.count(run.owner, -blocks)
        self._cached.forget(run, end - blocks, end)


def _blocks_of(runs: Iterable[BlockRun]) -> int:
    return sum(run.end_block - run.first_block for run in runs)


def _join(spans: list[Span], first: int, end: int) -> None:
    if spans and spans[-1][1] == first:
        first = spans.pop()[0]
    spans.append((first, end))


MakePool = Callable[[ContextTree, int, int], BlockPool]  # of so many blocks, for one side
