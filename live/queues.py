"""Lays the order of waiting calls onto vLLM's queues, for the time of one `schedule`.

vLLM looks at its waiting requests one after another and stops at the first that does not fit. So a policy's order is
laid onto a queue of just those calls that it admits, which takes the place of vLLM's own while vLLM schedules; what is
left of it goes back afterwards, so that at all other times vLLM's queues are its own.

Requests that no policy knows of keep their place: each goes before the first admitted call that came after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..policies.interface import Plan

# Waiting requests that hold blocks, or are blocked, have a queue of their own, which vLLM looks at first.
SIDE_QUEUES = ("kv_holding_waiting", "skipped_waiting")  # 0.32, 0.26


class Queues:
    """The waiting queues of one scheduler."""

    def __init__(self, scheduler: Any, make_queue: Callable[[], Any]) -> None:
        self._scheduler = scheduler
        self._make_queue = make_queue
        self._side_name = next(name for name in SIDE_QUEUES if hasattr(scheduler, name))
        self._laid_for: tuple[Plan, int] | None = None
        self._order: list[Any] = []
        self.version = 0  # rises whenever a request starts or stops to wait

    def __iter__(self) -> Iterator[Any]:
        """Waiting requests, those that hold blocks first."""
        yield from self._side
        yield from self._scheduler.waiting

    @property
    def _side(self) -> Any:
        return getattr(self._scheduler, self._side_name)

    def lay(self, plan: Plan, find: Callable[[str], Any | None], knows: Callable[[str], object]) -> Any:
        """Put the plan's order in place of vLLM's. What `restore` needs, or None if the order is vLLM's own."""
        if plan.admit is None:
            self._laid_for = None
            return None
        if self._laid_for is None or self._laid_for[0] is not plan or self._laid_for[1] != self.version:
            self._order = self._ordered(plan.admit, find, knows)
            self._laid_for = (plan, self.version)
        scheduler = self._scheduler
        whole = (scheduler.waiting, self._side)
        queue = self._make_queue()
        queue.extend(self._order if not plan.skip else self._with_room())
        scheduler.waiting = queue
        setattr(scheduler, self._side_name, self._make_queue())
        return whole, len(queue)

    def restore(self, laid: Any) -> None:
        """Put vLLM's queues back, without those that started."""
        (waiting, side), count = laid
        scheduler = self._scheduler
        if not self._side and len(scheduler.waiting) == count:  # nobody started, loads, or was preempted
            scheduler.waiting = waiting
            setattr(scheduler, self._side_name, side)
            return
        self.version += 1
        before = [*side, *waiting]
        known = {id(request) for request in before}
        fresh = [request for request in scheduler.waiting if id(request) not in known]  # preempted just now
        still = [request for request in [*fresh, *before] if request.status.name != "RUNNING"]
        scheduler.waiting = self._make_queue()
        scheduler.waiting.extend(request for request in still if not holds_blocks(request))
        setattr(scheduler, self._side_name, self._make_queue())
        self._side.extend(request for request in still if holds_blocks(request))

    def requeue(self, request: Any) -> None:
        """A loaded request gave its blocks up: it waits like any other, before those that came later."""
        self.version += 1
        self._side.remove_request(request)
        self._scheduler.waiting.prepend_request(request)

    def _ordered(
        self, admit: Iterable[str], find: Callable[[str], Any | None], knows: Callable[[str], object]
    ) -> list[Any]:
        waiting = {request.request_id: request for request in self}
        admitted = [request for call in admit if (request := find(call)) is not None and request.request_id in waiting]
        strangers = [request for request in waiting.values() if not knows(request.request_id)]
        if not strangers:
            return admitted
        strangers.sort(key=lambda request: request.arrival_time)
        merged: list[Any] = []
        for request in admitted:
            while strangers and strangers[0].arrival_time < request.arrival_time:
                merged.append(strangers.pop(0))
            merged.append(request)
        return merged + strangers

    def _with_room(self) -> list[Any]:
        """The order without loaded calls that do not fit now: of those vLLM asks nobody before it gives up."""
        scheduler = self._scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        size = scheduler.block_size
        return [
            request
            for request in self._order
            if not request.num_computed_tokens
            or request.status.name == "WAITING_FOR_REMOTE_KVS"
            or -(-request.num_tokens // size) - -(-request.num_computed_tokens // size) <= free
        ]


def holds_blocks(request: Any) -> bool:
    """Whether a waiting request has blocks: a load fills them, or has filled them."""
    return bool(request.num_computed_tokens) or request.status.name == "WAITING_FOR_REMOTE_KVS"
