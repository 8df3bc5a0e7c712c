"""Everything that copies, on vLLM's own block pool: offloads, uploads ahead of a call, loads on demand; and pins.

What is copied and what is refused is the simulator's rule, too (`policies.execution.copy_rules`). A block is never
overwritten while it is copied: the copy holds its source and its target until its end is acknowledged. What is copied
can be hit from then on, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ....policies.execution.agent_cache import Upload
from ....policies.execution.copy_rules import (
    BlockSpan,
    blocks_to_move,
    cancel_uploads,
    expired_pins,
    may_pin,
    offload_span,
    ready_blocks,
    take_uploads,
    upload_span,
    upload_start,
    uploading,
)
from ....policies.interface import Move
from ....traces import events as e
from ....traces.apps import AgentId
from ....traces.events import Fact
from ...copier.jobs import CopyJob
from ...copier.stretches import side_by_side
from ..requests import EngineCall, LiveAgent, Store
from ..vllm_surface import Hash, VllmBlock
from .gpu_pool import GpuPool, Source, idle
from .host_pool import HostPool
from .host_runs import HostHold
from .marks import Marks

BlocksByGroup = Sequence[Sequence[VllmBlock]]  # by KV cache group
Done = Callable[[float], None]  # what to do when a copy has ended, told the time


class _UnderWay(NamedTuple):
    to_host: bool
    blocks: int
    report: Callable[[Fact], None]  # of the run that began it
    done: Done


class Copies:
    """Moves blocks between vLLM's pool and the host's. Jobs wait in `submitted` until the workers get them."""

    def __init__(self, gpu: GpuPool, host: HostPool, report: Callable[[Fact], None]) -> None:
        self._gpu = gpu
        self._host = host
        self.report = report  # of the run under way; a copy that outlives its run reports to nobody
        self._storing: Marks[Hash] = Marks()  # contents on their way to the host
        self._under_way: dict[int, _UnderWay] = {}
        self._jobs = 0
        self.ended = 0  # copies
        self.submitted: list[CopyJob] = []
        self.pinned: dict[AgentId, LiveAgent] = {}
        self._kept: Marks[int] = Marks()  # by id, blocks that are held for agents without a running call
        self.refusing = False  # calls starve for what is held ahead of need: nothing more is held until one finishes

    @property
    def under_way(self) -> int:
        """Copies that have not ended."""
        return len(self._under_way)

    @property
    def held_blocks(self) -> int:
        """Blocks that are held on the GPU for agents without a running call, each once."""
        return len(self._kept)

    @property
    def host_free(self) -> int:
        """Slots of the host that nobody holds."""
        return self._host.free

    def finish(self, jobs: Mapping[int, float | None], now_s: float) -> None:
        """The workers have done these copies, in so many seconds, if they said so."""
        for job, seconds in jobs.items():
            copy = self._under_way.pop(job)
            if seconds is not None:
                copy.report(e.Copied(now_s, copy.to_host, copy.blocks, seconds))
            copy.done(now_s)
        self.ended += len(jobs)

    # -- offload

    def offload(self, agent: LiveAgent, move: Move, now_s: float) -> None:
        """Copy what the host lacks of the first blocks of an agent's latest context."""
        hashes, upto = agent.hashes, blocks_to_move(agent, move)
        known = self._host.end(hashes, 0, upto)
        first = self._end_of_storing(hashes, known, upto)  # what another copy writes comes before this one ends
        cached = self._gpu.found(hashes, first, upto)
        prefix = self._host.hold(hashes, 0, known)
        saved_blocks = len(agent.host) if agent.host is not None else 0
        span = offload_span(agent, first, first + len(cached), saved_blocks, self._host.free, self.refusing)
        if span is None:
            self._host.release(prefix)
            self.report(e.OffloadRefused(now_s, agent.name))
            return
        end = span.end
        blocks = cached[: end - first]
        self._gpu.hold(blocks)
        target = self._slots_beside(blocks)
        copied = hashes[first:end]
        self._keep(blocks)
        agent.offloading = True
        self._storing.add(copied)
        report = self.report
        report(e.OffloadStarted(now_s, agent.name, len(blocks), end))

        def done(at_s: float) -> None:
            self._storing.remove(copied)
            new = self._host.store(target, copied, range(first, end))
            self._keep_no_more(blocks)
            (self._gpu.release if move.keep else self._gpu.drop)(blocks)
            agent.offloading = False
            self._host.release_all(new)
            self._host.release(prefix)
            stored = self._host.end(hashes, 0, end)
            report(e.OffloadFinished(at_s, agent.name, len(blocks), stored))
            if not agent.gone:
                before, agent.host = agent.host, self._host.hold(hashes, 0, stored)
                if before is not None:
                    self._host.release(before)

        if blocks:
            self._submit(True, blocks, target, None, done)
        else:
            done(now_s)

    def forget(self, agent: LiveAgent, now_s: float) -> None:
        """Give up an agent's host copy: its blocks stay readable until the host needs their room."""
        if agent.host is None:
            return
        before = self._host.free
        self._host.release(agent.host)
        agent.host = None
        self.report(e.HostDropped(now_s, agent.name, self._host.free - before))

    # -- write-through

    def store(self, call: EngineCall, upto: int, now_s: float) -> None:
        """Copy what the host lacks of a call's blocks up to `upto`, which are on the GPU. Without room for all: none.

        What another copy under way writes is not written twice.
        """
        hashes, first, host = call.vllm.block_hashes, call.stored, self._host
        here = host.stretches(hashes, first, upto)
        missing = [at for at in _between(here, first, upto) if hashes[at] not in self._storing]
        if missing:
            kept = [host.hold(hashes, *span) for span in here]
            room = host.free >= len(missing)  # without what the host has of this call
            blocks = [self._gpu.cached(hashes[at]) for at in missing]
            target = self._slots_beside(blocks) if room else []
            host.release_all(kept)
            if not room:
                self.report(e.StoreRefused(now_s, call.id, len(missing)))
                return
            self._store(call, missing, blocks, target, now_s)
        call.stored = max(first, upto)

    def _store(
        self, call: EngineCall, places: Sequence[int], blocks: list[Any], target: Sequence[int], now_s: float
    ) -> None:
        """Copy the blocks at these places of a call's context."""
        self._gpu.hold(blocks)
        copied = [call.vllm.block_hashes[at] for at in places]
        self._storing.add(copied)
        store = Store(blocks)
        call.stores.append(store)
        report = self.report
        report(e.StoreStarted(now_s, call.id, len(blocks)))

        def done(at_s: float) -> None:
            self._storing.remove(copied)
            self._host.release_all(self._host.store(target, copied, places))
            call.stores.remove(store)
            if store.kept:
                self._keep_no_more(blocks)
            self._gpu.release(blocks)
            report(e.StoreFinished(at_s, call.id, len(blocks)))

        self._submit(True, blocks, target, None, done)

    def store_rest(self, call: EngineCall, upto: int, now_s: float) -> None:
        """Store what is left of the first `upto` blocks of a call that has ended, as far as they are on the GPU.

        They are all there, unless it was preempted before its last token came.
        """
        self.store(call, self._gpu.end(call.vllm.block_hashes, call.stored, upto), now_s)

    def used(self, call: EngineCall, upto: int) -> None:
        """A call has ended: what the host has of its first `upto` blocks was used now, the first of them last."""
        hashes, host = call.vllm.block_hashes, self._host
        host.release_all([host.hold(hashes, *span) for span in host.stretches(hashes, 0, upto)])

    def stops(self, call: EngineCall) -> None:
        """A call has ended, or was preempted: what its copies under way hold is held for no running call."""
        for store in call.stores:
            if not store.kept:
                store.kept = True
                self._keep(store.held)

    def coming(self, hashes: Sequence[Hash], at: int, limit: int) -> bool:
        """Whether block `at` of a waiting call's prompt, before `limit`, is being written to the host."""
        return at < limit and hashes[at] in self._storing

    # -- load on demand

    def host_end(self, hashes: Sequence[Hash], first: int, upto: int) -> int:
        """End of what the host has of a waiting call's prompt behind the GPU's part."""
        return self._host.end(hashes, first, upto)

    def copying(self, hashes: Sequence[Hash], first: int, end: int) -> bool:
        """Whether one of these blocks is being written to the host or read from it now."""
        asked = hashes[first:end]
        return self._storing.any_of(asked) or self._host.is_read(hashes, first, first + len(asked))

    def load(
        self, call: EngineCall, given: BlocksByGroup, first: int, end: int, now_s: float, filled: Callable[[], None]
    ) -> None:
        """Fill blocks that vLLM gave to a waiting call, those from `first` to `end` of its prompt, from the host.

        `filled` is called when they have their content, unless the call was given up before.
        """
        blocks, source = self._to_load(call, given, first, end)
        call.loading = True
        call.stored = end
        report = self.report
        report(e.LoadStarted(now_s, call.id, len(blocks), first))

        def done(at_s: float) -> None:
            self._host.release(source)
            if call.loading:  # else it was given up meanwhile
                call.loading = False
                filled()
                report(e.LoadFinished(at_s, call.id, len(blocks)))

        self._submit(False, blocks, source.slots, call.vllm.request_id, done)

    def _to_load(
        self, call: EngineCall, given: BlocksByGroup, first: int, end: int
    ) -> tuple[Sequence[VllmBlock], HostHold]:
        """The blocks to fill, and what they are filled with, which is held."""
        return given[0][first:end], self._host.hold(call.vllm.block_hashes, first, end, to_read=True)

    # -- upload ahead of the call

    def upload(self, agent: LiveAgent, move: Move, now_s: float) -> None:
        """Copy back what the GPU lacks of an agent's context, as far as there is room now."""
        hashes = agent.hashes
        upto = blocks_to_move(agent, move)
        on_gpu = self._gpu.found(hashes, 0, upto)
        start = upload_start(agent.uploads, len(on_gpu))
        cached = on_gpu[start.hold :]
        host_end = self._host.end(hashes, start.copy, upto)
        span = upload_span(agent, start.copy, host_end, self._gpu.free - idle(cached), self.refusing)
        if span is None:
            self.report(e.UploadRefused(now_s, agent.name))
            return
        first, end = span
        self._gpu.hold(cached)  # first: new blocks might evict them
        source = self._host.hold(hashes, first, end, to_read=True)
        target = self._blocks_beside(source.slots)
        upload: Upload[list[VllmBlock], float] = Upload([*cached, *target], first, end, now_s)
        agent.uploads += (upload,)
        self._keep(upload.held)
        report, kept = self.report, agent.source
        report(e.UploadStarted(now_s, agent.name, end - first))

        def done(at_s: float) -> None:
            self._host.release(source)
            if upload.cancelled:
                self._give_up(upload)
                report(e.UploadReleased(at_s, agent.name, upload.num_blocks))
                return
            self._gpu.register(kept, target, first)
            upload.ready_at = at_s
            report(e.UploadFinished(at_s, agent.name, ready_blocks(agent)))

        self._submit(False, target, source.slots, None, done)

    @staticmethod
    def uploading(agent: LiveAgent) -> bool:
        """Whether an upload for this agent is still on its way."""
        return uploading(agent)

    def taken(self, agent: LiveAgent, arrived_s: float, now_s: float) -> None:
        """The agent's call holds its blocks itself now."""
        taken = take_uploads(agent, arrived_s, now_s)
        for upload in taken.uploads:
            self._give_up(upload)
        self.report(e.UploadTaken(now_s, agent.name, taken.num_blocks, taken.early, taken.late))

    def cancel(self, agent: LiveAgent, now_s: float) -> None:
        """Give up an agent's uploads: ready ones now, those on their way when they have come."""
        if not agent.uploads:
            return
        cancelled = cancel_uploads(agent, now_s)
        for upload in cancelled.ready:
            self._give_up(upload)
        self.report(e.UploadCancelled(now_s, agent.name, cancelled.num_blocks, cancelled.held))

    def _give_up(self, upload: Upload[list[VllmBlock], float]) -> None:
        self._keep_no_more(upload.held)
        self._gpu.release(upload.held)

    # -- pins

    def pin(self, agent: LiveAgent, until_s: float) -> None:
        """Hold what is cached of an agent's context until then, or until its next call holds it."""
        agent.pin_until = until_s
        if may_pin(agent, self.refusing):
            self._hold_pin(agent, self._gpu.found(agent.hashes, 0, agent.context_blocks))

    def _hold_pin(self, agent: LiveAgent, blocks: list[VllmBlock]) -> None:
        if blocks:
            self._gpu.hold(blocks)
            agent.pin = blocks
            self.pinned[agent.name] = agent
            self._keep(blocks)

    def unpin(self, agent: LiveAgent) -> None:
        if agent.pin is not None:
            blocks, agent.pin = agent.pin, None
            self._keep_no_more(blocks)
            self._gpu.release(blocks)
            del self.pinned[agent.name]

    def next_unpin_s(self) -> float:
        """When the next pin expires; there must be one."""
        return min(agent.pin_until for agent in self.pinned.values())

    def unpin_expired(self, now_s: float) -> None:
        """Give up the pins whose time is over."""
        for agent in expired_pins(self.pinned.values(), now_s):
            self.unpin(agent)

    # -- the order of eviction

    def evict_first(self, agents: Sequence[LiveAgent]) -> None:
        """Idle blocks of these agents' contexts are handed out first; what two of them share, with the later one."""
        moved: set[int] = set()
        for agent in reversed(agents):
            self._gpu.expose(agent.hashes, agent.context_blocks, moved)

    # -- bookkeeping

    def clear(self) -> None:
        """Forget what the host has, none of which may be held."""
        self._host = HostPool(self._host.slots)

    def remember(self, agent: LiveAgent, vllm: Any, context_blocks: int) -> None:
        """A call of the agent has finished: its context is the agent's latest."""
        agent.hashes = vllm.block_hashes
        agent.context_blocks = min(context_blocks, len(agent.hashes))
        agent.source = vllm if self._gpu.tells_events else Source(agent.hashes)

    def _end_of_storing(self, hashes: Sequence[Hash], at: int, upto: int) -> int:
        while at < upto and hashes[at] in self._storing:
            at += 1
        return at

    def _slots_beside(self, blocks: Sequence[Any]) -> list[int]:
        """Slots for new copies of these blocks. Which contents give way for them does not depend on who gets which."""
        return side_by_side([block.block_id for block in blocks], self._host.take(len(blocks)))

    def _blocks_beside(self, slots: Sequence[int]) -> list[Any]:
        """New GPU blocks for what is in these slots."""
        taken = {block.block_id: block for block in self._gpu.take(len(slots))}
        return [taken[block] for block in side_by_side(slots, taken)]

    def _submit(
        self, to_host: bool, blocks: Sequence[Any], slots: Sequence[int], request: str | None, done: Done
    ) -> None:
        self._jobs += 1
        self._under_way[self._jobs] = _UnderWay(to_host, len(blocks), self.report, done)
        block_ids = tuple(block.block_id for block in blocks)
        self.submitted.append(CopyJob(self._jobs, to_host, block_ids, tuple(slots), request))

    def _keep(self, blocks: Sequence[Any]) -> None:
        self._kept.add([block.block_id for block in blocks])

    def _keep_no_more(self, blocks: Sequence[Any]) -> None:
        self._kept.remove([block.block_id for block in blocks])


def _between(spans: Sequence[BlockSpan], first: int, upto: int) -> Iterator[int]:
    """The blocks from `first` to `upto` that none of these spans has, which are disjoint and by position."""
    at = first
    for span in spans:
        yield from range(at, span.first)
        at = span.end
    yield from range(at, upto)
