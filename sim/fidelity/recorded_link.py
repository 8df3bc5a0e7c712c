"""A link whose copies end when a record says so."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify

from ...traces import events as e
from ...traces.events import Fact
from ..engine.memory.link import Done, Link
from ..machine.timing import Timing
from .record_steps import CopyEnd, OfACall

_Whose = tuple[type, str]  # the fact that tells of a copy's end, and the agent or call that it names
_FINISHED: Mapping[type, type] = {
    e.OffloadStarted: e.OffloadFinished,
    e.UploadStarted: e.UploadFinished,
    e.LoadStarted: e.LoadFinished,
    e.StoreStarted: e.StoreFinished,
}


class RecordedLink(Link):
    """Copies end when the record says so."""

    def __init__(self, timing: Timing) -> None:
        super().__init__(timing)
        self._starting: _Whose | None = None
        self._of: dict[int, _Whose] = {}  # by order of submission

    def told(self, fact: Fact) -> None:
        """Hear of copies: the next submission is the one that was told of last."""
        if isinstance(fact, e.OffloadStarted | e.UploadStarted | e.LoadStarted | e.StoreStarted):
            whose = fact.call if isinstance(fact, OfACall) else fact.agent
            self._starting = (_FINISHED[type(fact)], whose)
        elif isinstance(fact, e.UploadCancelled):
            for order, whose_copy in self._of.items():
                if whose_copy == (e.UploadFinished, fact.agent):
                    self._of[order] = (e.UploadReleased, fact.agent)

    def end(self, fact: CopyEnd, now_ps: int) -> None:
        """The record tells of the end of a copy. If none such is under way here, that shows elsewhere."""
        whose = (type(fact), fact.call if isinstance(fact, OfACall) else fact.agent)
        entry = next((entry for entry in sorted(self.under_way) if self._of[entry[1]] == whose), None)
        if entry is not None:
            self.under_way.remove(entry)
            heapify(self.under_way)
            del self._of[entry[1]]
            entry[2](now_ps)

    def finish(self, now_ps: int) -> None:
        """Nothing ends by itself."""

    def _submit(self, way: str, blocks: int, from_ps: int, done: Done) -> None:
        super()._submit(way, blocks, from_ps, done)
        assert self._starting is not None
        self._of[self._submitted] = self._starting
