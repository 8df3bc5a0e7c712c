"""Everything that copies, where several KV cache groups share the pools: of a context, what a hit needs.

A hit at a boundary needs other pages of each group (`page_rules`). So an offload saves the pages of one boundary, the
last up to which all of them can be had, and an upload or a load brings back those of the last one that can be brought
back whole. Facts count pages where they say what was copied, and blocks of the context where they say how far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....policies.execution.agent_cache import Upload
from ....policies.execution.copy_rules import BlockSpan, blocks_to_move, may_pin, ready_blocks
from ....policies.interface import Move
from ....traces import events as e
from ....traces.arithmetic import div_ceil
from ....traces.events import Fact
from ..requests import EngineCall, LiveAgent, Store
from ..vllm_surface import Hash, VllmBlock
from .copies import BlocksByGroup, Copies
from .gpu_pool import GpuPool, idle
from .grouped_gpu_pool import GroupedGpuPool
from .host_pool import HostPool
from .host_runs import HostHold
from .page_rules import PageNames, PageSpan, every_group, every_page, last_boundary, places, spans

Place = tuple[int, int]  # group, and block of the context


class GroupedCopies(Copies):
    """The same for models with several groups."""

    def __init__(self, gpu: GroupedGpuPool, host: HostPool, report: Callable[[Fact], None]) -> None:
        super().__init__(gpu, host, report)
        self._pages = gpu
        self._rules = gpu.rules

    # -- offload

    def offload(self, agent: LiveAgent, move: Move, now_s: float) -> None:
        """Copy what the host lacks of the pages of the last boundary that it can hold, of an agent's latest context."""
        hashes, names = agent.hashes, self._names(agent.hashes)
        saved_blocks = len(agent.host) if agent.host is not None else 0
        found = None
        if not (self.refusing or agent.offloading or agent.gone):
            found = self._to_save(hashes, blocks_to_move(agent, move), saved_blocks)
        if found is None:
            self.report(e.OffloadRefused(now_s, agent.name))
            return
        end, missing, kept = found
        pages = [self._cached(hashes, place) for place in missing]
        self._gpu.hold(pages)
        target = self._slots_beside(pages)
        self._keep(pages)
        agent.offloading = True
        copied = [names[group][at] for group, at in missing]
        self._storing.add(copied)
        report = self.report
        report(e.OffloadStarted(now_s, agent.name, len(pages), end))

        def done(at_s: float) -> None:
            self._storing.remove(copied)
            new = self._stored(names, missing, target)
            self._keep_no_more(pages)
            (self._gpu.release if move.keep else self._gpu.drop)(pages)
            agent.offloading = False
            self._host.release_all(new)
            self._host.release(kept)
            stored = self._host_boundary(hashes, 0, end)
            report(e.OffloadFinished(at_s, agent.name, len(pages), stored))
            if not agent.gone:
                before, agent.host = agent.host, self._hold_host(hashes, list(spans(self._rules, 0, stored)), stored)
                if before is not None:
                    self._host.release(before)

        if pages:
            self._submit(True, pages, target, None, done)
        else:
            done(now_s)

    def _to_save(
        self, hashes: Sequence[Hash], upto: int, saved_blocks: int
    ) -> tuple[int, list[Place], HostHold] | None:
        """The last boundary behind `saved_blocks` whose pages the host has, is being given or can be given now: which
        of them are to be copied, and what the host has of them, held. None if there is none."""
        names, host, storing = self._names(hashes), self._host, self._storing

        def on_host(group: int, at: int) -> bool:
            return host.has(names[group][at])

        def coming(group: int, at: int) -> bool:
            return names[group][at] in storing

        def anywhere(group: int, at: int) -> bool:
            return on_host(group, at) or coming(group, at) or self._pages.page(hashes[at], group) is not None

        end = last_boundary(self._rules, 0, upto, anywhere)
        while end > saved_blocks:
            needed = list(places(list(spans(self._rules, 0, end))))
            missing = [place for place in needed if not (on_host(*place) or coming(*place))]
            here = [place for place in needed if on_host(*place)]
            too_many = len(missing) + sum(host.is_idle(names[group][at]) for group, at in here) - host.free
            if too_many <= 0:
                return end, missing, self._hold_host(hashes, _spans_of(here), end)
            end = last_boundary(self._rules, 0, self._earlier(end, too_many), anywhere)
        return None

    def _earlier(self, boundary: int, too_many: int) -> int:
        """How far back the boundary is at the latest that needs so many pages less: one a group and block."""
        return max(0, boundary - div_ceil(too_many, len(self._rules)))

    def _stored(self, names: Sequence[PageNames], missing: Sequence[Place], target: Sequence[int]) -> list[HostHold]:
        """The host has these pages now. What is held of them."""
        new: list[HostHold] = []
        for span, begin in _with_offsets(_spans_of(missing)):
            slots = target[begin : begin + span.end - span.first]
            new += self._host.store(slots, names[span.group][span.first : span.end], range(span.first, span.end))
        return new

    # -- write-through

    def store(self, call: EngineCall, upto: int, now_s: float) -> None:
        """Copy what the host lacks of a call's pages up to block `upto`, as far as vLLM has them cached."""
        hashes, first, host = call.vllm.block_hashes, call.stored, self._host
        names = self._names(hashes)
        every = list(every_page(self._rules, first, upto))
        here = [(group, at) for group, at in every if host.has(names[group][at])]
        missing = [
            (group, at)
            for group, at in every
            if not host.has(names[group][at])
            and names[group][at] not in self._storing
            and self._pages.page(hashes[at], group) is not None
        ]
        if missing:
            kept = self._hold_host(hashes, _spans_of(here), upto)
            room = host.free >= len(missing)
            pages = [self._cached(hashes, place) for place in missing]
            target = self._slots_beside(pages) if room else []
            host.release(kept)
            if not room:
                self.report(e.StoreRefused(now_s, call.id, len(missing)))
                return
            self._store_pages(call, missing, pages, target, now_s)
        call.stored = max(first, upto)

    def _store_pages(
        self, call: EngineCall, missing: Sequence[Place], pages: list[VllmBlock], target: Sequence[int], now_s: float
    ) -> None:
        self._gpu.hold(pages)
        names = self._names(call.vllm.block_hashes)
        copied = [names[group][at] for group, at in missing]
        self._storing.add(copied)
        store = Store(pages)
        call.stores.append(store)
        report = self.report
        report(e.StoreStarted(now_s, call.id, len(pages)))

        def done(at_s: float) -> None:
            self._storing.remove(copied)
            self._host.release_all(self._stored(names, missing, target))
            call.stores.remove(store)
            if store.kept:
                self._keep_no_more(pages)
            self._gpu.release(pages)
            report(e.StoreFinished(at_s, call.id, len(pages)))

        self._submit(True, pages, target, None, done)

    def store_rest(self, call: EngineCall, upto: int, now_s: float) -> None:
        self.store(call, upto, now_s)

    def used(self, call: EngineCall, upto: int) -> None:
        names, host = self._names(call.vllm.block_hashes), self._host
        every = every_page(self._rules, 0, upto)
        here = _spans_of([(group, at) for group, at in every if host.has(names[group][at])])
        host.release(self._hold_host(call.vllm.block_hashes, here, upto))

    def coming(self, hashes: Sequence[Hash], at: int, limit: int) -> bool:
        """Whether the host is to have a later boundary of a waiting call's prompt, before `limit`, than block `at`."""
        if not len(self._storing):
            return False
        names, has, storing = self._names(hashes), self._host.has, self._storing

        def there(group: int, place: int) -> bool:
            return has(names[group][place]) or names[group][place] in storing

        return last_boundary(self._rules, at, limit, there) > at

    # -- load on demand

    def host_end(self, hashes: Sequence[Hash], first: int, upto: int) -> int:
        return self._host_boundary(hashes, first, upto)

    def copying(self, hashes: Sequence[Hash], first: int, end: int) -> bool:
        names = self._names(hashes)
        return any(
            self._storing.any_of(names[group][begin:upto]) or self._host.is_read(names[group], begin, upto)
            for group, begin, upto in spans(self._rules, first, end)
        )

    def _to_load(
        self, call: EngineCall, given: BlocksByGroup, first: int, end: int
    ) -> tuple[Sequence[VllmBlock], HostHold]:
        wanted = list(spans(self._rules, first, end))
        pages = [given[group][at] for group, at in places(wanted)]
        return pages, self._hold_host(call.vllm.block_hashes, wanted, end, to_read=True)

    # -- upload ahead of the call

    def upload(self, agent: LiveAgent, move: Move, now_s: float) -> None:
        """Copy back what the GPU lacks of the pages of the last boundary of a context that there is room for.

        An agent has one upload at a time: what a second one would add is more than its pages, since windows move on.
        """
        hashes = agent.hashes
        found = None
        if not (self.refusing or agent.gone or agent.waiting or agent.uploads):
            found = self._to_bring_back(hashes, blocks_to_move(agent, move))
        if found is None:
            self.report(e.UploadRefused(now_s, agent.name))
            return
        end, cached, missing = found
        self._gpu.hold(list(cached.values()))  # first: new pages might evict them
        source = self._hold_host(hashes, _spans_of(missing), end, to_read=True)
        target = self._blocks_beside(source.slots)
        held = self._by_group(cached, dict(zip(missing, target, strict=True)))
        upload: Upload[list[VllmBlock], float] = Upload(held, 0, len(missing), now_s)
        agent.uploads += (upload,)
        self._keep(upload.held)
        report, kept = self.report, agent.source
        report(e.UploadStarted(now_s, agent.name, len(missing)))

        def done(at_s: float) -> None:
            self._host.release(source)
            if upload.cancelled:
                self._give_up(upload)
                report(e.UploadReleased(at_s, agent.name, upload.num_blocks))
                return
            self._pages.register_pages(kept, target, missing)
            upload.ready_at = at_s
            report(e.UploadFinished(at_s, agent.name, ready_blocks(agent)))

        self._submit(False, target, source.slots, None, done)

    def _by_group(self, *pages: dict[Place, VllmBlock]) -> list[VllmBlock]:
        """In the order in which groups are held, and of each group in the given one."""
        return [
            page
            for group in every_group(self._rules)
            for some in pages
            for place, page in some.items()
            if place[0] == group
        ]

    def _to_bring_back(
        self, hashes: Sequence[Hash], upto: int
    ) -> tuple[int, dict[Place, VllmBlock], list[Place]] | None:
        """The last boundary that the GPU does not hit at yet and can: which of its pages it has, and which the host."""
        names, host, gpu = self._names(hashes), self._host, self._pages

        def anywhere(group: int, at: int) -> bool:
            return gpu.page(hashes[at], group) is not None or host.has(names[group][at])

        here = gpu.hit(hashes, upto)
        end = last_boundary(self._rules, 0, upto, anywhere)
        while end > here:
            needed = {place: gpu.page(hashes[place[1]], place[0]) for place in places(list(spans(self._rules, 0, end)))}
            cached = {place: page for place, page in needed.items() if page is not None}
            missing = [place for place, page in needed.items() if page is None]
            too_many = len(missing) + idle(list(cached.values())) - gpu.free
            if too_many <= 0:
                return end, cached, missing
            end = last_boundary(self._rules, 0, self._earlier(end, too_many), anywhere)
        return None

    # -- pins

    def pin(self, agent: LiveAgent, until_s: float) -> None:
        agent.pin_until = until_s
        if may_pin(agent, self.refusing):
            self._hold_pin(agent, self._pages.pages(agent.hashes, self._pages.hit(agent.hashes, agent.context_blocks)))

    # -- names

    def _names(self, hashes: Sequence[Hash]) -> list[PageNames]:
        """Of a context's pages, by group."""
        return [PageNames(hashes, group) for group in range(len(self._rules))]

    def _cached(self, hashes: Sequence[Hash], place: Place) -> VllmBlock:
        page = self._pages.page(hashes[place[1]], place[0])
        assert page is not None
        return page

    def _host_boundary(self, hashes: Sequence[Hash], lowest: int, upto: int) -> int:
        """The last boundary of a context whose pages from `lowest` on the host has."""
        names, has = self._names(hashes), self._host.has
        return last_boundary(self._rules, lowest, upto, lambda group, at: has(names[group][at]))

    def _hold_host(
        self, hashes: Sequence[Hash], wanted: Sequence[PageSpan], end: int, *, to_read: bool = False
    ) -> HostHold:
        names = self._names(hashes)
        parts = [(names[span.group], BlockSpan(span.first, span.end)) for span in wanted]
        return self._host.hold_together(parts, end, to_read=to_read)


def copies_of(gpu: GpuPool, host: HostPool, report: Callable[[Fact], None]) -> Copies:
    """The copies of a model with the pool's groups."""
    return GroupedCopies(gpu, host, report) if isinstance(gpu, GroupedGpuPool) else Copies(gpu, host, report)


def _spans_of(pages: Sequence[Place]) -> list[PageSpan]:
    """The stretches that these pages are, in their order."""
    found: list[PageSpan] = []
    for group, at in pages:
        if found and found[-1].group == group and found[-1].end == at:
            found[-1] = PageSpan(group, found[-1].first, at + 1)
        else:
            found.append(PageSpan(group, at, at + 1))
    return found


def _with_offsets(wanted: Sequence[PageSpan]) -> list[tuple[PageSpan, int]]:
    """Each with how many pages come before it."""
    placed, before = [], 0
    for span in wanted:
        placed.append((span, before))
        before += span.end - span.first
    return placed
