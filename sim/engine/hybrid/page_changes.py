"""When decoding calls next take a page or give one back."""

from __future__ import annotations

from heapq import heappop, heappush

from ..requests import EngineCall
from .hybrid_pool import HybridHold

Change = tuple[int, int, EngineCall]  # iteration, order of admission, call


class PageChanges:
    """The next change of each decoding call, ordered by iteration and then by admission, as vLLM's loop goes."""

    def __init__(self) -> None:
        self._coming: list[Change] = []  # what is no longer so is stale

    def add(self, call: EngineCall, hold: HybridHold) -> None:
        """A decoding call changes next at `hold.change_tokens`."""
        heappush(self._coming, (_iteration(call, hold), call.admission, call))

    def next_iteration(self) -> int:
        """The iteration of the next change; −1: there is none."""
        coming = self._coming
        while coming:
            if _is_current(coming[0]):
                return coming[0][0]
            heappop(coming)
        return -1

    def due(self, iteration: int) -> list[EngineCall]:
        """Take out the calls that change up to this iteration."""
        coming = self._coming
        calls: list[EngineCall] = []
        while coming and coming[0][0] <= iteration:
            change = heappop(coming)
            if _is_current(change):
                calls.append(change[2])
        return calls


def _iteration(call: EngineCall, hold: HybridHold) -> int:
    return call.joined_at_iteration + hold.change_tokens - call.num_computed_tokens


def _is_current(change: Change) -> bool:
    iteration, admission, call = change
    hold = call.hold
    if not call.decoding or call.admission != admission or not isinstance(hold, HybridHold):
        return False
    return _iteration(call, hold) == iteration
