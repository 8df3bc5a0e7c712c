"""Autellix: programs that have had little of the engine go first.

Source: M. Luo et al., "Autellix: An Efficient Serving Engine for LLM Agents as General Programs", arXiv 2502.13965.

The rule. A program is an application here. A call's priority is what its program was served before: under PLAS the
time that all its ended calls ran, in sum; under ATLAS, for programs that branch, the longest path of such times that
was seen so far (a call begins where the path stands at its arrival, and its end moves the path on). Priorities are
few: queues with intervals of service, the first `first_quantum_s` long, each next one `growth` times as long, the last
one open. A call joins the queue of its priority; what it runs itself is added, so it sinks when it has used up its
queue's quantum. Inside a queue the call that arrived first goes first. A call whose program has waited at least `beta`
times as long as it was served rises to the first queue with a fresh quantum.

What the paper leaves open, or stock vLLM cannot do:

- Service is the time between a call's admission and its end or preemption, prefill and decode alike, as the engine's
  facts tell it. That is the time the paper speaks of, and needs no belief: `View.costs` knows no cost of a decoded
  token, and a count of tokens would need a weight between a computed prompt and an answer.
- A running call gives way only when a running call cannot grow; vLLM has no way to take the place of one for a call
  that waits. Then the call of the last queue that arrived last goes first, and recomputes instead of being swapped.
- Waiting and service that are compared with `beta` are sums over all calls of the program, under ATLAS too: branches
  starve together. A program without service is in the first queue anyway.
- A call rises at the first news after its time has come. Order matters only where room came free, which is news.
- A call that does not fit blocks those behind it, as in vLLM; otherwise short prompts would overtake by their size.
- The numbers are choices of ours: with 8 queues from 1 s on, doubled, a program of two minutes is in the last one, and
  `beta` is large enough to be the exception.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import accumulate, count
from math import isfinite
from typing import ClassVar, Literal

from ...traces import events as e
from ...traces.apps import AppId, CallId
from ...traces.errors import PolicyError
from ..interface import Plan, View
from ..parts.dispatch import Handler, tell

Place = tuple[int, float, int, CallId]  # queue, arrival, number; no two are equal in these


class ProgramService:
    """What an application was given, and how long it waited for it, in seconds."""

    __slots__ = ("path_s", "served_s", "waited_s")

    def __init__(self) -> None:
        self.served_s = 0.0  # all its calls
        self.path_s = 0.0  # the longest path of calls that followed each other
        self.waited_s = 0.0  # all its calls in the queue


class ProgramCall:
    """A call between its arrival and its end."""

    __slots__ = (
        "arrived_s", "before_s", "id", "level", "number", "program", "running", "since_s", "start_s", "used_s",
    )  # fmt: skip

    def __init__(self, call: CallId, number: int, program: ProgramService, before_s: float, at_s: float) -> None:
        self.id = call
        self.number = number  # calls that arrived before it
        self.program = program
        self.arrived_s = at_s
        self.before_s = before_s  # of its program's service, when it arrived
        self.used_s = 0.0  # it ran so long
        self.start_s = before_s  # what its queue is found by, less what it ran; it falls when the call rises
        self.level = 0  # of its queue, 0 is the first
        self.running = False
        self.since_s = at_s  # it waits, or runs

    @property
    def place(self) -> Place:
        """Where it stands among the waiting calls, the smallest first."""
        return self.level, self.arrived_s, self.number, self.id


class Autellix:
    """The programs served least so far go first.

    Waiting calls are ordered by a multi-level feedback queue on the attained service of whole programs.
    """

    listens_to: ClassVar[frozenset[type]] = frozenset(
        {e.CallArrived, e.CallAdmitted, e.CallPreempted, e.CallFinished, e.CallAborted}
    )

    def __init__(
        self,
        rule: Literal["plas", "atlas"] = "plas",
        queues: int = 8,
        first_quantum_s: float = 1.0,
        growth: float = 2.0,
        beta: float = 10.0,
    ) -> None:
        if rule not in ("plas", "atlas"):
            raise PolicyError(f"autellix: option rule: expected plas or atlas, got {rule!r}")
        if queues < 1:
            raise PolicyError(f"autellix: option queues: expected at least 1, got {queues!r}")
        for name, value in (("first_quantum_s", first_quantum_s), ("growth", growth), ("beta", beta)):
            if not (isfinite(value) and value > 0):
                raise PolicyError(f"autellix: option {name}: expected a number above 0, got {value!r}")
        self._by_path = rule == "atlas"
        self._beta = beta
        self._ends_s = list(accumulate(first_quantum_s * growth**i for i in range(queues - 1)))  # of all but the last
        self._programs: dict[AppId, ProgramService] = {}
        self._calls: dict[CallId, ProgramCall] = {}
        self._numbers = count()  # of calls, as they arrive
        self._queue: list[Place] = []  # of the waiting calls
        self._entries = count()  # of `_rises`: a call may be in it twice for the same time
        self._rises: list[tuple[float, int, ProgramCall]] = []  # when which waiting call may rise, at the earliest
        self._handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.CallPreempted: self._preempted,
            e.CallFinished: self._finished,
            e.CallAborted: self._finished,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Waiting calls by queue and arrival; victims the other way round, if running calls may run out of room."""
        tell(view.news, self._handlers)
        self._rise(view.now_s)
        scarce = view.free_blocks < view.growth_blocks
        places = max(0, view.max_running - len(view.running))
        return Plan(
            admit=tuple([place[-1] for place in self._queue[:places]]),
            preempt=self._victims(view) if scarce else (),
        )

    def _victims(self, view: View) -> tuple[CallId, ...]:
        now_s = view.now_s
        calls = [self._calls[name] for name in view.running]
        calls.sort(key=lambda call: (-self._level(call, now_s - call.since_s), -call.arrived_s, -call.number))
        return tuple(call.id for call in calls)

    def _level(self, call: ProgramCall, more_s: float = 0.0) -> int:
        return bisect_right(self._ends_s, call.start_s + call.used_s + more_s)

    # -- the queue

    def _wait(self, call: ProgramCall) -> None:
        call.level = self._level(call)
        insort(self._queue, call.place)
        if call.level:
            self._rise_at(self._rises_s(call), call)

    def _rises_s(self, call: ProgramCall) -> float:
        """When its program will have waited `beta` times its service, if it is served no more until then."""
        program = call.program
        return call.since_s + self._beta * program.served_s - program.waited_s

    def _rise(self, now_s: float) -> None:
        rises = self._rises
        later = []
        while rises and rises[0][0] <= now_s:
            call = heappop(rises)[-1]
            if self._calls.get(call.id) is not call or call.running or not call.level:
                continue
            rises_s = self._rises_s(call)
            if rises_s > now_s:  # its program was served meanwhile
                later.append((rises_s, call))
                continue
            self._leave(call)
            call.start_s = -call.used_s
            self._wait(call)
        for rises_s, call in later:
            self._rise_at(rises_s, call)

    def _rise_at(self, at_s: float, call: ProgramCall) -> None:
        heappush(self._rises, (at_s, next(self._entries), call))

    def _leave(self, call: ProgramCall) -> None:
        del self._queue[bisect_right(self._queue, call.place) - 1]

    # -- facts

    def _arrived(self, fact: e.CallArrived) -> None:
        request = fact.request
        program = self._programs.get(request.app)
        if program is None:
            program = self._programs[request.app] = ProgramService()
        before_s = program.path_s if self._by_path else program.served_s
        call = self._calls[request.id] = ProgramCall(request.id, next(self._numbers), program, before_s, fact.at_s)
        self._wait(call)

    def _admitted(self, fact: e.CallAdmitted) -> None:
        call = self._calls[fact.call]
        self._leave(call)
        call.program.waited_s += fact.at_s - call.since_s
        call.running = True
        call.since_s = fact.at_s

    def _preempted(self, fact: e.CallPreempted) -> None:
        call = self._calls[fact.call]
        self._stop(call, fact.at_s)
        call.since_s = fact.at_s
        self._wait(call)

    def _finished(self, fact: e.CallFinished | e.CallAborted) -> None:
        """It ended, or was given up: running, or in the queue (its last token may come after a preemption)."""
        call = self._calls.pop(fact.call)
        if call.running:
            self._stop(call, fact.at_s)
        else:
            self._leave(call)
            call.program.waited_s += fact.at_s - call.since_s
        call.program.path_s = max(call.program.path_s, call.before_s + call.used_s)

    def _stop(self, call: ProgramCall, at_s: float) -> None:
        ran_s = at_s - call.since_s
        call.used_s += ran_s
        call.program.served_s += ran_s
        call.running = False

    def _app_finished(self, fact: e.AppFinished) -> None:
        self._programs.pop(fact.app, None)
