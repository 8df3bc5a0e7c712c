"""The world outside the engine: applications arrive and play as DAGs, tools run, people think, clients take their time.

Only here is the true duration of a tool known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

import simpy

from ...traces.apps import Application, Call, CallId, Segment
from ...traces.errors import TraceError
from ...traces.events import request_of
from ..machine.machine import ps
from .clock import ARRIVALS, LATE_ARRIVALS, At, Clock
from .engine import Engine
from .memory.context_tree import Context, ContextTree, Node


class Play:
    """One application under way."""

    __slots__ = ("app", "awaited", "contexts", "continued", "followers", "left", "nodes", "order")

    def __init__(self, app: Application, order: int) -> None:
        self.app = app
        self.order = {call.id: (order, i) for i, call in enumerate(app.calls)}  # breaks ties between arrivals
        self.left = len(app.calls)
        self.awaited: dict[CallId, int] = {call.id: len(call.after) for call in app.calls}
        self.followers: dict[CallId, list[Call]] = {call.id: [] for call in app.calls}
        for call in app.calls:
            for before in call.after:
                self.followers[before].append(call)
        self.continued: dict[CallId, int] = {}  # by call, how many tokens of its context later prompts continue
        for call in app.calls:
            if (extended := call.prompt.extends) is not None:
                self.continued[extended] = max(call.prompt.keep_tokens, self.continued.get(extended, 0))
        self.contexts: dict[CallId, Context] = {}
        self.nodes: list[Node] = []  # held until the application ends

    def context(self, call: Call, tree: ContextTree) -> Context:
        """The context of a call that arrives: its prompt and its answer, kept until `release`."""
        prompt = call.prompt
        base = tree.empty
        if prompt.extends is not None:
            base = tree.cut(self.contexts[prompt.extends], prompt.keep_tokens)
        segments = (*prompt.segments, Segment(call.id, 0, call.output_tokens))
        line, rest = cut(segments, self.continued.get(call.id, 0) - base.end)
        trunk = tree.follow(base, line)
        context = tree.follow(trunk, rest, aside=True)
        tree.release(trunk.node)
        self.contexts[call.id] = context
        self.nodes.append(context.node)
        return context

    def release(self, tree: ContextTree) -> None:
        """The application ended: its contexts are nobody's."""
        for node in self.nodes:
            tree.release(node)


class Workload:
    """Plays applications against an engine, each from its arrival on, drawing them from the trace as their time comes.

    Calls that arrive at the same time arrive in the order of the trace.
    """

    def __init__(self, clock: Clock, applications: Iterable[Application], tree: ContextTree, client_ps: int) -> None:
        self._clock = clock
        self._coming: Iterator[Application] = iter(applications)
        self._tree = tree
        self._client_ps = client_ps
        self._plays: dict[str, Play] = {}
        self._due: list[tuple[int, tuple[int, int], Call]] = []
        # only without a client's latency can a call that just ended be followed by one that arrives now
        self._arrivals_priority = ARRIVALS if client_ps else LATE_ARRIVALS
        self._exhausted = False
        self._engine: Engine
        self.done = clock.event()
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
        self._later(ps(max(tool.duration_s for tool in call.tools)), self._tools_returned, call)

    def _tools_returned(self, call: Call) -> None:
        self._engine.tool_returned(call)
        self._release_followers(call)

    def _release_followers(self, call: Call) -> None:
        play = self._plays[call.app]
        for follower in play.followers[call.id]:
            play.awaited[follower.id] -= 1
            if not play.awaited[follower.id]:
                self._send(follower)
        play.left -= 1
        if not play.left:
            self._end(play)

    def _send(self, call: Call) -> None:
        delay = ps(call.pause_s) + self._client_ps
        heappush(self._due, (self._clock.now_ps + delay, self._plays[call.app].order[call.id], call))
        At(self._clock, delay, self._arrivals_priority, self._arrivals)

    def _arrivals(self, _: simpy.Event) -> None:
        while self._due and self._due[0][0] <= self._clock.now_ps:
            self._arrive(heappop(self._due)[2])

    def _arrive(self, call: Call) -> None:
        context = self._plays[call.app].context(call, self._tree)
        self._engine.arrive(call, request_of(call), context)

    def _draw(self) -> None:
        """Look at the next application of the trace, and let it arrive in its time."""
        app = next(self._coming, None)
        if app is None:
            self._exhausted = True
            if not self._plays:
                self.done.succeed()
            return
        due = ps(app.arrival_s) - self._clock.now_ps
        if due < 0:
            raise TraceError(
                f"application {app.id!r}: arrival_s: expected no earlier than the one before it, got {app.arrival_s}"
            )
        self._later(due, self._begin, app)

    def _begin(self, app: Application) -> None:
        self._plays[app.id] = play = Play(app, self._begun)
        self._begun += 1
        self._engine.app_started(app.id)
        for call in app.calls:
            if not call.after:
                self._send(call)
        if not play.left:
            self._end(play)
        self._draw()

    def _end(self, play: Play) -> None:
        self._engine.app_finished(play.app.id)
        play.release(self._tree)
        del self._plays[play.app.id]
        self.applications += 1
        if self._exhausted and not self._plays:
            self.done.succeed()

    def _later(self, delay_ps: int, act: Callable[[Any], None], what: object) -> None:
        At(self._clock, delay_ps, ARRIVALS, lambda _: act(what))


def cut(segments: Iterable[Segment], tokens: int) -> tuple[list[Segment], list[Segment]]:
    """The first `tokens` tokens of a run of segments, and the rest."""
    line: list[Segment] = []
    rest: list[Segment] = []
    for segment in segments:
        here = min(max(tokens, 0), segment.tokens)
        if here:
            line.append(segment if here == segment.tokens else Segment(segment.source, segment.start, here))
        if here < segment.tokens:
            rest.append(Segment(segment.source, segment.start + here, segment.tokens - here))
        tokens -= segment.tokens
    return line, rest
