"""The ledger: facts go in, the view that a policy sees comes out. Simulator, live engine and replay share it.

It changes with each fact and is never built anew: a policy that is asked with a thousand agents about costs no more
than one that is asked with ten. Which fact may come when is in `lifecycle`: one that may not come raises `FactError`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from types import MappingProxyType
from typing import Any

from ..traces import events as e
from ..traces.agreement import agree
from ..traces.apps import AgentId, AppId, CallId
from ..traces.events import Fact
from .interface import Costs, Status
from .lifecycle import AGENTS, APPS, CALLS, AppStatus, CallStatus, out_of_place
from .names import Names
from .views import AgentState, Cache, CallState, LedgerView


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
        self._latest: dict[AppId, AgentState] = {}  # of each application, the agent that came last
        self.calls_seen, self.agents_seen = Names(), Names()
        self.view = LedgerView(
            costs,
            cache,
            self._started_s,
            MappingProxyType(self._waiting),
            MappingProxyType(self._loading),
            MappingProxyType(self._running),
            MappingProxyType(self._agents),
            MappingProxyType(self._stalled),
        )
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

    def tell(self, news: Sequence[Fact]) -> None:
        """The facts since the policy was last asked."""
        self.view._news = tuple(news)

    def fold(self, fact: Fact) -> None:
        """Take in one fact."""
        handler = self._fold.get(type(fact))
        if handler is not None:
            handler(fact)

    # -- facts

    def _run_started(self, fact: e.RunStarted) -> None:
        view = self.view
        view._block_tokens = fact.block_tokens
        view._gpu_blocks = fact.gpu_blocks
        view._free_blocks = fact.gpu_blocks
        view._host_blocks = fact.host_blocks
        view._host_free_blocks = fact.host_blocks

    def _app_started(self, fact: e.AppStarted) -> None:
        self._check_app(fact, fact.app)
        self._started_s[fact.app] = fact.at_s

    def _app_finished(self, fact: e.AppFinished) -> None:
        self._check_app(fact, fact.app)
        del self._started_s[fact.app]
        agent = self._latest.pop(fact.app, None)
        while agent is not None:
            if agent.status not in AGENTS[e.AppFinished]:
                raise out_of_place(AGENTS, fact, agent.id, agent.status)
            del self._agents[agent.id]
            self._stalled.pop(agent.id, None)
            agent = agent._before

    def _call_arrived(self, fact: e.CallArrived) -> None:
        request = fact.request
        self._check_app(fact, request.app)
        self._check_call(fact, request.id)
        self._waiting[request.id] = CallState(request, self.calls_seen.count, fact.at_s)
        self.calls_seen.add(request.id)
        agent = self._agents.get(request.agent)
        if agent is None:
            agent = AgentState(request, self.agents_seen.count, fact.at_s, self._latest.get(request.app))
            self._agents[request.agent] = self._latest[request.app] = agent
            self.agents_seen.add(request.agent)
            return
        agent._last = request
        self._move_agent(fact, request.agent)

    def _call_admitted(self, fact: e.CallAdmitted) -> None:
        call = self._take_call(fact)
        call._admitted_at_s = fact.at_s
        call._loading = False
        self._running[fact.call] = call
        self._move_agent(fact, call.request.agent)

    def _call_preempted(self, fact: e.CallPreempted) -> None:
        call = self._take_call(fact)
        call._admitted_at_s = None
        call._waiting_since_s = fact.at_s
        call._preemptions += 1
        call._generated_tokens = fact.generated_tokens
        self._preemptions += 1
        call._place = -self._preemptions
        self._waiting[fact.call] = call
        self._waiting.move_to_end(fact.call, last=False)
        self._move_agent(fact, call.request.agent)

    def _call_finished(self, fact: e.CallFinished) -> None:
        agent = self._move_agent(fact, self._take_call(fact).request.agent)
        agent._context_blocks = fact.context_blocks

    def _call_aborted(self, fact: e.CallAborted) -> None:
        self._move_agent(fact, self._take_call(fact).request.agent)

    def _tool_started(self, fact: e.ToolStarted) -> None:
        self._stalled[fact.agent] = self._move_agent(fact, fact.agent)

    def _tool_returned(self, fact: e.ToolReturned) -> None:
        self._move_agent(fact, fact.agent)

    def _load_started(self, fact: e.LoadStarted) -> None:
        self._check_call(fact, fact.call)
        call = self._waiting[fact.call]
        call._loading = True
        self._loading[fact.call] = call

    def _call_stays(self, fact: e.LoadFinished | e.FirstToken) -> None:
        self._check_call(fact, fact.call)

    def _offload_started(self, fact: e.OffloadStarted) -> None:
        self._agent_of_copy(fact)._offloading = True

    def _offload_finished(self, fact: e.OffloadFinished) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            agent._offloading = False
            agent._host_blocks = fact.upto_blocks

    def _host_dropped(self, fact: e.HostDropped) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            agent._host_blocks = 0

    def _upload_started(self, fact: e.UploadStarted) -> None:
        self._agent_of_copy(fact)._uploading = True

    def _upload_finished(self, fact: e.UploadFinished) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            agent._uploading = False
            agent._uploaded_blocks = fact.blocks

    def _upload_ended(self, fact: e.UploadTaken | e.UploadCancelled) -> None:
        agent = self._agents.get(fact.agent)
        if agent is not None:
            agent._uploading = False
            agent._uploaded_blocks = 0

    def _polled(self, fact: e.Polled) -> None:
        view = self.view
        view._now_s = fact.at_s
        view._step = fact.step
        view._free_blocks = fact.free_blocks
        view._growth_blocks = fact.growth_blocks
        view._host_free_blocks = fact.host_free_blocks
        view._max_running = fact.max_running

    # -- checks

    def check(self, waiting: Collection[CallId], running: Collection[CallId]) -> None:
        """Raises `CheckError` if the view does not agree with itself, or with the engine's calls."""
        view = self.view
        agree("waiting calls", set(view.waiting), set(waiting))
        agree("running calls", list(view.running), list(running))
        agree("loading calls", list(view.loading), [name for name in view.loading if view.waiting[name].loading])
        stalled = {name for name, agent in view.agents.items() if agent.status is Status.STALLED}
        agree("stalled agents", set(view.stalled), stalled)
        agents = list(self._latest.values())
        for agent in agents:
            if agent._before is not None:
                agents.append(agent._before)
        agree("agents of applications", sorted(view.agents), sorted(agent.id for agent in agents))
        agree("applications with agents", set(self._latest) - set(self._started_s), set())

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
        status = None if agent is None else agent._status
        try:
            after = AGENTS[type(fact)][status]
        except KeyError:
            raise out_of_place(AGENTS, fact, name, status) from None
        assert agent is not None
        assert after is not None
        if status is Status.STALLED:
            del self._stalled[name]
        agent._status = after
        agent._since_s = fact.at_s
        return agent

    def _agent_of_copy(self, fact: e.OffloadStarted | e.UploadStarted) -> AgentState:
        """Of whose cache a copy begins; its status stays."""
        agent = self._agents.get(fact.agent)
        if agent is None:
            raise out_of_place(AGENTS, fact, fact.agent, None)
        return agent
