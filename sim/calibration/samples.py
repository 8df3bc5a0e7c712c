"""What a live run's facts say about time: how long each step and each copy took, and what was in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...traces import events as e
from ...traces.apps import CallId

AT_ONCE_S = 0.005  # a call that is due so soon after a step's end follows on it at once: a round of the client's loop

SHORTEST_S = 1e-12  # what took less took no time: no clock tells so little, and numbers overflow behind it


class HostShare(NamedTuple):
    """What of a step's time was not the workers', and for whom the engine worked then on the host."""

    seconds: float
    admitted: int  # calls
    sampled: int  # tokens


class StepSample(NamedTuple):
    """A step that took `seconds`. The sums are those of a machine's step time, see `Stepped`."""

    seconds: float
    prefill_tokens: int
    attended_tokens: int
    decode_calls: int
    context_tokens: int
    host: HostShare | None = None  # None: not known
    explained_s: float = 0.0  # of `seconds`, what is in other constants than the sums': not theirs to explain


class CopySample(NamedTuple):
    """A copy of `blocks` blocks: how long it took by itself, or else from its start until the engine saw its end."""

    to_host: bool
    blocks: int
    seconds: float


class Samples:
    """Folds facts into samples. `add` is a sink of a live run whose steps are reported (`Stepped`).

    A step's time is what a call that waits for it sees: from the end of the step before, or from when the first call
    became due if the engine had none, to its own end. So the scheduler, the client and what lies between two steps are
    in it, and the steps of a busy engine come to the whole time that it was busy: a client that follows a call's end
    with the next call in no time, as far as anybody can see, is part of that. Where a call waited for a copy between
    two steps, the later one counts from when it was scheduled. A new run starts the time anew.

    Where a step says what the workers took, the rest of its time is the host's.
    """

    def __init__(self) -> None:
        self.steps: list[StepSample] = []
        self.copies: list[CopySample] = []
        self._begin()
        self._handlers: Mapping[type, Callable[[Any], object]] = {
            e.RunStarted: lambda fact: self._begin(),
            e.CallArrived: self._call_arrived,
            e.CallFinished: self._call_ended,
            e.CallAborted: self._call_ended,
            e.Stepped: self._stepped,
            e.Copied: self._copied,
            e.CallAdmitted: self._call_admitted,
            e.FirstToken: self._first_token,
            e.LoadStarted: self._load_started,
            e.LoadFinished: self._load_finished,
            e.OffloadStarted: lambda fact: self._copy_started(True, fact.agent, fact),
            e.OffloadFinished: lambda fact: self._copy_finished(True, fact.agent, fact.at_s),
            e.UploadStarted: lambda fact: self._copy_started(False, fact.agent, fact),
            e.UploadFinished: lambda fact: self._copy_finished(False, fact.agent, fact.at_s),
            e.UploadCancelled: lambda fact: self._started.pop((False, fact.agent), None),
        }

    def add(self, fact: object) -> None:
        """Takes the next fact; of most kinds nothing is needed."""
        handler = self._handlers.get(type(fact))
        if handler is not None:
            handler(fact)

    def _begin(self) -> None:
        self._calls: set[CallId] = set()  # that arrived and have not ended
        self._due_s = 0.0  # when the engine had something to do again, after it had nothing
        self._ended_s = 0.0  # the last step
        self._loads: set[CallId] = set()  # under way: for whom
        self._loaded = False  # since the last step
        self._admitted = 0  # calls, since the last step
        self._firsts = 0  # first tokens of calls, since the last step
        self._started: dict[
            tuple[bool, str], tuple[float, int]
        ] = {}  # copies, by direction and whose: since when, blocks
        self._timed = False  # whether the workers tell how long copies take
        self._link_free_s = {True: 0.0, False: 0.0}  # end of the last copy to the host, and to the GPU

    def _call_arrived(self, fact: e.CallArrived) -> None:
        if not self._calls:
            self._due_s = fact.at_s if fact.at_s > self._ended_s + AT_ONCE_S else self._ended_s
        self._calls.add(fact.request.id)

    def _call_ended(self, fact: e.CallFinished | e.CallAborted) -> None:
        self._calls.discard(fact.call)
        self._loads.discard(fact.call)

    def _call_admitted(self, fact: e.CallAdmitted) -> None:
        self._loads.discard(fact.call)  # one that was given up has no end
        self._admitted += 1

    def _first_token(self, fact: e.FirstToken) -> None:
        self._firsts += 1

    def _stepped(self, fact: e.Stepped) -> None:
        if not (fact.prefill_tokens or fact.decode_calls):
            return
        if fact.from_s < self._ended_s:  # asynchronous scheduling: it was scheduled while the one before it ran
            began_s = self._ended_s
        elif self._loaded:
            began_s = fact.from_s
        else:
            began_s = min(max(self._ended_s, self._due_s), fact.from_s)
        self._ended_s = fact.at_s
        self._loaded = bool(self._loads)
        seconds = fact.at_s - began_s
        if seconds >= SHORTEST_S:
            sums = (fact.prefill_tokens, fact.attended_tokens, fact.decode_calls, fact.context_tokens)
            self.steps.append(StepSample(seconds, *sums, self._host(fact, seconds)))
        self._admitted = self._firsts = 0

    def _host(self, fact: e.Stepped, seconds: float) -> HostShare | None:
        if fact.worker_s is None or not 0 <= fact.worker_s <= seconds:
            return None
        rest_s = max(seconds - fact.worker_s, SHORTEST_S)
        return HostShare(rest_s, self._admitted, fact.decode_calls + self._firsts)

    def _load_started(self, fact: e.LoadStarted) -> None:
        self._loads.add(fact.call)
        self._loaded = True
        self._copy_started(False, fact.call, fact)

    def _load_finished(self, fact: e.LoadFinished) -> None:
        self._loads.discard(fact.call)
        self._copy_finished(False, fact.call, fact.at_s)

    def _copied(self, fact: e.Copied) -> None:
        self._timed = True
        if fact.blocks and fact.seconds >= SHORTEST_S:
            self.copies.append(CopySample(fact.to_host, fact.blocks, fact.seconds))

    def _copy_started(self, to_host: bool, who: str, fact: e.OffloadStarted | e.UploadStarted | e.LoadStarted) -> None:
        self._started[to_host, who] = (fact.at_s, fact.blocks)

    def _copy_finished(self, to_host: bool, who: str, at_s: float) -> None:
        """The end of a copy; of one that was begun again meanwhile, nothing is known."""
        asked_s, blocks = self._started.pop((to_host, who), (at_s, 0))
        began_s = max(asked_s, self._link_free_s[to_host])  # one at a time on the link
        self._link_free_s[to_host] = at_s
        if blocks and not self._timed and at_s - began_s >= SHORTEST_S:
            self.copies.append(CopySample(to_host, blocks, at_s - began_s))
