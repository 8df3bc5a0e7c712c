"""The ledger: facts go in, the view that a policy sees comes out. Simulator, live engine and replay share it.

It changes with each fact and is never built anew: a policy that is asked with a thousand agents about costs no more
than one that is asked with ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..traces import events as e
from ..traces.apps import AgentId, AppId, CallId
from ..traces.events import Fact, Request
from .interface import Costs, Hits, Status


class Cache(Protocol):
    """What only the engine can answer."""

    def hits(self, call: CallId) -> Hits: ...
    def shared_blocks(self, call: CallId) -> int: ...


class CallState:
    """A call that arrived and has not finished: a `CallView`."""

    __slots__ = (
        "admitted_at_s",
        "arrived_at_s",
        "generated_tokens",
        "loading",
        "number",
        "preemptions",
        "request",
        "waiting_since_s",
    )

    def __init__(self, request: Request, number: int, at_s: float) -> None:
        self.request = request
        self.number = number
        self.arrived_at_s = at_s
        self.waiting_since_s = at_s
        self.admitted_at_s: float | None = None
        self.loading = False
        self.preemptions = 0
        self.generated_tokens = 0


class AgentState:
    """An agent between its first call and the end of its application: an `AgentView`."""

    __slots__ = (
        "app",
        "context_blocks",
        "host_blocks",
        "id",
        "last",
        "number",
        "offloading",
        "since_s",
        "status",
        "uploaded_blocks",
        "uploading",
    )

    def __init__(self, request: Request, number: int, at_s: float) -> None:
        self.id = request.agent
        self.number = number
        self.app = request.app
        self.last = request
        self.status = Status.WAITING
        self.since_s = at_s
        self.context_blocks = 0
        self.host_blocks = 0
        self.offloading = False
        self.uploading = False
        self.uploaded_blocks = 0


class Ledger:
    """The state of the engine as far as its facts tell it: a `View`."""

    def __init__(self, costs: Costs, cache: Cache) -> None:
        self.costs = costs
        self._cache = cache
        self.now_s = 0.0
        self.step = 0
        self.block_tokens = 1
        self.gpu_blocks = 0
        self.free_blocks = 0
        self.growth_blocks = 0
        self.host_blocks = 0
        self.host_free_blocks = 0
        self.news: Sequence[Fact] = ()
        self.waiting: dict[CallId, CallState] = {}
        self.running: dict[CallId, CallState] = {}
        self.agents: dict[AgentId, AgentState] = {}
        self.stalled: dict[AgentId, AgentState] = {}
        self._calls_seen = 0
        self._agents_seen = 0
        self._started_s: dict[AppId, float] = {}
        self._of_app: dict[AppId, list[AgentId]] = {}
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
            e.OffloadStarted: self._offload_started,
            e.OffloadFinished: self._offload_finished,
            e.HostDropped: self._host_dropped,
            e.UploadStarted: self._upload_started,
            e.UploadFinished: self._upload_finished,
            e.UploadTaken: self._upload_ended,
            e.UploadCancelled: self._upload_ended,
            e.Polled: self._polled,
        }

    def fold(self, fact: Fact) -> None:
        """Take in one fact."""
        handler = self._fold.get(type(fact))
        if handler is not None:
            handler(fact)

    # -- questions of the view

    def app_started_s(self, app: AppId) -> float:
        return self._started_s[app]

    def hits(self, call: CallId) -> Hits:
        return self._cache.hits(call)

    def shared_blocks(self, call: CallId) -> int:
        return self._cache.shared_blocks(call)

    # -- facts

    def _run_started(self, fact: e.RunStarted) -> None:
        self.block_tokens = fact.block_tokens
        self.gpu_blocks = self.free_blocks = fact.gpu_blocks
        self.host_blocks = self.host_free_blocks = fact.host_blocks

    def _app_started(self, fact: e.AppStarted) -> None:
        self._started_s[fact.app] = fact.at_s

    def _app_finished(self, fact: e.AppFinished) -> None:
        del self._started_s[fact.app]
        for agent in self._of_app.pop(fact.app, ()):
            del self.agents[agent]
            self.stalled.pop(agent, None)

    def _call_arrived(self, fact: e.CallArrived) -> None:
        request = fact.request
        self.waiting[request.id] = CallState(request, self._calls_seen, fact.at_s)
        self._calls_seen += 1
        agent = self.agents.get(request.agent)
        if agent is None:
            self.agents[request.agent] = AgentState(request, self._agents_seen, fact.at_s)
            self._agents_seen += 1
            self._of_app.setdefault(request.app, []).append(request.agent)
            return
        agent.last = request
        self.stalled.pop(request.agent, None)
        self._become(agent, Status.WAITING, fact.at_s)

    def _call_admitted(self, fact: e.CallAdmitted) -> None:
        call = self.waiting.pop(fact.call)
        call.admitted_at_s = fact.at_s
        call.loading = False
        self.running[fact.call] = call
        self._become(self.agents[call.request.agent], Status.RUNNING, fact.at_s)

    def _call_preempted(self, fact: e.CallPreempted) -> None:
        call = self.running.pop(fact.call)
        call.admitted_at_s = None
        call.waiting_since_s = fact.at_s
        call.preemptions += 1
        call.generated_tokens = fact.generated_tokens
        self.waiting = {fact.call: call, **self.waiting}
        self._become(self.agents[call.request.agent], Status.WAITING, fact.at_s)

    def _call_finished(self, fact: e.CallFinished) -> None:
        call = self.running.pop(fact.call, None) or self.waiting.pop(
            fact.call
        )  # or: its last token came after a preemption
        agent = self.agents[call.request.agent]
        agent.context_blocks = fact.context_blocks
        self._become(agent, Status.IDLE, fact.at_s)

    def _call_aborted(self, fact: e.CallAborted) -> None:
        call = self.running.pop(fact.call, None) or self.waiting.pop(fact.call)
        self._become(self.agents[call.request.agent], Status.IDLE, fact.at_s)

    def _tool_started(self, fact: e.ToolStarted) -> None:
        agent = self.agents[fact.agent]
        self.stalled[fact.agent] = agent
        self._become(agent, Status.STALLED, fact.at_s)

    def _tool_returned(self, fact: e.ToolReturned) -> None:
        if self.stalled.pop(fact.agent, None) is not None:
            self._become(self.agents[fact.agent], Status.IDLE, fact.at_s)

    def _load_started(self, fact: e.LoadStarted) -> None:
        self.waiting[fact.call].loading = True

    def _offload_started(self, fact: e.OffloadStarted) -> None:
        agent = self.agents.get(fact.agent)
        if agent is not None:
            agent.offloading = True

    def _offload_finished(self, fact: e.OffloadFinished) -> None:
        agent = self.agents.get(fact.agent)
        if agent is not None:
            agent.offloading = False
            agent.host_blocks = fact.upto_blocks

    def _host_dropped(self, fact: e.HostDropped) -> None:
        agent = self.agents.get(fact.agent)
        if agent is not None:
            agent.host_blocks = 0

    def _upload_started(self, fact: e.UploadStarted) -> None:
        agent = self.agents.get(fact.agent)
        if agent is not None:
            agent.uploading = True

    def _upload_finished(self, fact: e.UploadFinished) -> None:
        agent = self.agents.get(fact.agent)
        if agent is not None:
            agent.uploading = False
            agent.uploaded_blocks = fact.blocks

    def _upload_ended(self, fact: e.UploadTaken | e.UploadCancelled) -> None:
        agent = self.agents.get(fact.agent)
        if agent is not None:
            agent.uploading = False
            agent.uploaded_blocks = 0

    def _polled(self, fact: e.Polled) -> None:
        self.now_s = fact.at_s
        self.step = fact.step
        self.free_blocks = fact.free_blocks
        self.growth_blocks = fact.growth_blocks
        self.host_free_blocks = fact.host_free_blocks

    @staticmethod
    def _become(agent: AgentState, status: Status, at_s: float) -> None:
        agent.status = status
        agent.since_s = at_s
