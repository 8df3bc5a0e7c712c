"""Copies, uploads and pins where the KV cache has several groups: of a context, the pages that a hit at its end needs.

A context of n blocks is, in each group, what the next token needs (see `group_pool`): that is held, moved and found
again. Where a group has lost some of it, or never kept it, the context goes back to the longest one that all have.
Facts count pages in what is copied, and blocks of full attention in how far a context goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....policies.execution.agent_cache import Upload
from ....policies.execution.copy_rules import blocks_to_move, may_pin, ready_blocks
from ....policies.interface import Move
from ....traces import events as e
from ...machine.timing import seconds
from ..memory.blocks import BlockHold, Span
from ..memory.context_tree import Path
from ..memory.copies import Copies
from ..memory.link import Link
from ..memory.marks import Marks, between, mark, unmark
from ..requests import EngineCall, HostCopy, SimAgent, State
from .hybrid_pool import HybridHold, HybridPool
from .spans import blocks_of, clipped, marked_spans, minus, union

GroupSpans = list[list[Span]]  # by group, of one context


class HybridCopies(Copies):
    """The same rules as `Copies`, by group."""

    def __init__(self, gpu: HybridPool, host: HybridPool, link: Link, block_tokens: int) -> None:
        super().__init__(gpu, host, link, block_tokens)
        self._gpu_groups = gpu
        self._host_groups = host
        self._group_storing: list[Marks] = [{} for _ in gpu.groups]
        self._group_loading: list[Marks] = [{} for _ in gpu.groups]

    # -- offload

    def offload(self, agent: SimAgent, move: Move, now_ps: int) -> None:
        gpu, host = self._gpu_groups, self._host_groups
        context, upto = agent.context, blocks_to_move(agent, move)
        path = self._path(context)
        on_host, coming = host.cached_spans_of(path, upto), self._marked(path, upto, self._group_storing)
        there = [union(a, b) for a, b in zip(on_host, coming, strict=True)]
        all_there = [union(a, b) for a, b in zip(there, gpu.cached_spans_of(path, upto), strict=True)]

        def missing(end: int) -> GroupSpans:
            return [minus([span], found) for span, found in zip(host.needed(end), there, strict=True)]

        def lacks(end: int) -> int:
            return _count(missing(end)) + host.idle_in(path, _both(host.needed(end), on_host)) - host.num_free_blocks

        end = host.longest_that_fits(all_there, upto, lacks)
        saved_blocks = agent.host.num_blocks if agent.host is not None else 0
        if self.refusing or agent.offloading or agent.gone or end <= saved_blocks:
            self.report(e.OffloadRefused(seconds(now_ps), agent.name))
            return
        spans = missing(end)
        blocks = _count(spans)
        prefix = host.hold_spans(path, _both(host.needed(end), on_host))
        target = host.hold_new(spans)
        source = gpu.hold_spans(path, spans)
        gpu.keep(source, agent.owner)
        agent.offloading = True
        self._mark(path, spans, self._group_storing)
        self.report(e.OffloadStarted(seconds(now_ps), agent.name, blocks, end))

        def done(at_ps: int) -> None:
            self._unmark(path, spans, self._group_storing)
            host.cache_spans(target, path, spans)
            if move.keep:
                gpu.free(source, agent.owner)
            else:
                gpu.discard(source, agent.owner)
            agent.offloading = False
            host.free(target, None)
            host.free(prefix, None)
            held, _ = host.longest_hit(path, end)
            self.report(e.OffloadFinished(seconds(at_ps), agent.name, blocks, held))
            if not agent.gone:
                if agent.host is not None:
                    host.free(self.held_on_host(agent.host), None)
                host.hold_spans(path, host.needed_spans(held))
                agent.host = HostCopy(context, held)

        self._to_host(blocks, self.next_step_ps, now_ps, done)

    def held_on_host(self, copy: HostCopy) -> BlockHold:
        return self._host_groups.held_hit(self._path(copy.context), copy.num_blocks)

    # -- write-through

    def store(self, call: EngineCall, upto: int, now_ps: int, from_ps: int) -> None:
        gpu, host, path, first = self._gpu_groups, self._host_groups, call.path, call.stored_blocks
        if upto <= first:
            return
        on_gpu = clipped(gpu.cached_spans_of(path, upto), first)
        on_host, coming = host.cached_spans_of(path, upto), self._marked(path, upto, self._group_storing)
        spans = [minus(a, union(b, c)) for a, b, c in zip(on_gpu, on_host, coming, strict=True)]
        blocks = _count(spans)
        if blocks:
            kept = host.hold_spans(path, clipped(on_host, first))
            room = host.num_free_blocks >= blocks
            target = host.hold_new(spans) if room else None
            host.free(kept, None)
            if target is None:
                self.report(e.StoreRefused(seconds(now_ps), call.id, blocks))
                return
            self._store_spans(call, spans, target, now_ps, from_ps)
        call.stored_blocks = upto

    def _store_spans(self, call: EngineCall, spans: GroupSpans, target: HybridHold, now_ps: int, from_ps: int) -> None:
        gpu, host, path, owner = self._gpu_groups, self._host_groups, call.path, call.agent.owner
        source = gpu.hold_spans(path, spans)
        self._mark(path, spans, self._group_storing)
        call.store_sources.append(source)
        blocks = _count(spans)
        self.report(e.StoreStarted(seconds(now_ps), call.id, blocks))

        def done(at_ps: int) -> None:
            self._unmark(path, spans, self._group_storing)
            host.cache_spans(target, path, spans)
            host.free(target, None)
            gpu.free(source, owner)
            call.store_sources.remove(source)
            self.report(e.StoreFinished(seconds(at_ps), call.id, blocks))

        self._link.to_host(blocks, from_ps, done)

    def store_rest(self, call: EngineCall, upto: int, now_ps: int, from_ps: int) -> None:
        self.store(call, upto, now_ps, from_ps)

    def used(self, call: EngineCall, upto: int) -> None:
        host = self._host_groups
        host.free(host.hold_spans(call.path, host.cached_spans_of(call.path, upto)), None)

    def coming(self, call: EngineCall, at: int) -> bool:
        """Whether more of a waiting call's prompt than its first `at` blocks is being written to the host."""
        path, limit = call.path, call.most_hit_blocks
        coming = self._marked(path, limit, self._group_storing)
        if not any(coming):
            return False
        host = self._host_groups
        found = [union(a, b) for a, b in zip(host.cached_spans_of(path, limit), coming, strict=True)]
        return host.agreed(_with_prefix(found, at), limit)[0] > at

    # -- load on demand

    def host_hits(self, call: EngineCall, gpu_hit_blocks: int) -> int:
        host = self._host_groups
        if not host.in_use:
            return gpu_hit_blocks
        found = host.cached_spans_of(call.path, call.most_hit_blocks)
        return max(gpu_hit_blocks, host.agreed(_with_prefix(found, gpu_hit_blocks), call.most_hit_blocks)[0])

    def under_way(self, call: EngineCall, first: int, end: int) -> bool:
        needed = self._host_groups.needed(end, first)
        for marks in (self._group_storing, self._group_loading):
            for (start, upto), found in zip(needed, self._marked(call.path, end, marks), strict=True):
                if any(a < upto and b > start for a, b in found):
                    return True
        return False

    def load(self, call: EngineCall, first: int, end: int, now_ps: int) -> None:
        gpu, host, path = self._gpu_groups, self._host_groups, call.path
        hold = call.hold
        assert isinstance(hold, HybridHold)
        spans = gpu.needed_spans(end, first)
        blocks = _count(spans)
        gpu.extend(hold, end)
        source = host.hold_spans(path, spans)
        self._mark(path, spans, self._group_loading)
        call.state = State.LOADING
        call.stored_blocks = end
        call.gpu_hit_tokens = first * self._block_tokens
        call.host_hit_tokens = (end - first) * self._block_tokens
        self.report(e.LoadStarted(seconds(now_ps), call.id, blocks, first))

        def done(at_ps: int) -> None:
            self._unmark(path, spans, self._group_loading)
            host.free(source, None)
            gpu.cache_up_to(hold, path, end)
            call.num_computed_tokens = end * self._block_tokens
            call.state = State.LOADED
            self.report(e.LoadFinished(seconds(at_ps), call.id, blocks))

        self._link.to_gpu(blocks, self.next_step_ps, done)

    # -- upload ahead of the call

    def upload(self, agent: SimAgent, move: Move, now_ps: int) -> None:
        """An agent has one upload at a time: what a second one would add is more than its pages (windows move on)."""
        gpu, host = self._gpu_groups, self._host_groups
        path, upto = self._path(agent.context), blocks_to_move(agent, move)
        on_gpu = gpu.cached_spans_of(path, upto)
        there = [union(a, b) for a, b in zip(on_gpu, host.cached_spans_of(path, upto), strict=True)]

        def missing(end: int) -> GroupSpans:
            return [minus([span], found) for span, found in zip(gpu.needed(end), on_gpu, strict=True)]

        def lacks(end: int) -> int:
            return _count(missing(end)) + gpu.idle_in(path, _both(gpu.needed(end), on_gpu)) - gpu.num_free_blocks

        end = gpu.longest_that_fits(there, upto, lacks)
        refused = self.refusing or agent.gone or agent.waiting > 0 or bool(agent.uploads)
        if refused or end <= gpu.agreed(on_gpu, upto)[0]:
            self.report(e.UploadRefused(seconds(now_ps), agent.name))
            return
        spans = missing(end)
        blocks = _count(spans)
        hold = gpu.hold_spans(path, _both(gpu.needed(end), on_gpu))
        gpu.take_spans(hold, spans)
        source = host.hold_spans(path, spans)
        self._mark(path, spans, self._group_loading)
        upload: Upload[BlockHold, int] = Upload(hold, 0, blocks, now_ps)
        agent.uploads += (upload,)
        gpu.keep(hold, agent.owner)
        self.report(e.UploadStarted(seconds(now_ps), agent.name, blocks))

        def done(at_ps: int) -> None:
            self._unmark(path, spans, self._group_loading)
            host.free(source, None)
            if upload.cancelled:
                self._give_up(agent, upload)
                self.report(e.UploadReleased(seconds(at_ps), agent.name, upload.num_blocks))
                return
            gpu.cache_spans(hold, path, spans)
            upload.ready_at = at_ps
            self.report(e.UploadFinished(seconds(at_ps), agent.name, ready_blocks(agent)))

        self._link.to_gpu(blocks, self.next_step_ps, done)

    # -- pins

    def pin(self, agent: SimAgent, until_ps: int) -> None:
        agent.pin_until = until_ps
        if may_pin(agent, self.refusing):
            gpu, path = self._gpu_groups, self._path(agent.context)
            end, _ = gpu.longest_hit(path, agent.context_blocks)
            if end:
                agent.pin = gpu.hold_spans(path, gpu.needed_spans(end))
                self.pinned[agent.name] = agent
                gpu.keep(agent.pin, agent.owner)

    # -- what is being copied

    def _to_host(self, blocks: int, from_ps: int, now_ps: int, done: Callable[[int], None]) -> None:
        if blocks:
            self._link.to_host(blocks, from_ps, done)
        else:
            done(now_ps)

    def _marked(self, path: Path, limit: int, marks: Sequence[Marks]) -> GroupSpans:
        return [marked_spans(path, limit, of_group) for of_group in marks]

    def _mark(self, path: Path, spans: GroupSpans, marks: Sequence[Marks]) -> None:
        for of_group, found in zip(marks, spans, strict=True):
            for first, end in found:
                mark(path, first, end, of_group)

    def _unmark(self, path: Path, spans: GroupSpans, marks: Sequence[Marks]) -> None:
        for of_group, found in zip(marks, spans, strict=True):
            for first, end in found:
                unmark(path, first, end, of_group)


def _count(spans: Sequence[Sequence[Span]]) -> int:
    return sum([blocks_of(found) for found in spans])


def _both(needed: Sequence[Span], spans: Sequence[Sequence[Span]]) -> GroupSpans:
    """By group: what is needed and there."""
    return [between(minus([span], found), span[0], span[1]) for span, found in zip(needed, spans, strict=True)]


def _with_prefix(spans: Sequence[Sequence[Span]], end: int) -> GroupSpans:
    """These, and in every group the first `end` blocks."""
    return [union([(0, end)], found) if end else list(found) for found in spans]
