"""What copies do, in blocks of one context: which blocks, refused or not, what is reported. Both engines call this.

An engine's `Copies` asks its pools how far a context is cached, asks here what that comes to, and does it with its
pools. `refusing`: calls starve for what is held ahead of need, and nothing more is held until one has finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ..interface import Extent, Move
from .agent_cache import AgentCache, Held, Upload

Cache = TypeVar("Cache", bound=AgentCache[Any, Any, Any])
Time = TypeVar("Time", int, float)


class BlockSpan(NamedTuple):
    """Blocks `first` … `end - 1` of a context."""

    first: int
    end: int


# -- offloads


def blocks_to_move(agent: AgentCache[Any, Any, Any], move: Move) -> int:
    """How many blocks of its context are meant: a plan may want more than there are."""
    return min(move.blocks, agent.context_blocks)


def offload_span(
    agent: AgentCache[Any, Any, Any], first: int, cached_end: int, saved_blocks: int, free_slots: int, refusing: bool
) -> BlockSpan | None:
    """Which blocks an offload copies; None: it is refused. Nothing to copy is no reason: others have copied them.

    `first`: behind what the host has and what other copies are writing. `cached_end`: how far the GPU has the blocks
    from there on. `saved_blocks`: of the host copy that the agent has. `free_slots`: on the host.
    """
    end = min(cached_end, first + free_slots)
    if refusing or agent.offloading or agent.gone or end <= saved_blocks:
        return None
    return BlockSpan(first, end)


# -- uploads


class UploadStart(NamedTuple):
    """Where an upload begins to hold blocks of a context, and where to copy: those before are on the GPU."""

    hold: int
    copy: int


def upload_start(uploads: Sequence[Upload[Any, Any]], gpu_end: int) -> UploadStart:
    """Where the next upload of an agent begins, whose context the GPU has up to `gpu_end`.

    Behind that, earlier uploads may be on their way. What they hold, it does not hold again.
    """
    copy = gpu_end
    for upload in uploads:
        if upload.first_block <= copy < upload.end_block:
            copy = upload.end_block
    if copy > gpu_end:
        return UploadStart(copy, copy)
    return UploadStart(min(uploads[-1].end_block, gpu_end) if uploads else 0, copy)


def upload_span(
    agent: AgentCache[Any, Any, Any], first: int, host_end: int, room: int, refusing: bool
) -> BlockSpan | None:
    """Which blocks an upload copies; None: it is refused. An agent whose call waits gets no more: that call loads.

    `host_end`: how far the host has the blocks from `first` on. `room`: free blocks of the GPU, without those that
    holding what is cached will take.
    """
    end = min(host_end, first + room)
    if refusing or agent.gone or agent.waiting or end <= first:
        return None
    return BlockSpan(first, end)


def uploading(agent: AgentCache[Any, Any, Any]) -> bool:
    """Whether an upload for this agent is still on its way."""
    return any(upload.ready_at is None for upload in agent.uploads)


def ready_blocks(agent: AgentCache[Any, Any, Any]) -> int:
    """How many blocks were copied back for the agent's next call, and are there."""
    return sum(upload.num_blocks for upload in agent.uploads if upload.ready_at is not None)


class TakenUploads(NamedTuple, Generic[Held, Time]):
    """What an agent's call found copied back. The last of it was ready so long before the call, or after it."""

    uploads: tuple[Upload[Held, Time], ...]
    num_blocks: int
    early: Time
    late: Time


def take_uploads(agent: AgentCache[Held, Any, Time], arrived: Time, now: Time) -> TakenUploads[Held, Time]:
    """The agent's call, which arrived then, holds its blocks itself now. There must be uploads; all are given up."""
    uploads, agent.uploads = agent.uploads, ()
    ready = max(now if upload.ready_at is None else upload.ready_at for upload in uploads)
    both = max(arrived, ready)
    return TakenUploads(uploads, sum(upload.num_blocks for upload in uploads), both - ready, both - arrived)


class CancelledUploads(NamedTuple, Generic[Held, Time]):
    """What was copied back, or is on its way, for nothing. `ready` can be given up now, the rest when it has come."""

    ready: list[Upload[Held, Time]]
    num_blocks: int
    held: Time  # since the first of them started


def cancel_uploads(agent: AgentCache[Held, Any, Time], now: Time) -> CancelledUploads[Held, Time]:
    """An agent's uploads are wanted no more. There must be some. Those on their way are marked as cancelled."""
    uploads, agent.uploads = agent.uploads, ()
    ready = [upload for upload in uploads if upload.ready_at is not None]
    for upload in uploads:
        upload.cancelled = upload.ready_at is None
    held = now - min(upload.started_at for upload in uploads)
    return CancelledUploads(ready, sum(upload.num_blocks for upload in uploads), held)


# -- pins


def may_pin(agent: AgentCache[Any, Any, Any], refusing: bool) -> bool:
    """Whether what is cached of an agent is held from now on, if anything is. A call that waits holds it by itself."""
    return agent.pin is None and bool(agent.context_blocks) and not agent.waiting and not refusing


def expired_pins(pinned: Iterable[Cache], now: float) -> list[Cache]:
    """The agents of those that are pinned whose time is over."""
    return [agent for agent in pinned if agent.pin_until <= now]


# -- write-through


def tokens_to_store(extent: Extent, computed_tokens: int, prompt_tokens: int) -> int:
    """How many tokens of a call are written through when it has computed so many."""
    return min(computed_tokens, prompt_tokens) if extent == "prompts" else computed_tokens


def tokens_left_behind(extent: Extent, prompt_tokens: int, output_tokens: int) -> int:
    """How many tokens of a call that has ended are written through. Its last one has no KV."""
    return prompt_tokens if extent == "prompts" else prompt_tokens + output_tokens - 1
