"""Which waiting calls could start now, and how much room that leaves: what the temporal half must know of the queue."""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

from ..traces.apps import CallId
from .interface import View

LOOK_AHEAD_CALLS = 128  # published


class Rival(NamedTuple):
    """The most urgent waiting call that found no room."""

    score: float
    need_blocks: int  # at least


class Admission(NamedTuple):
    """Calls that start now, in order, or None for the engine's own order, and what that means for memory."""

    admit: tuple[CallId, ...] | None
    fit_blocks: int  # that the calls which could start now take
    room_blocks: int  # that are left after them, free and promised to nobody


def first_come(view: View) -> tuple[Admission, Rival | None]:
    """What vLLM itself would admit now: in the order of the queue, up to the first call whose prompt does not fit."""
    room = view.free_blocks
    fit = 0
    looked_at = 0
    for call, state in view.waiting.items():
        if state.loading:
            continue
        tokens = state.request.prompt_tokens + state.generated_tokens
        hits = view.hits(call)
        need = ceil(tokens / view.block_tokens) - hits.gpu_blocks + hits.idle_blocks
        if need > room:
            return Admission(None, fit, room), Rival(inf, need)
        room -= need
        fit += need
        looked_at += 1
        if looked_at == LOOK_AHEAD_CALLS:
            break
    return Admission(None, fit, room), None
