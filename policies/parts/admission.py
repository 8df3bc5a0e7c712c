"""Which waiting calls could start now, and how much room that leaves to copies."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import NamedTuple

from ...traces.apps import CallId
from ..interface import Hits, View

LOOK_AHEAD_CALLS = 128  # published


def needed_blocks(tokens: int, hits: Hits, block_tokens: int) -> int:
    """Free blocks that so many tokens of a waiting call take: cached ones count if nobody holds them."""
    return ceil(tokens / block_tokens) - hits.gpu_blocks + hits.idle_blocks


class Claim:
    """Room that is wanted for something else than a waiting call, with the score of the call that it is for."""

    __slots__ = ("blocks", "granted_blocks", "score")

    def __init__(self, score: float, blocks: int) -> None:
        self.score = score
        self.blocks = blocks
        self.granted_blocks = 0

    def grant(self, room_blocks: int) -> int:
        """Take what there is of what is wanted, and say how much that is."""
        self.granted_blocks = max(0, min(self.blocks, room_blocks))
        return self.granted_blocks


class Rival(NamedTuple):
    """The most urgent waiting call that found no room, and might in the room that uploads hold."""

    score: float
    need_blocks: int  # at least


class Admission(NamedTuple):
    """Calls that start now, in order, or None for the engine's own order, and what that means for memory."""

    admit: tuple[CallId, ...] | None
    fit_blocks: int  # that the calls which could start now take
    room_blocks: int  # that are left after them and all claims, free and promised to nobody
    rival: Rival | None = None
    preempt: tuple[CallId, ...] = ()  # running calls, first victim first


def first_come(view: View, claims: Sequence[Claim]) -> Admission:
    """What vLLM itself would admit now: in the order of the queue, up to the first call whose prompt does not fit.

    Claims get what is left and promised to no running call: a first-come queue puts the calls that they are for behind
    those that wait already.
    """
    room = view.free_blocks
    fit = 0
    rival = None
    looked_at = 0
    for call, state in view.waiting.items():
        if state.loading:
            continue
        tokens = state.request.prompt_tokens + state.generated_tokens
        need = needed_blocks(tokens, view.hits(call), view.block_tokens)
        if need > room:
            rival = Rival(inf, need)
            break
        room -= need
        fit += need
        looked_at += 1
        if looked_at == LOOK_AHEAD_CALLS:
            break
    room = max(0, room - view.growth_blocks)
    for claim in claims:
        room -= claim.grant(room)
    return Admission(None, fit, room, rival)


def startable_blocks(view: View, enough_blocks: int) -> int:
    """Blocks of waiting calls that could be admitted now, counted only until they are enough.

    That is each, of the first 128 in the queue, whose prompt fits into what those before it leave free; who does not
    fit is passed over. Reserves and promises do not matter here: what is free now is what might be overwritten.
    """
    room = view.free_blocks
    fit = looked_at = 0
    for call, state in view.waiting.items():
        if fit >= enough_blocks or not room or looked_at == LOOK_AHEAD_CALLS:
            break
        if state.loading:
            continue
        looked_at += 1
        tokens = state.request.prompt_tokens + state.generated_tokens
        need = needed_blocks(tokens, view.hits(call), view.block_tokens)
        if need <= room:
            room -= need
            fit += need
    return fit
