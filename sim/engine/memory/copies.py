"""Everything that copies: offloads, uploads ahead of a call, loads on demand; and the pins that keep caches.

What is copied and what is refused is the live engine's rule, too (`policies.execution.copy_rules`). A block is never
overwritten while it is copied: the copy holds its source and its target until the engine has seen its end. What is
copied can be hit from then on, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ....policies.execution.agent_cache import Upload
from ....policies.execution.copy_rules import (
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
from ....traces.agreement import agree
from ....traces.apps import AgentId
from ....traces.events import Fact
from ...machine.timing import seconds
from ..requests import EngineCall, HostCopy, SimAgent, State
from .block_pool import BlockPool
from .blocks import BlockHold, BlockRun, Span
from .context_tree import Context, Path, full_blocks
from .link import Link
from .marks import Marks, between, mark, marked_until, unmark, unmarked


class Copies:
    """Moves blocks between the pools. A copy is submitted with a step, and begins with it at the earliest.

    That is the step that is scheduled next, which starts at `next_step_ps`, except for blocks that are written through:
    those are copied from `from_ps` on.
    """

    def __init__(self, gpu: BlockPool, host: BlockPool, link: Link, block_tokens: int) -> None:
        self._gpu = gpu
        self._host = host
        self._link = link
        self._block_tokens = block_tokens
        self.report: Callable[[Fact], None]
        self.next_step_ps = 0
        self._storing: Marks = {}  # blocks whose host copy is being written
        self._loading: Marks = {}  # blocks whose host copy is being read
        self.pinned: dict[AgentId, SimAgent] = {}
        # Whether calls starve for what is held ahead of need: then nothing more is held until one finishes. Otherwise a
        # policy could take the room from under each call that starts, for ever.
        self.refusing = False

    # -- offload

    def offload(self, agent: SimAgent, move: Move, now_ps: int) -> None:
        """Copy what the host lacks of the first blocks of an agent's latest context."""
        context, upto = agent.context, blocks_to_move(agent, move)
        path = self._path(context)
        known, _ = self._host.cached_prefix(path, upto)
        first = min(
            upto, marked_until(path, known, self._storing)
        )  # what another copy under way writes comes before this one
        cached_end, _ = self._gpu.cached_prefix(path, upto, first)
        prefix = self._host.touch(path, known)
        saved_blocks = agent.host.num_blocks if agent.host is not None else 0
        span = offload_span(agent, first, cached_end, saved_blocks, self._host.num_free_blocks, self.refusing)
        if span is None:
            self._host.free(prefix, None)
            self.report(e.OffloadRefused(seconds(now_ps), agent.name))
            return
        end = span.end
        blocks = end - first
        target = self._host.touch(path, first, first)
        self._host.allocate(target, blocks)
        source = self._gpu.touch(path, end, first)
        self._gpu.keep(source, agent.owner)
        agent.offloading = True
        mark(path, first, end, self._storing)
        self.report(e.OffloadStarted(seconds(now_ps), agent.name, blocks, end))

        def done(at_ps: int) -> None:
            unmark(path, first, end, self._storing)
            self._host.cache(target, path, end)
            if move.keep:
                self._gpu.free(source, agent.owner)
            else:
                self._gpu.discard(source, agent.owner)
            agent.offloading = False
            self._host.free(target, None)
            self._host.free(prefix, None)
            held, _ = self._host.cached_prefix(path, end)
            self.report(e.OffloadFinished(seconds(at_ps), agent.name, blocks, held))
            if not agent.gone:
                if agent.host is not None:
                    self._host.free(self.held_on_host(agent.host), None)
                self._host.touch(path, held)
                agent.host = HostCopy(context, held)

        if blocks:
            self._link.to_host(blocks, self.next_step_ps, done)
        else:
            done(now_ps)

    def forget(self, agent: SimAgent, now_ps: int) -> None:
        """Give up an agent's host copy: its blocks stay readable until the host needs their room."""
        if agent.host is None:
            return
        before = self._host.num_free_blocks
        self._host.free(self.held_on_host(agent.host), None)
        agent.host = None
        self.report(e.HostDropped(seconds(now_ps), agent.name, self._host.num_free_blocks - before))

    def held_on_host(self, copy: HostCopy) -> BlockHold:
        """The blocks of an agent's copy."""
        return self._host.touched(self._path(copy.context), copy.num_blocks)

    def _path(self, context: Context | None) -> Path:
        return () if context is None else full_blocks(context, self._block_tokens)

    # -- write-through

    def store(self, call: EngineCall, upto: int, now_ps: int, from_ps: int) -> None:
        """Copy what the host lacks of a call's blocks up to `upto`, which are on the GPU. Without room for all: none.

        What another copy under way writes is not written twice.
        """
        path, first, host = call.path, call.stored_blocks, self._host
        absent = host.uncached_spans(path, first, upto)
        missing = unmarked(absent, path, self._storing)
        blocks = sum(end - start for start, end in missing)
        if blocks:
            kept = [host.touch(path, end, start) for start, end in between(absent, first, upto)]
            room = host.num_free_blocks >= blocks  # without what the host has of this call
            targets = [host.touch(path, start, start) for start, _ in missing] if room else []
            for target, (start, end) in zip(targets, missing, strict=False):
                host.allocate(target, end - start)
            for hold in reversed(kept):
                host.free(hold, None)
            if not room:
                self.report(e.StoreRefused(seconds(now_ps), call.id, blocks))
                return
            self._store(call, missing, targets, now_ps, from_ps)
        call.stored_blocks = max(first, upto)

    def _store(self, call: EngineCall, spans: list[Span], targets: list[BlockHold], now_ps: int, from_ps: int) -> None:
        path, owner = call.path, call.agent.owner
        sources = [self._gpu.touch(path, end, start) for start, end in spans]
        for start, end in spans:
            mark(path, start, end, self._storing)
        call.store_sources += sources
        blocks = sum(end - start for start, end in spans)
        self.report(e.StoreStarted(seconds(now_ps), call.id, blocks))

        def done(at_ps: int) -> None:
            for (start, end), target, source in zip(reversed(spans), reversed(targets), reversed(sources), strict=True):
                unmark(path, start, end, self._storing)
                self._host.cache(target, path, end)
                self._host.free(target, None)
                self._gpu.free(source, owner)
                call.store_sources.remove(source)
            self.report(e.StoreFinished(seconds(at_ps), call.id, blocks))

        self._link.to_host(blocks, from_ps, done)

    def store_rest(self, call: EngineCall, upto: int, now_ps: int, from_ps: int) -> None:
        """Store what is left of the first `upto` blocks of a call that has ended, as far as they are on the GPU.

        They are all there, unless it was preempted before its last token came.
        """
        self.store(call, self._gpu.cached_prefix(call.path, upto, call.stored_blocks)[0], now_ps, from_ps)

    def used(self, call: EngineCall, upto: int) -> None:
        """A call has ended: what the host has of its first `upto` blocks was used now, the first of them last."""
        absent = self._host.uncached_spans(call.path, 0, upto)
        for start, end in reversed(between(absent, 0, upto)):
            self._host.free(self._host.touch(call.path, end, start), None)

    def stops(self, call: EngineCall) -> None:
        """A call has ended, or was preempted: what its copies under way hold is held for no running call."""
        for source in call.store_sources:
            self._gpu.keep(source, call.agent.owner)

    def coming(self, call: EngineCall, at: int) -> bool:
        """Whether block `at` of a waiting call's prompt is being written to the host."""
        return at < call.most_hit_blocks and marked_until(call.path, at, self._storing) > at

    # -- load on demand

    def host_hits(self, call: EngineCall, gpu_hit_blocks: int) -> int:
        """End of what the host has of a waiting call's prompt behind the GPU's part."""
        if not self._host.in_use:
            return gpu_hit_blocks
        return self._host.cached_prefix(call.path, call.most_hit_blocks, gpu_hit_blocks)[0]

    def under_way(self, call: EngineCall, first: int, end: int) -> bool:
        """Whether one of these blocks is being written to the host or read from it now."""
        return any(
            start < min(end, piece.end_block) and upto > max(first, piece.first_block)
            for piece in call.path
            if piece.end_block > first and piece.first_block < end
            for start, upto in (*self._storing.get(piece.node, ()), *self._loading.get(piece.node, ()))
        )

    def load(self, call: EngineCall, first: int, end: int, now_ps: int) -> None:
        """Give a waiting call its prompt's blocks up to `end`, those from `first` on by copying. There must be room."""
        path = call.path
        hold = call.hold = self._gpu.touch(path, first)
        self._gpu.allocate(hold, end - first)
        source = self._host.touch(path, end, first)
        mark(path, first, end, self._loading)
        call.state = State.LOADING
        call.stored_blocks = end
        call.gpu_hit_tokens = first * self._block_tokens
        call.host_hit_tokens = (end - first) * self._block_tokens
        self.report(e.LoadStarted(seconds(now_ps), call.id, end - first, first))

        def done(at_ps: int) -> None:
            unmark(path, first, end, self._loading)
            self._host.free(source, None)
            self._gpu.cache(hold, path, end)
            call.num_computed_tokens = end * self._block_tokens
            call.state = State.LOADED
            self.report(e.LoadFinished(seconds(at_ps), call.id, end - first))

        self._link.to_gpu(end - first, self.next_step_ps, done)

    # -- upload ahead of the call

    def upload(self, agent: SimAgent, move: Move, now_ps: int) -> None:
        """Copy back what the GPU lacks of an agent's context, as far as there is room now."""
        path = self._path(agent.context)
        upto = blocks_to_move(agent, move)
        gpu_end, _ = self._gpu.cached_prefix(path, upto)
        start = upload_start(agent.uploads, gpu_end)
        host_end, _ = self._host.cached_prefix(path, upto, start.copy)
        idle = self._gpu.cached_prefix(path, gpu_end, start.hold)[1] if gpu_end > start.hold else 0
        span = upload_span(agent, start.copy, host_end, self._gpu.num_free_blocks - idle, self.refusing)
        if span is None:
            self.report(e.UploadRefused(seconds(now_ps), agent.name))
            return
        first, end = span
        hold = self._gpu.touch(path, first, start.hold)
        self._gpu.allocate(hold, end - first)
        source = self._host.touch(path, end, first)
        mark(path, first, end, self._loading)
        upload: Upload[BlockHold, int] = Upload(hold, first, end, now_ps)
        agent.uploads += (upload,)
        self._gpu.keep(hold, agent.owner)
        self.report(e.UploadStarted(seconds(now_ps), agent.name, end - first))

        def done(at_ps: int) -> None:
            unmark(path, first, end, self._loading)
            self._host.free(source, None)
            if upload.cancelled:
                self._give_up(agent, upload)
                self.report(e.UploadReleased(seconds(at_ps), agent.name, upload.num_blocks))
                return
            self._gpu.cache(hold, path, end)
            upload.ready_at = at_ps
            self.report(e.UploadFinished(seconds(at_ps), agent.name, ready_blocks(agent)))

        self._link.to_gpu(end - first, self.next_step_ps, done)

    def uploading(self, agent: SimAgent) -> bool:
        """Whether an upload for this agent is still on its way."""
        return uploading(agent)

    def taken(self, agent: SimAgent, arrived_ps: int, now_ps: int) -> None:
        """The agent's call holds its blocks itself now."""
        taken = take_uploads(agent, arrived_ps, now_ps)
        for upload in taken.uploads:
            self._give_up(agent, upload)
        early_s, late_s = seconds(taken.early), seconds(taken.late)
        self.report(e.UploadTaken(seconds(now_ps), agent.name, taken.num_blocks, early_s, late_s))

    def cancel(self, agent: SimAgent, now_ps: int) -> None:
        """Give up an agent's uploads: ready ones now, those on their way when they have come."""
        if not agent.uploads:
            return
        cancelled = cancel_uploads(agent, now_ps)
        for upload in cancelled.ready:
            self._give_up(agent, upload)
        held_s = seconds(cancelled.held)
        self.report(e.UploadCancelled(seconds(now_ps), agent.name, cancelled.num_blocks, held_s))

    def _give_up(self, agent: SimAgent, upload: Upload[BlockHold, int]) -> None:
        self._gpu.free(upload.held, agent.owner)

    # -- pins

    def pin(self, agent: SimAgent, until_ps: int) -> None:
        """Hold what is cached of an agent's context until then, or until its next call holds it."""
        agent.pin_until = until_ps
        if may_pin(agent, self.refusing):
            path = self._path(agent.context)
            end, _ = self._gpu.cached_prefix(path, agent.context_blocks)
            if end:
                agent.pin = self._gpu.touch(path, end)
                self.pinned[agent.name] = agent
                self._gpu.keep(agent.pin, agent.owner)

    def unpin(self, agent: SimAgent) -> None:
        if agent.pin is not None:
            self._gpu.free(agent.pin, agent.owner)
            agent.pin = None
            del self.pinned[agent.name]

    def next_unpin_ps(self) -> int:
        """When the next pin expires; there must be one."""
        return min(agent.pin_until for agent in self.pinned.values())

    def unpin_expired(self, now_ps: int) -> None:
        """Give up the pins whose time is over."""
        for agent in expired_pins(self.pinned.values(), now_ps):
            self.unpin(agent)

    # -- checks

    def check(self, agents: Collection[SimAgent], *, idle: bool) -> None:
        """Raises `CheckError` if what is held for agents does not agree. `idle`: no copy is under way."""
        pinned = {agent.name for agent in agents if agent.pin is not None}
        agree("pinned agents", set(self.pinned), pinned)
        if idle:
            agree("nodes whose blocks are being copied", [*self._storing, *self._loading], [])
        for agent in agents:
            ready = [upload.ready_at is not None for upload in agent.uploads]
            agree(f"cancelled uploads of {agent.name!r}", any(upload.cancelled for upload in agent.uploads), False)
            if idle:
                agree(f"whether an offload of {agent.name!r} is under way", agent.offloading, False)
                agree(f"whether the uploads of {agent.name!r} are ready", all(ready), True)

    # -- the order of eviction

    def evict_first(self, agents: Sequence[SimAgent]) -> None:
        """Idle blocks of these agents' contexts are handed out first; what two of them share, with the later one."""
        moved: set[BlockRun] = set()
        for agent in reversed(agents):
            self._gpu.evict_first(self._path(agent.context), agent.context_blocks, moved)
