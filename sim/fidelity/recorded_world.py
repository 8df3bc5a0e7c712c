"""The world of a rerun: applications, arrivals and tools, as a record tells of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ...traces import events as e
from ...traces.apps import AppId, Application, Call, CallId
from ...traces.dag_run import DagCall, DagRun
from ...traces.errors import FactError
from ..engine.engine import Engine
from ..engine.memory.app_contexts import add_context, release_contexts
from ..engine.memory.context_tree import ContextTree
from .record_steps import (
    ImpossibleRecord,
    World,
)


class WorldMismatch(Exception):
    """The simulated engine is in a state to which the recorded world does not fit any more."""


class RecordedWorld:
    """What clients do, told to an engine fact by fact, and checked against the applications of the trace."""

    def __init__(self, applications: Iterable[Application], tree: ContextTree, engine: Engine) -> None:
        self._applications: Iterator[Application] = iter(applications)
        self._tree = tree
        self._engine = engine
        self._found: dict[AppId, Application] = {}  # drawn from the trace before they started
        self._runs: dict[AppId, DagRun] = {}
        self._calls: dict[CallId, DagCall] = {}
        self._unfinished: dict[CallId, AppId] = {}
        self._in_tools: set[CallId] = set()  # calls whose tools are under way

    def act(self, fact: World) -> None:
        """Does what the fact tells. Raises `ImpossibleRecord` if it cannot be, `WorldMismatch` if it does not fit."""
        try:
            _ACTS[type(fact)](self, fact)
        except FactError as wrong:
            raise ImpossibleRecord(str(wrong)) from None

    def call_finished(self, call: CallId) -> None:
        """The engine ended a call."""
        self._unfinished.pop(call)

    def _app_started(self, fact: e.AppStarted) -> None:
        if fact.app in self._runs:
            raise ImpossibleRecord(f"AppStarted: application {fact.app!r} has started before")
        app = self._application(fact.app)
        run = self._runs[fact.app] = DagRun(app, len(self._runs))
        self._calls.update((each.id, each) for each in run.calls)
        self._engine.app_started(fact.app)

    def _application(self, name: AppId) -> Application:
        while name not in self._found:
            application = next(self._applications, None)
            if application is None:
                raise ImpossibleRecord(f"application {name!r} of the record is not in the trace")
            self._found[application.id] = application
        return self._found.pop(name)

    def _app_finished(self, fact: e.AppFinished) -> None:
        if left := [call for call, app in self._unfinished.items() if app == fact.app]:
            raise WorldMismatch(f"application {fact.app!r} has ended, but call {left[0]!r} has not in the simulation")
        run = self._runs.pop(fact.app, None)
        if run is None:
            raise ImpossibleRecord(f"AppFinished: application {fact.app!r} is not under way")
        self._engine.app_finished(fact.app)
        for ended in run.calls:
            del self._calls[ended.id]
            self._in_tools.discard(ended.id)
        release_contexts(run, self._tree)

    def _call_arrived(self, fact: e.CallArrived) -> None:
        arrived = self._call(fact.request.id)
        call, base = arrived.call, arrived.extends
        if arrived.context is not None:
            raise ImpossibleRecord(f"CallArrived: call {call.id!r} has arrived before")
        if base is not None and base.context is None:
            raise ImpossibleRecord(f"CallArrived: call {call.id!r} continues {base.id!r}, which has not arrived")
        for name, here, there in zip(fact.request._fields, fact.request, e.request_of(call), strict=True):
            if here != there:
                raise ImpossibleRecord(
                    f"CallArrived: call {call.id!r}: {name}: expected {there!r} of the trace, got {here!r}"
                )
        self._unfinished[call.id] = call.app
        self._engine.arrive(call, fact.request, add_context(arrived, self._tree))

    def _tool_started(self, fact: e.ToolStarted) -> None:
        call = self._ended(fact)
        if call.id in self._in_tools:
            raise ImpossibleRecord(f"ToolStarted: the tools of call {call.id!r} have started before")
        self._in_tools.add(call.id)
        self._engine.tool_started(call.id, call.agent)

    def _tool_returned(self, fact: e.ToolReturned) -> None:
        call = self._ended(fact)
        if call.id not in self._in_tools:
            raise ImpossibleRecord(f"ToolReturned: no tool of call {call.id!r} is under way")
        self._in_tools.remove(call.id)
        self._engine.tool_returned(call.id, call.agent)

    def _ended(self, fact: e.ToolStarted | e.ToolReturned) -> Call:
        """A call that has ended, in the simulation too."""
        ended = self._call(fact.call)
        call = ended.call
        if call.id in self._unfinished:
            raise WorldMismatch(f"call {call.id!r} has ended, but not in the simulation")
        if ended.context is None:
            raise ImpossibleRecord(f"{type(fact).__name__}: call {call.id!r} has not arrived")
        if fact.agent != call.agent:
            raise ImpossibleRecord(
                f"{type(fact).__name__}: agent: expected {call.agent!r} of call {call.id!r}, got {fact.agent!r}"
            )
        return call

    def _call(self, name: CallId) -> DagCall:
        if name not in self._calls:
            raise ImpossibleRecord(
                f"call {name!r} of the record is not in the trace, or its application is not under way"
            )
        return self._calls[name]


_ACTS: Mapping[type, Callable[[RecordedWorld, Any], None]] = {
    e.AppStarted: RecordedWorld._app_started,
    e.AppFinished: RecordedWorld._app_finished,
    e.CallArrived: RecordedWorld._call_arrived,
    e.ToolStarted: RecordedWorld._tool_started,
    e.ToolReturned: RecordedWorld._tool_returned,
}
