"""A recorded session as a DAG: what ran side by side stays so, and each request waits for what had ended when it began.

What a recording says is when each request began and ended, in which thread of the session (the main one, or a
sub-agent's), and what its prompt consisted of. What it does not say, who waited for whom, is decided here:

- A request waits for all requests of its thread that ended before it began, and for the thread's sub-agents that ended
  before it began. What it waits for anyway, through another one, it does not name again; so a sub-agent is waited for
  by the first request that begins at or after its end, and by nobody if there is none.
- A sub-agent's first requests wait for the requests of the parent that ended before the sub-agent began.
- Requests that overlap wait for the same. A request goes on with the context of which its prompt begins with the most;
  where that agent is busy, it becomes the first call of another agent, `NAME.side1`, `NAME.side2`, …
- The time between the end of what is waited for and the beginning is a tool's or a pause, see `plan`.

Played with the service times of the recording, every request begins when it began there.

Times are whole microseconds from the start of the session, so that no comparison depends on rounding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TypeAlias

from ..files.fields import WrongField
from ..files.input_limits import EDGES
from .block_ids import common_blocks

YOUNGEST_LINEAGES = 31  # besides the first: whose contexts a prompt is compared with, so that the work stays linear


@dataclass(slots=True, eq=False)
class RecordedRequest:
    """A recorded request, and once `plan` was called, its place in the DAG."""

    position: int  # where it stands in the recording: decides between equal times
    start_us: int
    end_us: int  # as far as that was recorded, else its start; `settle` may move it
    service_us: int  # how long it took, as far as that was recorded
    tokens: int
    output_tokens: int
    ids: Sequence[int]
    brings_tool_result: bool = False
    after: list[RecordedRequest] = field(default_factory=list)
    base: RecordedRequest | None = None  # the call of its thread whose context it goes on with
    agent: str = ""
    agent_type: str = ""
    call: str = ""  # the call's name
    tool_us: int | None = None  # of the tool that starts when it ends; None: no tool does
    tool_result_tokens: int = 0
    pause_us: int = 0


@dataclass(slots=True, eq=False)
class Thread:
    """The main thread of a session, or a sub-agent: its requests, and the sub-agents that these started."""

    position: int
    agent: str
    agent_type: str
    start_us: int = 0
    end_us: int = 0
    resolution_us: int = 0  # how far the times of its requests may be off
    requests: list[RecordedRequest] = field(default_factory=list)
    threads: list[Thread] = field(default_factory=list)
    last_calls: list[RecordedRequest] = field(default_factory=list)  # with which it ends

    def all_requests(self) -> Iterator[RecordedRequest]:
        """Its own and those of all sub-agents inside it."""
        yield from self.requests
        for thread in self.threads:
            yield from thread.all_requests()


_Item: TypeAlias = "RecordedRequest | Thread"


def _key(item: _Item) -> tuple[int, int, int]:
    """Whoever comes first here never waits for one that comes later."""
    return item.start_us, item.end_us, item.position


def settle(thread: Thread) -> None:
    """Takes out of the times what only rounding brought in; `resolution_us` says how much that can be.

    A request that begins by less than that before the end of the previous one, and whose prompt goes on with the whole
    of it, followed it; a sub-agent that begins by so little before the end of a request was started by that. A
    sub-agent whose requests end later than it, by more than that, ended with them.
    """
    ordered = sorted(thread.requests, key=_key)
    for before, request in pairwise(ordered):
        if before.end_us - request.start_us < thread.resolution_us and _goes_on(before, request):
            before.end_us = min(before.end_us, request.start_us)
    for inner in thread.threads:
        settle(inner)
        begun = bisect_left(ordered, inner.start_us, key=lambda one: one.start_us)
        if begun and 0 < ordered[begun - 1].end_us - inner.start_us < thread.resolution_us:
            inner.start_us = ordered[begun - 1].end_us
        lasting: Sequence[_Item] = inner.requests or inner.threads
        last_us = max((one.end_us for one in lasting), default=inner.end_us)
        if last_us - inner.end_us > inner.resolution_us:
            inner.end_us = last_us
        inner.end_us = max(inner.end_us, inner.start_us)


def _goes_on(before: RecordedRequest, request: RecordedRequest) -> bool:
    return request.tokens > before.tokens and common_blocks(before.ids, request.ids) == len(before.ids)


def plan(main: Thread, taken: Iterable[str] = ()) -> list[RecordedRequest]:
    """The requests in an order in which each follows all that it waits for; their places in the DAG are filled in.

    `main` has at least one request, in it or in a sub-agent. Raises WrongField for more waits than a trace may have.

    The gap before a request that brings a tool's result, and waits for nothing but the call that it goes on with, is a
    tool of that call. Of several such requests side by side the first says how long the tool took, and the others
    paused after it. Every other gap is a pause: the format has no other wait after several calls, and a tool would
    also hold up what else waits for that call. `taken` are names that agents made up here must not have.
    """
    _Links().of(main, [])
    _name(main, set(taken))
    ordered = _in_order(list(main.all_requests()))
    _fill_gaps(ordered)
    return ordered


# who waits for whom


class _Ended:
    """What of a thread ended before a moment that only moves forward, less what others of it waited for."""

    def __init__(self) -> None:
        self.requests: deque[RecordedRequest] = deque()  # in order of their ends, and so are the threads
        self._threads: deque[Thread] = deque()
        self._latest: RecordedRequest | None = (
            None  # the one that began last: it waited for all that ended before its start
        )
        self._awaited: list[RecordedRequest] | None = []

    def add(self, item: _Item) -> None:
        self._awaited = None
        if isinstance(item, Thread):
            self._threads.append(item)
        else:
            self.requests.append(item)
            self._latest = item if self._latest is None else max(self._latest, item, key=_key)
        if self._latest is not None:
            _drop_awaited(self.requests, self._latest)
            _drop_awaited(self._threads, self._latest)

    def awaited(self) -> list[RecordedRequest]:
        """The calls that whoever comes next waits for."""
        if self._awaited is None:
            of_threads = [call for thread in self._threads for call in thread.last_calls]
            self._awaited = [*sorted(self.requests, key=_key), *of_threads]
        return self._awaited


def _drop_awaited(ended: deque[RecordedRequest] | deque[Thread], by: RecordedRequest) -> None:
    while ended and ended[0].end_us <= by.start_us and _key(ended[0]) < _key(by):
        ended.popleft()


class _Links:
    """Fills in `after`, as long as there are not too many."""

    def __init__(self) -> None:
        self._edges = 0

    def of(self, thread: Thread, starters: list[RecordedRequest]) -> None:
        """The first requests of `thread` wait for `starters`."""
        ended = _Ended()
        running: list[tuple[int, int, _Item]] = []
        items: list[_Item] = [*thread.requests, *thread.threads]
        for number, item in enumerate(sorted(items, key=_key)):
            while running and running[0][0] <= item.start_us:
                ended.add(heappop(running)[2])
            if isinstance(item, Thread):
                self.of(item, sorted(ended.requests, key=_key) or starters)
            else:
                item.after = ended.awaited() or starters
                self._count(item)
            heappush(running, (item.end_us, number, item))
        while running:
            ended.add(heappop(running)[2])
        thread.last_calls = sorted(ended.requests, key=_key) or ended.awaited()

    def _count(self, request: RecordedRequest) -> None:
        self._edges += len(request.after)
        if self._edges > EDGES:
            raise WrongField("requests", f"expected requests that wait for {EDGES} others in all, got more")


# whose calls they are


@dataclass(slots=True)
class _Lineage:
    """An agent of a thread: calls that go on with each other's context."""

    agent: str
    calls: list[RecordedRequest]

    def last_ended(self, by_us: int) -> RecordedRequest | None:
        return next((call for call in self.calls[-1:-3:-1] if call.end_us <= by_us), None)

    def idle(self, at_us: int) -> bool:
        return self.calls[-1].end_us <= at_us


def _name(thread: Thread, taken: set[str]) -> None:
    lineages: list[_Lineage] = []
    for request in sorted(thread.requests, key=_key):
        lineage, request.base = _continued(request, lineages)
        if lineage is None:
            lineage = _Lineage(_free_name(thread.agent, len(lineages), taken), [])
            lineages.append(lineage)
        lineage.calls.append(request)
        request.agent, request.agent_type = lineage.agent, thread.agent_type
        request.call = f"{lineage.agent}_{len(lineage.calls)}"
    for inner in thread.threads:
        _name(inner, taken)


def _continued(request: RecordedRequest, lineages: list[_Lineage]) -> tuple[_Lineage | None, RecordedRequest | None]:
    """The agent whose call a request is, and the call with whose context it goes on.

    None for the agent: a new one. Among equals agents that are idle come first, then those that began first.
    """
    best: tuple[int, bool] = (0, False)
    found: tuple[_Lineage | None, RecordedRequest | None] = None, None
    for lineage in _comparable(lineages):
        base = lineage.last_ended(request.start_us)
        idle = lineage.idle(request.start_us)
        if base is not None and (rank := (common_blocks(base.ids, request.ids), idle)) > best:
            best, found = rank, (lineage if idle else None, base)
    return found


def _comparable(lineages: list[_Lineage]) -> list[_Lineage]:
    return [*lineages[:1], *lineages[1:][-YOUNGEST_LINEAGES:]]


def _free_name(agent: str, number: int, taken: set[str]) -> str:
    if not number:
        return agent
    while (name := f"{agent}.side{number}") in taken:
        number += 1
    taken.add(name)
    return name


# when


def _in_order(requests: list[RecordedRequest]) -> list[RecordedRequest]:
    """As they began, each after all that it waits for."""
    followers: dict[int, list[RecordedRequest]] = {}
    missing = {request.position: len(request.after) for request in requests}
    for request in requests:
        for before in request.after:
            followers.setdefault(before.position, []).append(request)
    ready = [(*_key(request), request) for request in requests if not request.after]
    heapify(ready)
    ordered = []
    while ready:
        request = heappop(ready)[-1]
        ordered.append(request)
        for follower in followers.get(request.position, ()):
            missing[follower.position] -= 1
            if not missing[follower.position]:
                heappush(ready, (*_key(follower), follower))
    assert len(ordered) == len(requests)
    return ordered


def _fill_gaps(ordered: list[RecordedRequest]) -> None:
    """Tools and pauses, so that each request begins when it began in the recording, or as soon as what it waits for."""
    origin_us = min(request.start_us for request in ordered)
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for request in ordered:
        ready_us = max((ends[before.position] for before in request.after), default=origin_us)
        begins[request.position] = max(ready_us, request.start_us)
        ends[request.position] = begins[request.position] + request.service_us
    _tools(ordered, lambda before, request: begins[request.position] - ends[before.position])
    for request in ordered:
        ready_us = max((ends[one.position] + (one.tool_us or 0) for one in request.after), default=origin_us)
        request.pause_us = begins[request.position] - ready_us


def _tools(ordered: list[RecordedRequest], gap_us: Callable[[RecordedRequest, RecordedRequest], int]) -> None:
    followers: dict[int, list[RecordedRequest]] = {}
    for request in ordered:
        for before in request.after:
            followers.setdefault(before.position, []).append(request)
    for before in ordered:
        behind = followers.get(before.position, [])
        bringing = [one for one in behind if one.brings_tool_result and one.after == [before] and one.base is before]
        if not bringing:
            continue
        first = min(bringing, key=lambda one: gap_us(before, one))
        if gap_us(before, first) == min(gap_us(before, one) for one in behind):
            before.tool_us = gap_us(before, first)
            before.tool_result_tokens = max(0, first.tokens - before.tokens - before.output_tokens)
