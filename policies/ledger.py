"""The ledger: facts go in, the view that a policy sees comes out. Simulator, live engine and replay share it.

It changes with each fact and is never built anew: a policy that is asked with a thousand agents about costs no more
than one that is asked with ten. What a policy is given is read-only: reading costs nothing more for it, and the ledger
writes past the lock. Which fact may come when is in `lifecycle`: one that may not come raises `FactError`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

from ..traces import events as e
from ..traces.agreement import agree
from ..traces.apps import AgentId, AppId, CallId
from ..traces.events import Fact, Request
from .interface import Costs, Hits, Status
from .lifecycle import AGENTS, APPS, CALLS, AppStatus, CallStatus, out_of_place
from .names import Names

GAUGES = ("step", "gpu_blocks", "free_blocks", "growth_blocks", "host_blocks", "host_free_blocks", "max_running")


def _set(shown: ReadOnly, name: str, value: object) -> None:
    """How the ledger writes what policies only read."""
    object.__setattr__(shown, name, value)


class Cache(Protocol):
    """What only the engine can answer."""

    def hits(self, call: CallId) -> Hits: ...
    def shared_blocks(self, call: CallId) -> int: ...


class ReadOnly:
    """What a policy can look at, and cannot change."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: a view can be read, and not be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name}: a view can be read, and not be changed")


class CallState(ReadOnly):
    """A call that arrived and has not finished: a `CallView`."""

    __slots__ = (
        "admitted_at_s", "arrived_at_s", "generated_tokens", "loading", "number", "place", "preemptions", "request",
        "waiting_since_s",
    )  # fmt: skip

    request: Request
    number: int
    place: int
    arrived_at_s: float
    waiting_since_s: float
    admitted_at_s: float | None
    loading: bool
    preemptions: int
    generated_tokens: int

    def __init__(self, request: Request, number: int, at_s: float) -> None:
        object.__setattr__(self, "request", request)
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "place", number)
        object.__setattr__(self, "arrived_at_s", at_s)
        object.__setattr__(self, "waiting_since_s", at_s)
        object.__setattr__(self, "admitted_at_s", None)
        object.__setattr__(self, "loading", False)
        object.__setattr__(self, "preemptions", 0)
        object.__setattr__(self, "generated_tokens", 0)


class AgentState(ReadOnly):
    """An agent between its first call and the end of its application: an `AgentView`."""

    __slots__ = (
        "app", "context_blocks", "host_blocks", "id", "last", "number", "offloading", "since_s", "status",
        "uploaded_blocks", "uploading",
    )  # fmt: skip

    id: AgentId
    number: int
    app: AppId
    last: Request
    status: Status
    since_s: float
    context_blocks: int
    host_blocks: int
    offloading: bool
    uploading: bool
    uploaded_blocks: int

    def __init__(self, request: Request, number: int, at_s: float) -> None:
        object.__setattr__(self, "id", request.agent)
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "app", request.app)
        object.__setattr__(self, "last", request)
        object.__setattr__(self, "status", Status.WAITING)
        object.__setattr__(self, "since_s", at_s)
        object.__setattr__(self, "context_blocks", 0)
        object.__setattr__(self, "host_blocks", 0)
        object.__setattr__(self, "offloading", False)
        object.__setattr__(self, "uploading", False)
        object.__setattr__(self, "uploaded_blocks", 0)


class LedgerView(ReadOnly):
    """The state of the engine as far as its facts tell it: a `View`."""

    __slots__ = (
        "_cache", "_started_s", "agents", "block_tokens", "costs", "free_blocks", "gpu_blocks", "growth_blocks",
        "host_blocks", "host_free_blocks", "loading", "max_running", "news", "now_s", "running", "stalled", "step",
        "waiting",
    )  # fmt: skip

    now_s: float
    step: int
    block_tokens: int
    gpu_blocks: int
    free_blocks: int
    growth_blocks: int
    host_blocks: int
    host_free_blocks: int
    max_running: int
    costs: Costs
    news: Sequence[Fact]
    waiting: Mapping[CallId, CallState]
    loading: Mapping[CallId, CallState]
    running: Mapping[CallId, CallState]
    agents: Mapping[AgentId, AgentState]
    stalled: Mapping[AgentId, AgentState]
    _cache: Cache
    _started_s: Mapping[AppId, float]

    def app_started_s(self, app: AppId) -> float:
        return self._started_s[app]

    def hits(self, call: CallId) -> Hits:
        return self._cache.hits(call)

    def shared_blocks(self, call: CallId) -> int:
        return self._cache.shared_blocks(call)


class Ledger:
    """Keeps the `view`."""

    def __init__(self, costs: Costs, cache: Cache) -> None:
        self._waiting: OrderedDict[CallId, CallState] = OrderedDict()  # a preempted call goes to its front
        self._loading: dict[CallId, CallState] = {}
        self._running: dict[CallId, CallState] = {}
        self._agents: dict[AgentId, AgentState] = {}
        self._stalled: dict[AgentId, AgentState] = {}
        self._preemptions = 0
        self._started_s: dict[AppId, float] = {}
        self._of_app: dict[AppId, list[AgentId]] = {}
        self.calls_seen, self.agents_seen = Names(), Names()
        self.view = self._make_view(costs, cache)
        self._fold: dict[type, Callable[[Any], None]] = {
            e.RunStarted: self._run_started,
            e.AppStarted: self._app_started,
            e.AppFinished: self._app_finished,
            e.CallArrived: self._call_arrived,
            e.CallAdmitted: self._call_admitted,
            e.CallPreempted: self._call_preempted,
            e.CallFinished: self._call_finished,
            e.CallAborted: self._call_aborted,
            e.ToolStarted: self._tool_started,
            e.ToolReturned: self._tool_returned,
            e.LoadStarted: self._load_started,
            e.LoadFinished: self._call_stays,
            e.FirstToken: self._call_stays,
            e.OffloadStarted: self._offload_started,
            e.OffloadFinished: self._offload_finished,
            e.HostDropped: self._host_dropped,
            e.UploadStarted: self._upload_started,
            e.UploadFinished: self._upload_finished,
            e.UploadTaken: self._upload_ended,
            e.UploadCancelled: self._upload_ended,
            e.Polled: self._polled,
        }

    def _make_view(self, costs: Costs, cache: Cache) -> LedgerView:
        view = LedgerView()
        _set(view, "_cache", cache)
        _set(view, "_started_s", self._started_s)
        _set(view, "costs", costs)
        _set(view, "now_s", 0.0)
        _set(view, "block_tokens", 1)
        for gauge in GAUGES:
            _set(view, gauge, 0)
        _set(view, "waiting", MappingProxyType(self._waiting))
        _set(view, "loading", MappingProxyType(self._loading))
        _set(view, "running", MappingProxyType(self._running))
        _set(view, "agents", MappingProxyType(self._agents))
        _set(view, "stalled", MappingProxyType(self._stalled))
        _set(view, "news", ())
        return view

    def tell(self, news: Sequence[Fact]) -> None:
        """The facts since the policy was last asked."""
        _set(self.view, "news", tuple(news))

    def fold(self, fact: Fact) -> None:
        """Take in one fact."""
        handler = self._fold.get(type(fact))
        if handler is not None:
            handler(fact)

    # -- facts

    def _run_started(self, fact: e.RunStarted) -> None:
        view = self.view
        _set(view, "block_tokens", fact.block_tokens)
        _set(view, "gpu_blocks", fact.gpu_blocks)
        _set(view, "free_blocks", fact.gpu_blocks)
        _set(view, "host_blocks", fact.host_blocks)
        _set(view, "host_free_blocks", fact.host_blocks)

    def _app_started(self, fact: e.AppStarted) -> None:
        self._check_app(fact, fact.app)
        self._started_s[fact.app] = fact.at_s

    def _app_finished(self, fact: e.AppFinished) -> None:
        self._check_app(fact, fact.app)
        del self._started_s[fact.app]
        for name in self._of_app.pop(fact.app, ()):
            status = self._agents[name].status
            if status not in AGENTS[e.AppFinished]:
                raise out_of_place(AGENTS, fact, name, status)
            del self._agents[name]
            self._stalled.pop(name, None)

    def _call_arrived(self, fact: e.CallArrived) -> None:
        request = fact.request
        self._check_app(fact, request.app)
        self._check_call(fact, request.id)
        self._waiting[request.id] = CallState(request, self.calls_seen.count, fact.at_s)
        self.calls_seen.add(request.id)
        agent = self._agents.get(request.agent)
        if agent is None:
            self._agents[request.agent] = AgentState(request, self.agents_seen.count, fact.at_s)
            self.agents_seen.add(request.agent)
            self._of_app.setdefault(request.app, []).append(request.agent)
            return
        _set(agent, "last", request)
        self._move_agent(fact, request.agent)

    def _call_admitted(self, fact: e.CallAdmitted) -> None:
        call = self._take_call(fact)
        _set(call, "admitted_at_s", fact.at_s)
        _set(call, "loading", False)
        self._running[fact.call] = call
        self._move_agent(fact, call.request.agent)

    def _call_preempted(self, fact: e.CallPreempted) -> None:
        call = self._take_call(fact)
        _set(call, "admitted_at_s", None)
        _set(call, "waiting_since_s", fact.at_s)
        _set(call, "preemptions", call.preemptions + 1)
        _set(call, "generated_tokens", fact.generated_tokens)
        self._preemptions += 1
        _set(call, "place", -self._preemptions)
        self._waiting[fact.call] = call
        self._waiting.move_to_end(fact.call, last=False)
        self._move_agent(fact, call.request.agent)

    def _call_finished(self, fact: e.CallFinished) -> None:
        agent = self._move_agent(fact, self._take_call(fact).request.agent)
        _set(agent, "context_blocks", fact.context_blocks)

    def _call_aborted(self, fact: e.CallAborted) -> None:
        self._move_agent(fact, self._take_call(fact).request.agent)

    def _tool_started(self, fact: e.ToolStarted) -> None:
        self._stalled[fact.agent] = self._move_agent(fact, fact.agent)

    def _tool_returned(self, fact: e.ToolReturned) -> None:
        self._move_agent(fact, fact.agent)

    def _load_started(self, fact: e.LoadStarted) -> None:
        self._check_call(fact, fact.call)
        call = self._waiting[fact.call]
        _set(call, "loading", True)
        self._loading[fact.call] = call

    def _call_stays(self, fact: e.LoadFinished | e.FirstToken) -> None:
        self._check_call(fact, fact.call)

    def _offload_started(self, fact: e.OffloadStarted) -> None:
        _set(self._agent_of_copy(fact), "offloading", True)

    def _offload_finished(self, fact: e.OffloadFinished) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            _set(agent, "offloading", False)
            _set(agent, "host_blocks", fact.upto_blocks)

    def _host_dropped(self, fact: e.HostDropped) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            _set(agent, "host_blocks", 0)

    def _upload_started(self, fact: e.UploadStarted) -> None:
        _set(self._agent_of_copy(fact), "uploading", True)

    def _upload_finished(self, fact: e.UploadFinished) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            _set(agent, "uploading", False)
            _set(agent, "uploaded_blocks", fact.blocks)

    def _upload_ended(self, fact: e.UploadTaken | e.UploadCancelled) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            _set(agent, "uploading", False)
            _set(agent, "uploaded_blocks", 0)

    def _polled(self, fact: e.Polled) -> None:
        view = self.view
        _set(view, "now_s", fact.at_s)
        _set(view, "step", fact.step)
        _set(view, "free_blocks", fact.free_blocks)
        _set(view, "growth_blocks", fact.growth_blocks)
        _set(view, "host_free_blocks", fact.host_free_blocks)
        _set(view, "max_running", fact.max_running)

    # -- checks

    def check(self, waiting: Collection[CallId], running: Collection[CallId]) -> None:
        """Raises `CheckError` if the view does not agree with itself, or with the engine's calls."""
        view = self.view
        agree("waiting calls", set(view.waiting), set(waiting))
        agree("running calls", list(view.running), list(running))
        agree("loading calls", list(view.loading), [name for name in view.loading if view.waiting[name].loading])
        stalled = {name for name, agent in view.agents.items() if agent.status is Status.STALLED}
        agree("stalled agents", set(view.stalled), stalled)
        agree(
            "agents of applications", sorted(view.agents), sorted(name for app in self._of_app.values() for name in app)
        )
        agree("applications with agents", set(self._of_app) - set(self._started_s), set())

    # -- where things are

    def _check_app(self, fact: Fact, name: AppId) -> None:
        status = AppStatus.STARTED if name in self._started_s else None
        if status not in APPS[type(fact)]:
            raise out_of_place(APPS, fact, name, status)

    def _check_call(self, fact: Fact, name: CallId) -> CallStatus | None:
        """The status of a call about which a fact may come now."""
        if name in self._running:
            status: CallStatus | None = CallStatus.RUNNING
        elif name in self._loading:
            status = CallStatus.LOADING
        else:
            status = CallStatus.WAITING if name in self._waiting else None
        if status not in CALLS[type(fact)]:
            raise out_of_place(CALLS, fact, name, status)
        return status

    def _take_call(self, fact: e.CallAdmitted | e.CallPreempted | e.CallFinished | e.CallAborted) -> CallState:
        """Take the call out of the queue that it is in."""
        name = fact.call
        status = self._check_call(fact, name)
        if status is CallStatus.RUNNING:
            return self._running.pop(name)
        self._loading.pop(name, None)
        return self._waiting.pop(name)

    def _move_agent(self, fact: Fact, name: AgentId) -> AgentState:
        """Give an agent the status that follows from a fact."""
        agent = self._agents.get(name)
        status = None if agent is None else agent.status
        try:
            after = AGENTS[type(fact)][status]
        except KeyError:
            raise out_of_place(AGENTS, fact, name, status) from None
        assert agent is not None
        if status is Status.STALLED:
            del self._stalled[name]
        _set(agent, "status", after)
        _set(agent, "since_s", fact.at_s)
        return agent

    def _agent_of_copy(self, fact: e.OffloadStarted | e.UploadStarted) -> AgentState:
        """Of whose cache a copy begins; its status stays."""
        agent = self._agents.get(fact.agent)
        if agent is None:
            raise out_of_place(AGENTS, fact, fact.agent, None)
        return agent
