"""The calls that wait, in the order in which they may start."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain

from ....traces.apps import CallId
from ..requests import EngineCall, State


class WaitingQueue:
    """First come, first served, but for calls that lost their blocks: they go to the front.

    Where calls do not keep their places (vLLM up to 0.30), whoever was passed over, because it waits for a copy or lets
    others go first, stays in front of these, too: it goes into a queue of its own there, which is asked first.
    """

    def __init__(self, *, keeps_places: bool) -> None:
        self.calls: OrderedDict[CallId, EngineCall] = OrderedDict()
        self.loaded: dict[CallId, EngineCall] = {}  # those that hold blocks, in the order of their loads
        self._keeps_places = keeps_places
        self._passed_over: dict[CallId, None] = {}  # those at the front that stay there
        self._names: Sequence[CallId] = ()  # that a plan admits
        self._started = 0  # so many of these, from the first on, wait no more

    def add(self, call: EngineCall) -> None:
        """A call arrived, or was preempted (see `to_front`)."""
        self.calls[call.id] = call
        call.agent.waiting += 1

    def remove(self, name: CallId) -> None:
        """A call started, or has ended."""
        del self.calls[name]
        self.loaded.pop(name, None)
        self._passed_over.pop(name, None)

    def to_front(self, call: EngineCall) -> None:
        """A call waits before all others, but for those that stay in front of it."""
        self.calls.move_to_end(call.id, last=False)
        self._started = 0
        for name in reversed(self._passed_over):
            self.calls.move_to_end(name, last=False)

    def load(self, call: EngineCall) -> None:
        """A call got blocks, and their content is being loaded: it starts before those that have none."""
        self.loaded[call.id] = call
        self._passed_over.pop(call.id, None)

    def candidates(self, admit: Sequence[CallId] | None) -> Iterator[EngineCall]:
        """Waiting calls in the order in which they may start: that of `admit`, if a plan gives one.

        Only as many as are asked for: there may be thousands.
        """
        if admit is not None:
            return self._named(admit)
        ordered: Iterator[EngineCall] = iter(self.calls.values())
        if self.loaded:
            ordered = chain(self.loaded.values(), self._without_blocks())
        return ordered if self._keeps_places else self._noting_passed_over(ordered)

    def _named(self, names: Sequence[CallId]) -> Iterator[EngineCall]:
        """Those of these calls that wait. As long as a plan lasts, what has started of its first ones is left out."""
        if names is not self._names:
            self._names, self._started = names, 0
        while self._started < len(names) and names[self._started] not in self.calls:
            self._started += 1
        for at in range(self._started, len(names)):
            call = self.calls.get(names[at])
            if call is not None:
                yield call

    def _without_blocks(self) -> Iterator[EngineCall]:
        for call in self.calls.values():
            if call.state is State.WAITING:
                yield call

    def _noting_passed_over(self, ordered: Iterator[EngineCall]) -> Iterator[EngineCall]:
        """The same calls. Who has been asked and is still as it was when the next one is asked was passed over."""
        for call in ordered:
            yield call
            if call.state is State.WAITING:
                self._passed_over[call.id] = None
