"""Lays the order of waiting calls onto vLLM's queues, for the time of one `schedule`.

vLLM looks at its waiting requests one after another and stops at the first that does not fit. So a policy's order is
laid onto a queue of just those calls that it admits, which takes the place of vLLM's own while vLLM schedules; vLLM's
queues come back afterwards without those that started, so that at all other times they are its own.

Requests that no policy knows of keep their place: each goes before the first admitted call that came after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

from vllm.v1.request import RequestStatus

from ...policies.interface import Plan
from ...traces.arithmetic import div_ceil
from .vllm_surface import VllmRequest, VllmRequestQueue, VllmScheduler

# Waiting requests that hold blocks, or are blocked, have a queue of their own, which vLLM looks at first.
SIDE_QUEUES = ("kv_holding_waiting", "skipped_waiting")  # since 0.31; up to 0.30, with those that it passed over

# vLLM's queues are deques with a `len` in Python, which each step would pay for.
length = cast("Callable[[VllmRequestQueue], int]", deque.__len__)


class CallLookup(Protocol):
    """Which requests are calls that a policy knows of."""

    @property
    def knows_all(self) -> bool: ...
    def request_of(self, call: str) -> VllmRequest | None: ...
    def call_of(self, request_id: str) -> object | None: ...


class Laid(NamedTuple):
    """What a plan's order took the place of."""

    queues: tuple[VllmRequestQueue, VllmRequestQueue]  # vLLM's own: waiting, and beside it
    order: list[VllmRequest]
    holding: set[int]  # by id, those beside that held blocks
    withheld: int  # requests that wait and are not in the order


class Queues:
    """The waiting queues of one scheduler."""

    def __init__(self, scheduler: VllmScheduler, calls: CallLookup, make_queue: Callable[[], VllmRequestQueue]) -> None:
        self._scheduler = scheduler
        self._calls = calls
        self._side_name = next(name for name in SIDE_QUEUES if hasattr(scheduler, name))
        self._passes_over = self._side_name == SIDE_QUEUES[-1]
        self._queue, self._empty = make_queue(), make_queue()  # what takes the place of vLLM's
        self._plan: Plan | None = None  # what these were made for: a plan,
        self._made_at = -1  # and a version
        self._order: list[VllmRequest] = []
        self._loaded = False  # whether some of the order hold blocks, which then may not fit
        self._holding: set[int] = set()  # by id, requests beside that hold blocks
        self._laid: Laid | None = None  # what `_queue` has, if it is as it was laid
        self.withheld = 0  # requests that wait and are not in the queue that vLLM sees
        self.version = 0  # rises whenever a request starts or stops to wait

    def __iter__(self) -> Iterator[VllmRequest]:
        """Waiting requests, those that hold blocks first."""
        yield from self._side
        yield from self._scheduler.waiting

    @property
    def _side(self) -> VllmRequestQueue:
        side: VllmRequestQueue = getattr(self._scheduler, self._side_name)
        return side

    def lay(self, plan: Plan) -> Laid | None:
        """Put the plan's order in place of vLLM's. What `restore` needs, or None if the order is vLLM's own."""
        if plan.admit is None:
            if self._passes_over:
                self._let_holders_go_first()
            return None
        if self._plan is not plan or self._made_at != self.version:
            self._make(plan)
        laid = self._laid
        if laid is None or (plan.skip and self._loaded):
            laid = self._laid = self._lay_out(plan)
        self.withheld = laid.withheld
        scheduler = self._scheduler
        scheduler.waiting = self._queue
        setattr(scheduler, self._side_name, self._empty)
        return laid

    def _lay_out(self, plan: Plan) -> Laid:
        """Fill the queue that takes the place of vLLM's."""
        order = self._with_room() if plan.skip and self._loaded else self._order
        self._queue.clear()
        self._queue.extend(order)
        self._empty.clear()
        waiting, side = self._scheduler.waiting, self._side
        return Laid((waiting, side), order, self._holding, len(waiting) + len(side) - len(order))

    def _make(self, plan: Plan) -> None:
        """Take in a plan, or who waits now."""
        assert plan.admit is not None
        self._plan, self._made_at, self._laid = plan, self.version, None
        self._order = self._ordered(plan.admit)
        self._loaded = any(map(holds_blocks, self._order))
        self._holding = {id(request) for request in self._side if holds_blocks(request)}

    def restore(self, laid_down: Laid) -> None:
        """Put vLLM's queues back, without those that started."""
        (waiting, side), laid, holding, _ = laid_down
        self.withheld = 0
        scheduler, side_name = self._scheduler, self._side_name
        after = scheduler.waiting
        unmoved = not length(getattr(scheduler, side_name)) and length(after) == len(laid)
        scheduler.waiting = waiting
        setattr(scheduler, side_name, side)
        if unmoved:  # nobody started, loads, or was preempted
            return
        self.version += 1
        known = {id(request) for request in laid}
        preempted = [request for request in after if id(request) not in known]
        beside = set(map(id, side))
        for request in laid:
            if request.status is RequestStatus.RUNNING:
                take_out(side if id(request) in beside else waiting, request)
        emptied = [request for request in side if id(request) in holding and not holds_blocks(request)]
        for request in emptied:
            side.remove(request)
        filled = [request for request in laid if id(request) not in holding and waits_with_blocks(request)]
        for request in filled:
            take_out(side if id(request) in beside else waiting, request)
        side.extend(filled)
        waiting.extendleft(reversed([*preempted, *emptied]))

    def requeue(self, request: VllmRequest) -> None:
        """A loaded request gave its blocks up: it waits before all others, as a preempted one does."""
        self.version += 1
        self._side.remove_request(request)
        self._scheduler.waiting.prepend_request(request)

    def give_way(self, request: VllmRequest, preempt: Sequence[str]) -> None:
        """A running request lacks room: move whom the plan names to the end of the running ones, where vLLM looks."""
        running = self._scheduler.running
        behind = {id(other): other for other in running[running.index(request) + 1 :]}  # itself only if nobody is
        for call in preempt:
            chosen = self._calls.request_of(call)
            if chosen is not None and id(chosen) in behind:
                running.remove(chosen)
                running.append(chosen)
                return

    def _let_holders_go_first(self) -> None:
        """Requests that hold blocks go before those that vLLM up to 0.30 keeps beside them since it passed over them.

        One of the latter would otherwise wait for ever for the room that one of the former holds behind it. Later
        versions look at those that hold blocks first, too.
        """
        side = self._side
        if len(side) > 1:
            ordered = sorted(side, key=holds_blocks, reverse=True)  # keeps the order of equals
            side.clear()
            side.extend(ordered)

    def _ordered(self, admit: Iterable[str]) -> list[VllmRequest]:
        calls, running = self._calls, RequestStatus.RUNNING
        admitted = [
            found for call in admit if (found := calls.request_of(call)) is not None and found.status is not running
        ]
        if calls.knows_all:
            return admitted
        return merged(admitted, [request for request in self if calls.call_of(request.request_id) is None])

    def _with_room(self) -> list[VllmRequest]:
        """The order without loaded calls that do not fit now: of those vLLM asks nobody before it gives up."""
        scheduler = self._scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        size = scheduler.block_size
        return [
            request
            for request in self._order
            if not request.num_computed_tokens
            or request.status is RequestStatus.WAITING_FOR_REMOTE_KVS
            or div_ceil(request.num_tokens, size) - div_ceil(request.num_computed_tokens, size) <= free
        ]


def merged(admitted: list[VllmRequest], strangers: list[VllmRequest]) -> list[VllmRequest]:
    """Those that a policy admits, in its order, and strangers at their place."""
    strangers = sorted(strangers, key=lambda request: request.arrival_time)
    both: list[VllmRequest] = []
    for request in admitted:
        while strangers and strangers[0].arrival_time < request.arrival_time:
            both.append(strangers.pop(0))
        both.append(request)
    return both + strangers


def take_out(queue: VllmRequestQueue, request: VllmRequest) -> None:
    """Take a request out of a queue that has it: as a rule it came last, or waits for longest."""
    if queue[-1] is request:
        queue.pop()
    elif queue[0] is request:
        queue.popleft()
    else:
        queue.remove(request)


def waits_with_blocks(request: VllmRequest) -> bool:
    return request.status is not RequestStatus.RUNNING and holds_blocks(request)


def holds_blocks(request: VllmRequest) -> bool:
    """Whether a waiting request has blocks: a load fills them, or has filled them."""
    return bool(request.num_computed_tokens) or request.status is RequestStatus.WAITING_FOR_REMOTE_KVS
