"""The world outside the engine: applications arrive and play as DAGs, tools run, people think, clients take their time.

Only here is the true duration of a tool known.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from ...traces.apps import AppId, Application, Call
from ...traces.dag_run import DagRun, in_arrival_order, tools_s
from ...traces.events import request_of
from ..machine.timing import ps
from .clock import ARRIVALS, LATE_ARRIVALS, At, Clock
from .engine import Engine
from .memory.app_contexts import AppContexts
from .memory.context_tree import ContextTree


class World:
    """Plays applications against an engine, each from its arrival on, drawing them from the trace as their time comes.

    Calls that arrive at the same time arrive in the order of the trace.
    """

    def __init__(self, clock: Clock, applications: Iterable[Application], tree: ContextTree, client_ps: int) -> None:
        self._clock = clock
        self._coming = in_arrival_order(applications)
        self._tree = tree
        self._client_ps = client_ps
        self._runs: dict[AppId, DagRun] = {}
        self._contexts: dict[AppId, AppContexts] = {}
        self._due: list[tuple[int, tuple[int, int], Call]] = []
        self._latest_ps = -1  # when the calls arrive that were sent last, if that is still to come
        # only without a client's latency can a call that just ended be followed by one that arrives now
        self._arrivals_priority = ARRIVALS if client_ps else LATE_ARRIVALS
        self._exhausted = False
        self._engine: Engine
        self.done = clock.env.event()
        self._begun = 0
        self.applications = 0  # that ended
        self.calls = 0

    def start(self, engine: Engine) -> None:
        self._engine = engine
        self._draw()

    def finished(self, call: Call) -> None:
        """The engine ended a call: its tools start, or the calls behind it are released."""
        self.calls += 1
        if not call.tools:
            self._release_followers(call)
            return
        self._engine.tool_started(call)
        At(self._clock, ps(tools_s(call)), ARRIVALS, self._tools_returned, call)

    def _tools_returned(self, call: Call) -> None:
        self._engine.tool_returned(call)
        self._release_followers(call)

    def _release_followers(self, call: Call) -> None:
        run = self._runs[call.app]
        for follower in run.ended(call):
            self._send(follower)
        if run.over:
            self._end(run)

    def _send(self, call: Call) -> None:
        delay = ps(call.pause_s) + self._client_ps
        at_ps = self._clock.now_ps + delay
        heappush(self._due, (at_ps, self._runs[call.app].order(call), call))
        if at_ps != self._latest_ps:
            self._latest_ps = at_ps
            At(self._clock, delay, self._arrivals_priority, self._arrivals, None)

    def _arrivals(self, _: None) -> None:
        self._latest_ps = -1
        while self._due and self._due[0][0] <= self._clock.now_ps:
            self._arrive(heappop(self._due)[2])

    def _arrive(self, call: Call) -> None:
        context = self._contexts[call.app].add(call, self._tree)
        self._engine.arrive(call, request_of(call), context)

    def _draw(self) -> None:
        """Look at the next application of the trace, and let it arrive in its time."""
        app = next(self._coming, None)
        if app is None:
            self._exhausted = True
            if not self._runs:
                self.done.succeed()
            return
        At(self._clock, ps(app.arrival_s) - self._clock.now_ps, ARRIVALS, self._begin, app)

    def _begin(self, app: Application) -> None:
        self._runs[app.id] = run = DagRun(app, self._begun)
        self._contexts[app.id] = AppContexts(app)
        self._begun += 1
        self._engine.app_started(app.id)
        for call in run.first():
            self._send(call)
        if run.over:
            self._end(run)
        self._draw()

    def _end(self, run: DagRun) -> None:
        app = run.app.id
        self._engine.app_finished(app)
        self._contexts.pop(app).release(self._tree)
        del self._runs[app]
        self.applications += 1
        if self._exhausted and not self._runs:
            self.done.succeed()
