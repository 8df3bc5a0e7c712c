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

    __slots__ = ("idle_blocks", "kept", "name", "stalled")

    def __init__(self, name: str) -> None:
        self.name = name
        self.idle_blocks = 0  # registered and free
        self.kept: list[Hold] = []  # what is held for it although no call of its runs
        self.stalled = False


class Run:
    """Blocks `first` … `end − 1` of a node's contexts: one copy of each, all with the same holders."""

    __slots__ = (
        "ahead", "behind", "end", "first", "found", "kept", "kept_stalled", "node", "owner", "refs", "rest",
    )  # fmt: skip

    def __init__(self, node: Node, first: int, end: int, refs: int, found: bool) -> None:
        self.node = node
        self.first = first
        self.end = end
        self.refs = refs
        self.kept = 0  # of the holders, those that keep it for an owner (see `KvPool.keep`)
        self.kept_stalled = 0  # of these, those that keep it for a stalled one
        self.found = found  # by look-ups; otherwise an earlier copy is
        self.rest: Run | None = None  # what a holder of the run before it was split holds too
        self.ahead: Run | None = None  # neighbours in the free queue
        self.behind: Run | None = None
        self.owner: Owner | None = None  # while it is free


class Hold:
    """Blocks that somebody holds, from the first block of a context on: registered ones, then `blank` others."""

    __slots__ = ("blank", "keeper", "registered", "runs", "start")

    def __init__(self, start: int) -> None:
        self.keeper: Owner | None = None  # for whom it is kept, if no running call holds it
        self.start = start  # the first block; 0 but for copies of a part
        self.runs: list[tuple[Run, int]] = []  # (first run, end block): with what was split off it up to there
        self.registered = start  # end of the registered part
        self.blank = 0  # blocks behind it that are not registered

    @property
    def blocks(self) -> int:
        return self.registered - self.start + self.blank


class KvPool:
    """`blocks` KV blocks on one side (0: GPU, 1: host)."""

    def __init__(self, tree: ContextTree, blocks: int, side: int = 0) -> None:
        self._tree = tree
        self._side = side
        self.blocks = blocks
        self.free = blocks  # in nobody's use
        self._blank = blocks  # of these, not registered
        self.evicted = 0  # registered blocks that were handed out again
        self.version = 0  # rises with everything that can let somebody find more, or need less, than before
        self.stalled_idle = 0  # free blocks that cache the contexts of stalled owners
        self.kept = 0  # blocks that are kept for owners without a running call, each once
        self.kept_stalled = 0  # blocks that are kept for stalled owners, each once
        self._queue = Run(tree.empty.node, -1, -1, 0, False)  # a ring: behind it the first to be handed out
        self._queue.ahead = self._queue.behind = self._queue

    @property
    def touched(self) -> bool:
        """Whether any block is held or registered."""
        return self._blank < self.blocks

    # -- questions

    def hits(self, path: Path, limit: int, start: int = 0) -> tuple[int, int]:
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
                if run.end <= at:
                    continue
                if run.first > at:
                    break
                taken = (run.end if run.end < end else end) - at
                if taken <= 0:
                    break
                if not run.refs:
                    idle += taken
                at += taken
            if at < end or at == limit:
                break
        return at, idle

    def missing(self, path: Path, first: int, end: int) -> list[Span]:
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
                if run.end <= at:
                    continue
                if run.first >= upto:
                    break
                if run.first > at:
                    _append(spans, at, run.first)
                at = run.end if run.end < upto else upto
            if at < upto:
                _append(spans, at, upto)
                at = upto
        return spans

    def held(self, path: Path, limit: int) -> int:
        """How many of the first `limit` blocks are registered from the start on and held by somebody."""
        end, idle = self.hits(path, limit)
        return end - idle

    # -- taking

    def open(self, path: Path, end: int, start: int = 0) -> Hold:
        """Hold the registered blocks `start` … `end − 1`, which the caller has just found."""
        self.version += 1
        hold = Hold(start)
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
                if run.first < at:
                    run = self._cut(run, at)
                if run.end > upto:
                    self._cut(run, upto)
                if not run.refs:
                    self._unlink(run)
                    self.free -= run.end - run.first
                run.refs += 1
                hold.runs.append((run, run.end))
                at = run.end
        hold.registered = at
        assert at == end, "the caller asked for blocks that are not registered"
        return hold

    def take(self, hold: Hold, blocks: int) -> None:
        """Hand out `blocks` free blocks to a holder; what was cached in them is forgotten."""
        self.allocate(blocks)
        hold.blank += blocks

    def allocate(self, blocks: int) -> None:
        """Hand out free blocks whose holder books them itself (see `Hold.blank`)."""
        self.free -= blocks
        assert self.free >= 0, "more blocks handed out than are free"
        if blocks <= self._blank:
            self._blank -= blocks
            return
        blocks -= self._blank
        self._blank = 0
        while blocks:
            run = self._queue.behind
            assert run is not None
            size = run.end - run.first
            gone = size if size < blocks else blocks
            self._evict(run, gone)
            blocks -= gone

    def spares_stalled(self, blocks: int) -> bool:
        """Whether handing out so many blocks would take none that caches a stalled owner's context."""
        if not self.stalled_idle:
            return True
        blocks -= self._blank
        run = self._queue.behind
        while blocks > 0:
            assert run is not None
            if run.owner is not None and run.owner.stalled:
                return False
            blocks -= run.end - run.first
            run = run.behind
        return True

    def register(self, hold: Hold, path: Path, end: int) -> None:
        """The holder's blocks up to `end` are full: from now on others find them."""
        at = hold.registered
        if end <= at:
            return
        self.version += 1
        hold.blank -= end - at
        assert hold.blank >= 0, "more blocks registered than held"
        for node, _, upto in path:
            if upto <= at:
                continue
            if at >= end:
                break
            upto = min(upto, end)
            self._register(hold, node, at, upto)
            at = upto
        hold.registered = end

    def keep(self, hold: Hold, owner: Owner) -> None:
        """Count these blocks as kept for an owner of whom no call runs, until they are given back.

        The holder has taken all that it will ever hold. A block that several keep counts once.
        """
        hold.keeper = owner
        owner.kept.append(hold)
        self._count(hold, 1, owner.stalled)

    # -- giving back

    def release(self, hold: Hold, owner: Owner | None) -> None:
        """Give everything back, the last block first."""
        self.version += 1
        if hold.keeper is not None:
            self._keep_no_more(hold, hold.keeper)
        self._blank += hold.blank
        self.free += hold.blank
        hold.blank = 0
        for first, end in reversed(hold.runs):
            for run in _last_first(first, end):
                self._give_back(run, owner)
        hold.runs.clear()
        hold.registered = hold.start

    def drop(self, hold: Hold, owner: Owner | None) -> int:
        """Give everything back, and forget what nobody else holds: those blocks go first. How many they are."""
        self.version += 1
        if hold.keeper is not None:
            self._keep_no_more(hold, hold.keeper)
        dropped = 0
        for first, end in reversed(hold.runs):
            for run in _last_first(first, end):
                if run.refs > 1:
                    run.refs -= 1
                    continue
                size = run.end - run.first
                run.refs = 0
                self._forget(run, run.first, run.end)
                self._blank += size
                self.free += size
                dropped += size
        self._blank += hold.blank
        self.free += hold.blank
        hold.blank = 0
        hold.runs.clear()
        hold.registered = hold.start
        return dropped

    def expose(self, path: Path, end: int, moved: set[Run]) -> None:
        """Let the free ones of these blocks be handed out before all other registered ones, the last first.

        But for those that were `moved` there before, which are added to: who keeps a block longest says when it goes.
        """
        for node, first, upto in path:
            upto = min(upto, end)
            for run in [r for r in node.runs[self._side] if not r.refs and r.first < upto and r.end > first]:
                if run in moved:
                    continue
                if run.end > upto:
                    self._cut(run, upto)
                moved.add(run)
                self._unlink_keep(run)
                self._link(run, self._queue)

    def set_stalled(self, owner: Owner, stalled: bool) -> None:
        """Count, or no longer count, an owner's blocks as those of a stalled one: free ones, and those kept for it."""
        if owner.stalled != stalled:
            owner.stalled = stalled
            self.stalled_idle += owner.idle_blocks if stalled else -owner.idle_blocks
            for hold in owner.kept:
                self._count(hold, 0, 1 if stalled else -1)

    # -- blocks that are kept

    def _keep_no_more(self, hold: Hold, keeper: Owner) -> None:
        self._count(hold, -1, -keeper.stalled)
        keeper.kept.remove(hold)
        hold.keeper = None

    def _count(self, hold: Hold, kept: int, stalled: int) -> None:
        """So many more keep these blocks, and so many more stalled ones."""
        self.kept += kept * hold.blank
        self.kept_stalled += stalled * hold.blank
        for first, end in hold.runs:
            run = first
            while True:
                size = run.end - run.first
                if kept:
                    was, run.kept = run.kept, run.kept + kept
                    self.kept += size * ((run.kept > 0) - (was > 0))
                if stalled:
                    was, run.kept_stalled = run.kept_stalled, run.kept_stalled + stalled
                    self.kept_stalled += size * ((run.kept_stalled > 0) - (was > 0))
                if run.end == end:
                    break
                assert run.rest is not None
                run = run.rest

    # -- runs

    def _found(self, node: Node, block: int) -> Run:
        for run in node.runs[self._side]:
            if run.first <= block < run.end:
                return run
        raise AssertionError(f"block {block} is not registered")

    def _cut(self, run: Run, block: int) -> Run:
        """Split a run before `block`; the second part is new, and whoever holds the first holds both."""
        rest = Run(run.node, block, run.end, run.refs, run.found)
        rest.kept, rest.kept_stalled = run.kept, run.kept_stalled
        run.end = block
        if run.refs:
            rest.rest = run.rest
            run.rest = rest
        else:
            rest.owner = run.owner
            assert run.ahead is not None
            self._link(rest, run.ahead)  # the last block is handed out first
        run.node.refs += 1
        side = run.node.runs[self._side] if run.found else run.node.extra[self._side]
        side.insert(side.index(run) + 1, rest)
        return rest

    def _register(self, hold: Hold, node: Node, first: int, end: int) -> None:
        runs = node.runs[self._side]
        i = len(runs)
        while i and runs[i - 1].first >= first:
            i -= 1
        overlap = (i and runs[i - 1].end > first) or (i < len(runs) and runs[i].first < end)
        if overlap:
            self._register_copies(hold, node, first, end)
            return
        if hold.runs:
            last, last_end = hold.runs[-1]
            if last.node is node and last.refs == 1 and last.found and last.end == first == last_end:
                last.end = end
                hold.runs[-1] = (last, end)
                return
        run = _new(hold, node, first, end, True)
        runs.insert(i, run)
        hold.runs.append((run, end))

    def _register_copies(self, hold: Hold, node: Node, first: int, end: int) -> None:
        """Register blocks some of which are known already: those become later copies."""
        runs = node.runs[self._side]
        at = first
        while at < end:
            i = 0
            while i < len(runs) and runs[i].end <= at:
                i += 1
            known = i < len(runs) and runs[i].first <= at
            upto = end if i == len(runs) else min(end, runs[i].end if known else runs[i].first)
            run = _new(hold, node, at, upto, not known)
            if known:
                node.extra[self._side].append(run)
            else:
                runs.insert(i, run)
            hold.runs.append((run, upto))
            at = upto

    def _give_back(self, run: Run, owner: Owner | None) -> None:
        run.refs -= 1
        if run.refs:
            return
        size = run.end - run.first
        self.free += size
        run.rest = None
        if owner is not None:
            owner.idle_blocks += size
            if owner.stalled:
                self.stalled_idle += size
        last = self._queue.ahead
        assert last is not None
        if last.first == run.end and last.node is run.node and last.owner is owner and last.found and run.found:
            last.first = run.first
            self._remove(run)
            run.node.refs -= 1  # `last` still needs it
            return
        run.owner = owner
        self._link(run, last)

    def _evict(self, run: Run, blocks: int) -> None:
        """Forget the last `blocks` blocks of a free run: they were handed out."""
        self.evicted += blocks
        end = run.end
        if blocks == end - run.first:
            self._unlink(run)
        elif run.owner is not None:
            run.owner.idle_blocks -= blocks
            if run.owner.stalled:
                self.stalled_idle -= blocks
        self._forget(run, end - blocks, end)

    def _forget(self, run: Run, first: int, end: int) -> None:
        """These last blocks of a run are no longer registered; the next copies of them are found instead."""
        node = run.node
        if first == run.first:
            self._remove(run)
        else:
            run.end = first
        if run.found and node.extra[self._side]:
            self._promote(node, first, end)
        if first == run.first:
            run.end = run.first
            self._tree.release(node)

    def _remove(self, run: Run) -> None:
        node = run.node
        (node.runs if run.found else node.extra)[self._side].remove(run)

    def _promote(self, node: Node, first: int, end: int) -> None:
        """The oldest later copy of each of these blocks becomes the one that is found."""
        at = first
        extra = node.extra[self._side]
        while at < end:
            upto = end
            oldest = None
            for copy in extra:
                if copy.first <= at < copy.end:
                    oldest = copy
                    break
                if at < copy.first < upto:
                    upto = copy.first
            if oldest is None:
                at = upto
                continue
            if oldest.first < at:
                oldest = self._cut(oldest, at)
            if oldest.end > upto:
                self._cut(oldest, upto)
            extra.remove(oldest)
            oldest.found = True
            runs = node.runs[self._side]
            i = 0
            while i < len(runs) and runs[i].first < at:
                i += 1
            runs.insert(i, oldest)
            at = oldest.end

    # -- the free queue: a ring of runs

    def _link(self, run: Run, ahead: Run) -> None:
        behind = ahead.behind
        assert behind is not None
        run.ahead = ahead
        run.behind = behind
        ahead.behind = run
        behind.ahead = run

    def _unlink_keep(self, run: Run) -> None:
        ahead, behind = run.ahead, run.behind
        assert ahead is not None
        assert behind is not None
        ahead.behind = behind
        behind.ahead = ahead
        run.ahead = run.behind = None

    def _unlink(self, run: Run) -> None:
        """Out of the queue, and no longer anybody's idle cache."""
        self._unlink_keep(run)
        owner = run.owner
        if owner is not None:
            size = run.end - run.first
            owner.idle_blocks -= size
            if owner.stalled:
                self.stalled_idle -= size
            run.owner = None


def _append(spans: list[Span], first: int, end: int) -> None:
    if spans and spans[-1][1] == first:
        first = spans.pop()[0]
    spans.append((first, end))


def _new(hold: Hold, node: Node, first: int, end: int, found: bool) -> Run:
    """A run of blocks that were blank ones of a holder, who alone holds it."""
    run = Run(node, first, end, 1, found)
    node.refs += 1
    if hold.keeper is not None:
        run.kept, run.kept_stalled = 1, int(hold.keeper.stalled)
    return run


def _last_first(run: Run, end: int) -> list[Run]:
    """A run and what was split off it up to block `end`, the last part first."""
    chain = [run]
    while run.end != end:
        rest = run.rest
        assert rest is not None
        chain.append(rest)
        run = rest
    chain.reverse()
    return chain
