"""What a policy is shown of calls, agents and the engine: it can read all of it, and change none.

The fields are properties without setters. The ledger, which keeps them up to date, writes what is behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

from ..traces.apps import AgentId, AppId, CallId
from ..traces.events import Fact, Request
from .interface import Costs, Hits, Status


class Cache(Protocol):
    """What only the engine can answer."""

    def hits(self, call: CallId) -> Hits: ...
    def shared_blocks(self, call: CallId) -> int: ...


class Shown:
    """What changes as time goes on, and so is not to be copied whole."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a view cannot be copied: copy what is needed of it")


class CallState(Shown):
    """A call that arrived and has not finished: a `CallView`."""

    __slots__ = (
        "_admitted_at_s", "_arrived_at_s", "_generated_tokens", "_loading", "_number", "_place", "_preemptions",
        "_request", "_waiting_since_s",
    )  # fmt: skip

    def __init__(self, request: Request, number: int, at_s: float) -> None:
        self._request = request
        self._number = number
        self._place = number
        self._arrived_at_s = at_s
        self._waiting_since_s = at_s
        self._admitted_at_s: float | None = None
        self._loading = False
        self._preemptions = 0
        self._generated_tokens = 0

    @property
    def request(self) -> Request:
        return self._request

    @property
    def number(self) -> int:
        return self._number

    @property
    def place(self) -> int:
        return self._place

    @property
    def arrived_at_s(self) -> float:
        return self._arrived_at_s

    @property
    def waiting_since_s(self) -> float:
        return self._waiting_since_s

    @property
    def admitted_at_s(self) -> float | None:
        return self._admitted_at_s

    @property
    def loading(self) -> bool:
        return self._loading

    @property
    def preemptions(self) -> int:
        return self._preemptions

    @property
    def generated_tokens(self) -> int:
        return self._generated_tokens


class AgentState(Shown):
    """An agent between its first call and the end of its application: an `AgentView`."""

    __slots__ = (
        "_before", "_context_blocks", "_host_blocks", "_last", "_number", "_offloading", "_since_s",
        "_status", "_uploaded_blocks", "_uploading",
    )  # fmt: skip

    def __init__(self, request: Request, number: int, at_s: float, before: AgentState | None) -> None:
        self._number = number
        self._last = request
        self._before = before  # of the same application, the agent that came before it
        self._status = Status.WAITING
        self._since_s = at_s
        self._context_blocks = 0
        self._host_blocks = 0
        self._offloading = False
        self._uploading = False
        self._uploaded_blocks = 0

    @property
    def id(self) -> AgentId:
        return self._last.agent

    @property
    def number(self) -> int:
        return self._number

    @property
    def app(self) -> AppId:
        return self._last.app

    @property
    def last(self) -> Request:
        return self._last

    @property
    def status(self) -> Status:
        return self._status

    @property
    def since_s(self) -> float:
        return self._since_s

    @property
    def context_blocks(self) -> int:
        return self._context_blocks

    @property
    def host_blocks(self) -> int:
        return self._host_blocks

    @property
    def offloading(self) -> bool:
        return self._offloading

    @property
    def uploading(self) -> bool:
        return self._uploading

    @property
    def uploaded_blocks(self) -> int:
        return self._uploaded_blocks


class LedgerView(Shown):
    """The state of the engine as far as its facts tell it: a `View`."""

    __slots__ = (
        "_agents", "_block_tokens", "_cache", "_costs", "_free_blocks", "_gpu_blocks", "_growth_blocks",
        "_host_blocks", "_host_free_blocks", "_loading", "_max_running", "_news", "_now_s", "_running",
        "_stalled", "_started_s", "_step", "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        costs: Costs,
        cache: Cache,
        started_s: Mapping[AppId, float],
        waiting: Mapping[CallId, CallState],
        loading: Mapping[CallId, CallState],
        running: Mapping[CallId, CallState],
        agents: Mapping[AgentId, AgentState],
        stalled: Mapping[AgentId, AgentState],
    ) -> None:
        self._costs = costs
        self._cache = cache
        self._started_s = started_s
        self._waiting = waiting
        self._loading = loading
        self._running = running
        self._agents = agents
        self._stalled = stalled
        self._news: Sequence[Fact] = ()
        self._now_s = 0.0
        self._step = 0
        self._block_tokens = 1
        self._gpu_blocks = 0
        self._free_blocks = 0
        self._growth_blocks = 0
        self._host_blocks = 0
        self._host_free_blocks = 0
        self._max_running = 0

    @property
    def now_s(self) -> float:
        return self._now_s

    @property
    def step(self) -> int:
        return self._step

    @property
    def block_tokens(self) -> int:
        return self._block_tokens

    @property
    def gpu_blocks(self) -> int:
        return self._gpu_blocks

    @property
    def free_blocks(self) -> int:
        return self._free_blocks

    @property
    def growth_blocks(self) -> int:
        return self._growth_blocks

    @property
    def host_blocks(self) -> int:
        return self._host_blocks

    @property
    def host_free_blocks(self) -> int:
        return self._host_free_blocks

    @property
    def max_running(self) -> int:
        return self._max_running

    @property
    def costs(self) -> Costs:
        return self._costs

    @property
    def news(self) -> Sequence[Fact]:
        return self._news

    @property
    def waiting(self) -> Mapping[CallId, CallState]:
        return self._waiting

    @property
    def loading(self) -> Mapping[CallId, CallState]:
        return self._loading

    @property
    def running(self) -> Mapping[CallId, CallState]:
        return self._running

    @property
    def agents(self) -> Mapping[AgentId, AgentState]:
        return self._agents

    @property
    def stalled(self) -> Mapping[AgentId, AgentState]:
        return self._stalled

    def app_started_s(self, app: AppId) -> float:
        return self._started_s[app]

    def hits(self, call: CallId) -> Hits:
        return self._cache.hits(call)

    def shared_blocks(self, call: CallId) -> int:
        return self._cache.shared_blocks(call)
