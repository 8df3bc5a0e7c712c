"""Several KV cache groups in one pool, as vLLM's `HybridKVCacheCoordinator` has them: a hit ends where all agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ....traces.agreement import agree
from ....traces.arithmetic import div_ceil
from ...machine.engine_versions import STATES_ARE_MADE_KNOWN_AGAIN
from ...machine.kv_groups import CHUNKED_LOCAL, FULL, MAMBA, SLIDING_WINDOW
from ...machine.machine import Machine
from ..memory.block_pool import BlockPool
from ..memory.blocks import BlockHold, BlockRun, Node, Owner, Span
from ..memory.context_tree import ContextTree, Path
from ..memory.free_queue import FreeQueue
from .group_pool import ChunkedLocalPool, GroupHold, GroupPool, MambaPool, SlidingWindowPool
from .spans import blocks_of, intersection, up_to


class HybridHold(BlockHold):
    """What a call holds, group by group."""

    __slots__ = ("boundaries", "change_tokens", "groups", "shared_blocks", "step", "step_tokens")

    def __init__(self, groups: list[GroupHold], boundaries: list[int], shared_blocks: int) -> None:
        super().__init__(0)
        self.groups = groups
        self.boundaries = boundaries  # page positions at which others with this prompt may go on
        self.shared_blocks = shared_blocks  # what full groups had of the prompt when it started; 0: no more than all
        self.change_tokens = 0  # while it decodes: with how many computed tokens it next takes or gives back a page
        self.step = -1  # the iteration in which it computed something last, and how many tokens
        self.step_tokens = 0

    @property
    def num_blocks(self) -> int:
        """How far the context goes for which pages were taken, in blocks."""
        return self.groups[0].end_block


class HybridPool(BlockPool):
    """Pages of all groups on one side. Hits and contexts are in blocks of full attention, all else in pages."""

    def __init__(self, tree: ContextTree, blocks: int, side: int, machine: Machine) -> None:
        queue = FreeQueue(tree.empty.node, blocks)
        super().__init__(tree, blocks, side, queue)
        kinds = {
            FULL: GroupPool, SLIDING_WINDOW: SlidingWindowPool, CHUNKED_LOCAL: ChunkedLocalPool, MAMBA: MambaPool,
        }  # fmt: skip
        self.groups: list[GroupPool] = [
            kinds[group.kind](tree, blocks, side + 2 * at, queue, group, machine)
            for at, group in enumerate(machine.kv_groups)
        ]
        order = sorted(
            range(len(self.groups)),
            key=lambda at: (machine.kv_groups[at].kind != FULL, machine.kv_groups.index(machine.kv_groups[at])),
        )
        self._alike: list[list[int]] = []  # groups that are looked up together: full attention comes first
        for at in order:
            if self._alike and machine.kv_groups[self._alike[-1][0]] == machine.kv_groups[at]:
                self._alike[-1].append(at)
            else:
                self._alike.append([at])
        self._block_tokens = machine.block_tokens
        self._has_states = any(group.kind == MAMBA for group in machine.kv_groups)
        self._notes_states_again = machine.has(STATES_ARE_MADE_KNOWN_AGAIN)
        self._new_states: set[tuple[Node, int]] = set()  # those that the step computes which is being scheduled

    # -- hits

    def longest_hit(self, path: Path, limit: int) -> tuple[int, int]:
        """The end of the longest hit of at most `limit` blocks; and how far the full groups have the context."""
        return self.agreed(self.cached_spans_of(path, limit), limit)

    def agreed(self, spans: Sequence[Sequence[Span]], limit: int) -> tuple[int, int]:
        """The same, where these pages of each group are there."""
        common = [_in_all([spans[at] for at in alike]) for alike in self._alike]
        end, longest, first_round = limit, 0, True
        while True:
            before = end
            for alike, found in zip(self._alike, common, strict=True):
                group = self.groups[alike[0]]
                if group.group.kind == FULL:
                    if first_round:
                        longest = group.hit(found, limit)
                    end = min(end, longest)
                elif end:
                    end = group.hit(up_to(found, end), end)
            first_round = False
            if end >= before or len(self._alike) == 2:
                return end, longest

    def needed(self, end: int, start: int = 0) -> list[Span]:
        """By group: the pages that a hit of `end` blocks needs, from position `start` on."""
        return [(max(start, min(group.first_needed(end * self._block_tokens), end)), end) for group in self.groups]

    def needed_spans(self, end: int, start: int = 0) -> list[list[Span]]:
        """The same as spans: a hit at the end of a chunk needs nothing of its group."""
        return [[span] if span[0] < span[1] else [] for span in self.needed(end, start)]

    def idle_blocks(self, path: Path, hits: int, end: int) -> int:
        """Of the pages that `start` would hold, those that nobody holds."""
        idle = 0
        for group in self.groups:
            first = min(group.first_needed(end * self._block_tokens), hits)
            idle += group.cached_prefix(path, hits, first)[1]
        return idle

    def full_idle_blocks(self, path: Path, end: int) -> int:
        """Of the first `end` pages of groups of full attention, which are cached, those that nobody holds."""
        return sum([group.cached_prefix(path, end)[1] for group in self.groups if group.group.kind == FULL])

    def cached_prefix(self, path: Path, limit: int, start: int = 0) -> tuple[int, int]:
        assert not start, "a hit has no part"
        end, _ = self.longest_hit(path, limit)
        return end, self.idle_blocks(path, end, end)

    # -- calls

    def begin_step(self) -> None:
        """A step is going to be scheduled."""
        self._new_states.clear()

    def is_too_new(self, path: Path, hits: int) -> bool:
        """Whether a hit ends in a state that is computed in the step that is being scheduled."""
        if not self._new_states or not hits:
            return False
        return (_node_at(path, hits - 1), hits - 1) in self._new_states

    def whole_blocks(self, hits: int, end: int, tokens: int) -> int:
        """New pages that admission asks for, so that a whole prompt of so many tokens fits behind a hit.

        What comes between the hit and `end` blocks is loaded.
        """
        blocks = 0
        for group in self.groups:
            required = min(div_ceil(tokens, self._block_tokens), group.most_blocks())
            known = max(hits, group.first_needed(end * self._block_tokens))
            blocks += min(max(0, required - known), group.new_blocks(hits, tokens))
        return blocks

    def new_blocks(self, hold: HybridHold, tokens: int) -> int:
        """New pages with which a call has room for so many tokens."""
        return sum(
            [pool.new_blocks(held.end_block, tokens) for pool, held in zip(self.groups, hold.groups, strict=True)]
        )

    def chunk_blocks(self, hits: int, tokens: int) -> int:
        """The same for a call that is about to start with a hit."""
        return sum([pool.new_blocks(hits, tokens) for pool in self.groups])

    def start(self, path: Path, hits: int, end: int, prompt_tokens: int, shared_blocks: int) -> HybridHold:
        """Hold what the token behind `end` pages needs of a hit."""
        size = self._block_tokens
        boundaries = [(prompt_tokens - 1) // size]
        if shared_blocks:
            boundaries.append(shared_blocks)
        return HybridHold([group.start(path, hits, end) for group in self.groups], boundaries, shared_blocks)

    def next_change_tokens(self, hold: HybridHold, lag: int) -> int:
        """With how many computed tokens a decoding call next takes a page or gives one back, `lag` steps late."""
        change = hold.groups[0].end_block * self._block_tokens
        for pool, held in zip(self.groups, hold.groups, strict=True):
            change = min(change, pool.next_slide_tokens(held) + lag)
        return change

    def slide(self, hold: HybridHold, path: Path, tokens: int, owner: Owner | None) -> None:
        """Give back what no token behind so many ones needs."""
        for pool, held in zip(self.groups, hold.groups, strict=True):
            pool.slide(held, path, tokens, hold.boundaries, owner)

    def grow(self, hold: HybridHold, tokens: int) -> None:
        """Take pages for so many tokens."""
        self.get_new_blocks(self.new_blocks(hold, tokens))
        for pool, held in zip(self.groups, hold.groups, strict=True):
            pool.add(held, tokens)

    def cache_up_to(self, hold: HybridHold, path: Path, end: int) -> None:
        """What is full up to here, and kept by its group, can be found from now on."""
        for pool, held in zip(self.groups, hold.groups, strict=True):
            pool.cache_up_to(held, path, end, hold.boundaries)

    def note_states(self, hold: HybridHold, path: Path, end: int) -> None:
        """Before `cache_up_to`: the states that this step computes; in vLLM 0.32 that at the prompt's end, too."""
        if not self._has_states:
            return
        for pool, held in zip(self.groups, hold.groups, strict=True):
            if pool.group.kind != MAMBA:
                continue
            for block in held.state_blocks:
                new = held.cached_end_block <= block < end and pool.kept(block, block + 1, hold.boundaries)
                if new or (self._notes_states_again and block == end - 1 and end == hold.boundaries[0]):
                    self._new_states.add((_node_at(path, block), block))

    def release(self, hold: HybridHold, path: Path, known: int, owner: Owner | None) -> None:
        """A call gives up what it holds; `known` of its pages are full, and their content is known."""
        self.cache_up_to(hold, path, known)
        self.free(hold, owner)

    # -- pages that copies and pins hold

    def cached_spans_of(self, path: Path, limit: int) -> list[list[Span]]:
        """By group, what is cached of the first `limit` pages."""
        return [group.cached_spans(path, limit) for group in self.groups]

    def longest_that_fits(self, spans: Sequence[Sequence[Span]], limit: int, lacks: Callable[[int], int]) -> int:
        """The end of the longest hit, where these pages are there, for which there is room.

        `lacks`: how many pages of room are missing for a hit that ends there. A hit that is shorter by a block lacks at
        most two less in each group: a page less that is new, and one less that has to be held.
        """
        end, _ = self.agreed(spans, limit)
        while end and (lack := lacks(end)) > 0:
            shorter = max(1, lack // (2 * len(self.groups)))
            end, _ = self.agreed([up_to(found, end - shorter) for found in spans], end - shorter)
        return end

    def idle_in(self, path: Path, spans: Sequence[Sequence[Span]]) -> int:
        """How many of these cached pages nobody holds."""
        idle = 0
        for group, found in zip(self.groups, spans, strict=True):
            for first, end in found:
                idle += group.cached_prefix(path, end, first)[1]
        return idle

    def hold_spans(self, path: Path, spans: Sequence[Sequence[Span]]) -> HybridHold:
        """Hold these cached pages."""
        holds = []
        for group, found in zip(self.groups, spans, strict=True):
            hold = GroupHold(0, 0)
            for first, end in found:
                hold.parts += group.touch(path, end, first).parts
            holds.append(hold)
        return HybridHold(holds, [], 0)

    def held_hit(self, path: Path, end: int) -> HybridHold:
        """What somebody holds who held the pages of a hit."""
        holds = []
        for group, (first, upto) in zip(self.groups, self.needed(end), strict=True):
            hold = GroupHold(0, 0)
            hold.parts = group.parts_of(path, first, upto)
            holds.append(hold)
        return HybridHold(holds, [], 0)

    def hold_new(self, spans: Sequence[Sequence[Span]]) -> HybridHold:
        """Take new pages for these."""
        hold = HybridHold([GroupHold(0, 0) for _ in self.groups], [], 0)
        self.take_spans(hold, spans)
        return hold

    def take_spans(self, hold: HybridHold, spans: Sequence[Sequence[Span]]) -> None:
        """Take new pages for these, too."""
        for held, found in zip(hold.groups, spans, strict=True):
            blocks = blocks_of(found)
            self.get_new_blocks(blocks)
            held.uncached_blocks += blocks

    def cache_spans(self, hold: HybridHold, path: Path, spans: Sequence[Sequence[Span]]) -> None:
        """New pages that were taken for these have their content: others find them from now on."""
        for pool, held, found in zip(self.groups, hold.groups, spans, strict=True):
            for first, end in found:
                pool.cache_blocks(held, path, first, end)

    def extend(self, hold: HybridHold, end: int) -> None:
        """Take the pages that the token behind `end` blocks needs and a call does not hold."""
        for pool, held in zip(self.groups, hold.groups, strict=True):
            first = max(held.end_block, pool.first_needed(end * self._block_tokens))
            self.get_new_blocks(end - first)
            pool.append(held, first, end)

    # -- all groups together

    def free(self, hold: BlockHold, owner: Owner | None) -> None:
        assert isinstance(hold, HybridHold)
        self._stop_keeping_whole(hold)
        for pool, held in zip(self.groups, hold.groups, strict=True):
            pool.free(held, owner)

    def discard(self, hold: BlockHold, owner: Owner | None) -> int:
        assert isinstance(hold, HybridHold)
        self._stop_keeping_whole(hold)
        return sum([pool.discard(held, owner) for pool, held in zip(self.groups, hold.groups, strict=True)])

    def keep(self, hold: BlockHold, owner: Owner) -> None:
        assert isinstance(hold, HybridHold)
        hold.keeper = owner
        owner.kept_holds += (hold,)
        for pool, held in zip(self.groups, hold.groups, strict=True):
            held.keeper = owner
            pool.count(held, 1, int(owner.stalled))

    def _stop_keeping_whole(self, hold: HybridHold) -> None:
        keeper = hold.keeper
        if keeper is not None:
            keeper.kept_holds = tuple([kept for kept in keeper.kept_holds if kept is not hold])
            hold.keeper = None

    def count(self, hold: BlockHold, kept: int, stalled: int) -> None:
        assert isinstance(hold, HybridHold)
        for pool, held in zip(self.groups, hold.groups, strict=True):
            pool.count(held, kept, stalled)

    def evict_first(self, path: Path, end: int, moved: set[BlockRun]) -> None:
        for group in self.groups:
            group.evict_first(path, end, moved)

    # -- checks

    def check(self) -> None:
        self._queue.check()
        runs = [run for group in self.groups for run in group.all_runs()]
        free = [run for run in runs if not run.ref_cnt]
        agree(f"{self._name}: free runs", {id(run) for run in self._queue}, {id(run) for run in free})
        free_blocks = self._queue.uncached_blocks + sum([run.end_block - run.first_block for run in free])
        agree(f"{self._name}: free pages", self.num_free_blocks, free_blocks)

    def check_holds(self, holds: Iterable[tuple[BlockHold, int]]) -> None:
        """As `BlockPool`'s; how many pages a holder has uncached, each group's hold says itself."""
        groups: list[list[GroupHold]] = [[] for _ in self.groups]
        for hold, _ in holds:
            assert isinstance(hold, HybridHold)
            for of_group, held in zip(groups, hold.groups, strict=True):
                of_group.append(held)
        in_use = kept = 0
        for group, of_group in zip(self.groups, groups, strict=True):
            runs = [run for run in group.all_runs() if run.ref_cnt]
            parts = [part.end_block - part.first_block for held in of_group for part in held.parts]
            references = [run.ref_cnt * (run.end_block - run.first_block) for run in runs]
            agree(f"{self._name}: references to pages", sum(references), sum(parts))
            in_use += sum([run.end_block - run.first_block for run in runs])
            in_use += sum([held.uncached_blocks for held in of_group])
            kept += sum([run.end_block - run.first_block for run in runs if run.keepers])
            kept += sum([held.uncached_blocks for held in of_group if held.keeper is not None])
        agree(f"{self._name}: held pages", self.num_blocks - self.num_free_blocks, in_use)
        agree(f"{self._name}: pages that are kept", self.kept_blocks, kept)

    def _evict(self, run: BlockRun, blocks: int) -> None:
        self.groups[run.side // 2].forget_free(run, blocks)


def _in_all(spans: Sequence[Sequence[Span]]) -> Sequence[Span]:
    """What is in all of these."""
    common = spans[0]
    for others in spans[1:]:
        common = intersection(common, others)
    return common


def _node_at(path: Path, block: int) -> Node:
    """The node in which a page of a path lies."""
    for node, _, end in path:
        if block < end:
            return node
    raise AssertionError("the path ends before this block")
