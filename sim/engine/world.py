"""The world outside the engine: applications arrive and play as DAGs, tools run, people think, clients take their time.

Only here is the true duration of a tool known.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from ...traces.apps import Application, Call, CallId
from ...traces.dag_run import DagCall, DagRun, in_arrival_order, tools_s
from ...traces.events import request_of
from ..machine.timing import ps
from .clock import ARRIVALS, LATE_ARRIVALS, At, Clock
from .engine import Engine
from .memory.app_contexts import add_context, release_contexts
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
        self._calls: dict[CallId, DagCall] = {}  # that the engine has
        self._due: list[tuple[int, tuple[int, int], DagCall]] = []
        self._latest_ps = -1  # when the calls arrive that were sent last, if that is still to come
        # only without a client's latency can a call that just ended be followed by one that arrives now
        self._arrivals_priority = ARRIVALS if client_ps else LATE_ARRIVALS
        self._exhausted = False
        self._when_tools_return = self._tools_returned  # one for all agents whose tools run
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
        ended = self._calls.pop(call.id)
        ended.answered()
        if not call.tools:
            self._release_followers(ended)
            return
        self._engine.tool_started(call.id, call.agent)
        At(self._clock, ps(tools_s(call)), ARRIVALS, self._when_tools_return, ended)

    def _tools_returned(self, call: DagCall) -> None:
        self._engine.tool_returned(call.id, call.agent)
        self._release_followers(call)

    def _release_followers(self, call: DagCall) -> None:
        run = call.run
        for follower in run.ended(call):
            self._send(follower)
        if run.over:
            self._end(run)

    def _send(self, call: DagCall) -> None:
        delay = ps(call.call.pause_s) + self._client_ps
        at_ps = self._clock.now_ps + delay
        heappush(self._due, (at_ps, call.order, call))
        if at_ps != self._latest_ps:
            self._latest_ps = at_ps
            At(self._clock, delay, self._arrivals_priority, self._arrivals, None)

    def _arrivals(self, _: None) -> None:
        self._latest_ps = -1
        while self._due and self._due[0][0] <= self._clock.now_ps:
            self._arrive(heappop(self._due)[2])

    def _arrive(self, call: DagCall) -> None:
        context = add_context(call, self._tree)
        self._calls[call.id] = call
        self._engine.arrive(call.call, request_of(call.call), context)

    def _draw(self) -> None:
        """Look at the next application of the trace, and let it arrive in its time."""
        app = next(self._coming, None)
        if app is None:
            self._exhausted = True
            if self._begun == self.applications:
                self.done.succeed()
            return
        At(self._clock, ps(app.arrival_s) - self._clock.now_ps, ARRIVALS, self._begin, app)

    def _begin(self, app: Application) -> None:
        run = DagRun(app, self._begun)
        self._begun += 1
        self._engine.app_started(app.id)
        for call in run.first():
            self._send(call)
        if run.over:
            self._end(run)
        self._draw()

    def _end(self, run: DagRun) -> None:
        self._engine.app_finished(run.app)
        release_contexts(run, self._tree)
        self.applications += 1
        if self._exhausted and self._begun == self.applications:
            self.done.succeed()
