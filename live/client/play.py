"""Plays applications against a real engine: the true DAG, tools as timed waits, the arrival schedule kept.

This is the world outside the engine, as `sim.engine.world` is for a simulated one, and with the same order of what
happens at the same time. It does no input or output, reads no clock and starts no thread: whoever drives it says what
time it is and which calls have ended.

Whatever happens has a time at which it was *due*: a call that the engine's client could send only later was due all the
same, and is measured from then on (else a slow engine would slow down its own load: coordinated omission).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple, Protocol

from ...traces.apps import AppId, Application, Call, CallId
from ...traces.dag_run import DagCall, DagRun, in_arrival_order, tools_s
from ...traces.events import Request, request_of
from ...traces.results.distribution import Distribution
from .tokens import Tokens


class ClientEngine(Protocol):
    """What a `Player` talks to. Times are seconds since the run's start; nothing here waits for the engine."""

    def app_started(self, app: AppId, due_s: float) -> None: ...
    def app_finished(self, app: AppId, due_s: float) -> None: ...
    def tool_returned(self, call: Call, due_s: float) -> None:
        """All tools of a call returned. That they started, the engine knows: when the call ended."""
        ...

    def submit(self, call: Call, request: Request, token_ids: list[int], due_s: float, last: bool) -> None:
        """Send a call. `last`: no other call of its application is sent after it."""
        ...


class _Due(NamedTuple):
    """Something that happens at a time. Calls come after all else that happens at once, in the order of the trace."""

    at_s: float
    is_call: bool
    order: tuple[int, int]
    act: Callable[[float], None]  # never compared: no two have the same order
    app: AppId | None = None  # that has begun, and whose it is


class _Play:
    """One application under way, and how much of it the engine has."""

    __slots__ = ("app", "given_up", "run", "under_way", "unsent")

    def __init__(self, app: Application, run: DagRun) -> None:
        self.app = app
        self.run = run
        self.unsent = len(app.calls)
        self.under_way = 0  # calls that the engine has
        self.given_up = False  # one of them failed: no other is sent


class Player:
    """Plays applications, each from its arrival on, drawing them from the trace as their time comes.

    `lateness_s` is how long after they were due calls were sent.
    """

    def __init__(self, applications: Iterable[Application], tokens: Tokens, engine: ClientEngine) -> None:
        self._coming = in_arrival_order(applications)
        self._tokens = tokens
        self._engine = engine
        self._plays: dict[AppId, _Play] = {}
        self._sent: dict[CallId, DagCall] = {}
        self._heap: list[_Due] = []
        self._created = count()
        self._begun = 0
        self._now_s = 0.0
        self.applications = 0  # that ended
        self.calls = 0  # that ended
        self.failed_calls = 0
        self.lateness_s = Distribution()
        self._draw()

    @property
    def done(self) -> bool:
        """Whether all applications have ended."""
        return not self._heap and not self._plays

    @property
    def next_due_s(self) -> float | None:
        """When the next thing happens that does not wait for the engine."""
        return self._heap[0].at_s if self._heap else None

    @property
    def under_way(self) -> Sequence[AppId]:
        """The applications that have begun and not ended."""
        return tuple(self._plays)

    @property
    def sent(self) -> Sequence[CallId]:
        """The calls that the engine has and that have not ended, in the order in which they were sent."""
        return tuple(self._sent)

    def advance(self, now_s: float) -> None:
        """Let happen all that is due by now, in the order in which it was due."""
        self._now_s = now_s
        while self._heap and self._heap[0].at_s <= now_s:
            due = heappop(self._heap)
            due.act(due.at_s)

    def finished(self, call_id: CallId, at_s: float, answer: Sequence[int]) -> None:
        """A call ended: its tools start, or the calls behind it are due now (`advance` sends them)."""
        ended, play = self._returned(call_id)
        call = ended.call
        self._tokens.answered(call.id, answer)
        self.calls += 1
        if play.given_up:
            self._end_if_given_up(play, at_s)
        elif call.tools:
            self._later(at_s + tools_s(call), lambda due_s: self._tools_returned(ended, due_s), call.app)
        else:
            self._release_followers(ended, at_s)

    def failed(self, call_id: CallId, at_s: float) -> AppId:
        """A call came to nothing. What its application would have said next contains its answer, so the application is
        given up: of its calls those under way go on, and no other is sent. Returns which one."""
        _, play = self._returned(call_id)
        app = play.app.id
        self.failed_calls += 1
        play.given_up = True
        self._heap = [due for due in self._heap if due.app != app]
        heapify(self._heap)
        self._end_if_given_up(play, at_s)
        return app

    def _returned(self, call_id: CallId) -> tuple[DagCall, _Play]:
        call = self._sent.pop(call_id)
        play = self._plays[call.call.app]
        play.under_way -= 1
        return call, play

    def _end_if_given_up(self, play: _Play, at_s: float) -> None:
        if not play.under_way:
            self._leave(play, at_s)

    def _tools_returned(self, call: DagCall, due_s: float) -> None:
        self._engine.tool_returned(call.call, due_s)
        self._release_followers(call, due_s)

    def _release_followers(self, call: DagCall, at_s: float) -> None:
        play = self._plays[call.call.app]
        for follower in call.run.ended(call):
            self._release(follower, at_s)
        if call.run.over:
            self._end(play, at_s)

    def _release(self, call: DagCall, at_s: float) -> None:
        at_s += call.call.pause_s
        heappush(self._heap, _Due(at_s, True, call.order, lambda due_s: self._send(call, due_s), call.call.app))

    def _send(self, sent: DagCall, due_s: float) -> None:
        call = sent.call
        play = self._plays[call.app]
        play.unsent -= 1
        play.under_way += 1
        self._sent[call.id] = sent
        self.lateness_s.add(self._now_s - due_s)
        self._engine.submit(call, request_of(call), self._tokens.prompt(call), due_s, last=not play.unsent)

    def _draw(self) -> None:
        """Look at the next application of the trace, and let it arrive in its time."""
        app = next(self._coming, None)
        if app is not None:
            self._later(app.arrival_s, lambda due_s: self._begin(app, due_s))

    def _begin(self, app: Application, due_s: float) -> None:
        run = DagRun(app, self._begun)
        self._plays[app.id] = play = _Play(app, run)
        self._begun += 1
        self._tokens.begin(app)
        self._engine.app_started(app.id, due_s)
        for call in run.first():
            self._release(call, due_s)
        if run.over:
            self._end(play, due_s)
        self._draw()

    def _end(self, play: _Play, at_s: float) -> None:
        self.applications += 1
        self._leave(play, at_s)

    def _leave(self, play: _Play, at_s: float) -> None:
        app = play.app
        play.run.forget()
        del self._plays[app.id]
        self._tokens.end(app)
        self._engine.app_finished(app.id, at_s)

    def _later(self, at_s: float, act: Callable[[float], None], app: AppId | None = None) -> None:
        heappush(self._heap, _Due(at_s, False, (next(self._created), 0), act, app))
