"""The spatial half, switched off: calls start as vLLM starts them, first come, first served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ...traces.events import Request
from ..interface import CallView, View
from ..parts.admission import Admission, first_come
from ..parts.dispatch import Listener
from .halves import Needs
from .published.score import ALIKE, Line


class FirstCome:
    """vLLM's own order, where nothing is uploaded ahead of need: how much room it leaves is of no interest."""

    listens_to: ClassVar[frozenset[type]] = frozenset()
    listeners: Sequence[Listener] = ()

    def begin(self, view: View) -> None:
        pass

    def heeds_start(self, call: CallView, view: View) -> bool:
        return False

    def admission(self, view: View, needs: Needs) -> Admission:
        return Admission(None, 0, view.free_blocks)

    def importance(self, request: Request) -> float:
        return request.hints.importance

    def agent_score(self, request: Request) -> float:
        return 0.0

    def agent_line(self, request: Request) -> Line:
        return ALIKE


class FirstComeBesideUploads(FirstCome):
    """vLLM's own order, and the room that it leaves to uploads."""

    def admission(self, view: View, needs: Needs) -> Admission:
        if needs.claims or needs.held_blocks or needs.weighs(view):
            return first_come(view, needs.claims)
        return Admission(None, 0, view.free_blocks)
