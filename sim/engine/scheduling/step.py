"""A step: the iterations that one schedule of the engine's brings, and how they are logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ....traces.apps import CallId
from ..requests import EngineCall
from .pace import Pace


class Scheduled(NamedTuple):
    """One iteration as it was scheduled: what is held against vLLM's scheduler, and what a calibration is made for."""

    at_ps: int
    tokens: dict[CallId, int]  # by call, in the order of admission
    free_blocks: int  # afterwards
    evicted_blocks: int  # since the start


StepLog = Callable[[Scheduled], None]


class Step:
    """Iterations that are scheduled but not done."""

    __slots__ = ("finals", "iterations", "pace", "prefill_tokens")

    def __init__(self) -> None:
        self.prefill_tokens: dict[EngineCall, int] = {}  # of each call in the middle of its prompt, in each iteration
        self.finals: list[EngineCall] = []  # calls whose prefill is complete after the only iteration
        self.iterations = 1
        self.pace: Pace  # known when the schedule is complete
