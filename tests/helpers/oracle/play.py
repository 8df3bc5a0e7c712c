"""Plays applications against an engine in virtual time, step by step, and writes down what every step did.

The loop is that of vLLM's `EngineCore`: take arrivals, schedule, wait, update. With asynchronous scheduling it keeps
two steps in flight, so the next step is scheduled when the running one starts (`EngineCore.step_with_batch_queue`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces.apps import Application, Call, CallId


class Piece(NamedTuple):
    """Tokens of one call in one step."""

    call: CallId
    tokens: int
    computed_tokens: int  # tokens with KV before the step
    decode: bool  # all of the prompt, and of what it lost by a preemption, has been computed before


class Schedule(NamedTuple):
    """What one `schedule()` of an engine did."""

    pieces: tuple[Piece, ...]
    admitted: tuple[tuple[CallId, int], ...]  # and the blocks that it hit
    preempted: tuple[CallId, ...]
    free_blocks: int  # afterwards
    evicted_blocks: int  # hashes dropped since the start
    sampled_tokens: int  # when its step ends


class Engine(Protocol):
    """A scheduler with its KV cache, without a clock."""

    def add(self, call: Call) -> None: ...
    def schedule(self) -> Schedule: ...
    def update(self, schedule: Schedule) -> list[CallId]:
        """The oldest step in flight ended: its tokens arrive. Returns the calls that finished, in order.

        Schedules that neither computed nor preempted anything are not in flight.
        """
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step that computed tokens or preempted a call."""

    number: int
    scheduled_ps: int
    start_ps: int
    end_ps: int
    tokens: dict[CallId, int]
    admitted: tuple[tuple[CallId, int], ...]
    preempted: tuple[CallId, ...]
    free_blocks: int  # after scheduling
    evicted_blocks: int  # since the start of the run
    finished: tuple[CallId, ...]


class Stuck(Exception):
    """Nothing is in flight, nothing can be scheduled, and nobody will arrive."""


def play(engine: Engine, applications: Sequence[Application], machine: Machine) -> Iterator[Step]:
    """Every step of the engine until all applications are done."""
    timing = machine.timing()
    clients = Clients(applications, timing.client_ps)
    in_flight: deque[tuple[int, int, int, Schedule]] = deque()  # scheduled, start, end
    most_in_flight = 2 if machine.asynchronous else 1
    now_ps = number = 0
    while clients.unfinished:
        for call in clients.arrivals(now_ps):
            engine.add(call)
        if len(in_flight) < most_in_flight:
            schedule = engine.schedule()
            if schedule.pieces or schedule.preempted:
                start_ps = max(now_ps, in_flight[-1][2]) if in_flight else now_ps
                in_flight.append((now_ps, start_ps, start_ps + step_ps(schedule, machine), schedule))
                if len(in_flight) < most_in_flight:
                    continue
            elif not in_flight:
                now_ps = clients.next_arrival_ps()
                continue
            # An empty step is queued behind the running one: whoever arrives meanwhile waits for that one's end.
        scheduled_ps, start_ps, now_ps, schedule = in_flight.popleft()
        finished = engine.update(schedule)
        for call_id in finished:
            clients.finish(call_id, now_ps)
        yield _record(number, (scheduled_ps, start_ps, now_ps), schedule, finished)
        number += 1


def step_ps(schedule: Schedule, machine: Machine) -> int:
    """How long the step takes."""
    if not schedule.pieces:
        return 0
    chunks = [(piece.tokens, piece.computed_tokens) for piece in schedule.pieces if not piece.decode]
    contexts = [piece.computed_tokens for piece in schedule.pieces if piece.decode]
    completed = schedule.sampled_tokens - len(contexts)
    return machine.timing().of_step(chunks, contexts, admitted=len(schedule.admitted), completed=completed)


def _record(number: int, times_ps: tuple[int, int, int], schedule: Schedule, finished: list[CallId]) -> Step:
    return Step(
        number,
        *times_ps,
        tokens={piece.call: piece.tokens for piece in schedule.pieces},
        admitted=schedule.admitted,
        preempted=schedule.preempted,
        free_blocks=schedule.free_blocks,
        evicted_blocks=schedule.evicted_blocks,
        finished=tuple(finished),
    )


@dataclass(slots=True)
class _Awaited:
    """A call that has not been sent yet."""

    order: tuple[int, int]  # of its application, and in it: breaks ties between arrivals
    call: Call
    missing: int  # calls that it waits for and that have not ended
    ready_ps: int  # when the last of what it waits for was done, as far as is known


@dataclass(slots=True)
class Clients:
    """Sends each call when all that it waits for is done."""

    applications: Sequence[Application]
    client_ps: int
    unfinished: int = 0
    _awaited: dict[CallId, _Awaited] = field(default_factory=dict)
    _followers: dict[CallId, list[CallId]] = field(default_factory=dict)
    _calls: dict[CallId, Call] = field(default_factory=dict)
    _due: list[tuple[int, tuple[int, int], Call]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for app_order, application in enumerate(self.applications):
            for order, call in enumerate(application.calls):
                self.unfinished += 1
                self._calls[call.id] = call
                awaited = _Awaited((app_order, order), call, len(set(call.after)), ps(application.arrival_s))
                self._awaited[call.id] = awaited
                for before in set(call.after):
                    self._followers.setdefault(before, []).append(call.id)
                self._send_if_ready(awaited)

    def arrivals(self, now_ps: int) -> list[Call]:
        """The calls that have arrived by now and were not asked for before, in order of arrival."""
        arrived = []
        while self._due and self._due[0][0] <= now_ps:
            arrived.append(heappop(self._due)[2])
        return arrived

    def next_arrival_ps(self) -> int:
        if not self._due:
            raise Stuck(f"{self.unfinished} calls are left and none can be scheduled")
        return self._due[0][0]

    def finish(self, call_id: CallId, now_ps: int) -> None:
        """The call ended: its tools run, then the calls that waited only for it are sent."""
        self.unfinished -= 1
        returned_ps = now_ps + max((ps(tool.duration_s) for tool in self._calls[call_id].tools), default=0)
        for follower in self._followers.get(call_id, ()):
            awaited = self._awaited[follower]
            awaited.missing -= 1
            awaited.ready_ps = max(awaited.ready_ps, returned_ps)
            self._send_if_ready(awaited)

    def _send_if_ready(self, awaited: _Awaited) -> None:
        if not awaited.missing:
            arrival_ps = awaited.ready_ps + self.client_ps + ps(awaited.call.pause_s)
            heappush(self._due, (arrival_ps, awaited.order, awaited.call))


def ps(seconds: float) -> int:
    """Whole picoseconds, the unit of all times here."""
    return round(seconds * PS_PER_S)
