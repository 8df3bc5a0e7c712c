"""What the published spatial half knows of the calls: facts become a record a live call and sums an agent type.

How many free blocks a waiting call needs is remembered as a lower bound. The bound holds until blocks that the call may
share come onto the GPU: until then, less and less of its prompt is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import TypeVar

from ....traces import events as e
from ....traces.apps import AgentId, AppId, CallId
from ....traces.arithmetic import div_ceil
from ....traces.events import Request
from ...interface import View
from ...parts.dispatch import Handler
from ..options import Options
from .agent_types import AgentType
from .branches import Branches, JoinGroup
from .partition import Charge, Partition
from .score import drift
from .waiting_lanes import OrderClass, Place, WaitingLanes

BinKey = TypeVar("BinKey")

MOST_LEFT_OVER = 64  # so many calls that have left, and are remembered for the time at which their lanes would change
REFRESH_ADMISSIONS = 16  # so many admissions, or half the queue if that is more, and every bound is forgotten


class CallRecord:
    """A call that arrived and has not finished."""

    __slots__ = (
        "admitted_s", "arrived_s", "charge", "drift", "first_token_step", "floor_blocks", "generated_tokens", "group",
        "id", "need_blocks", "number", "order_class", "place", "preempted_when", "request", "shared_blocks", "since_s",
        "started_s", "total_blocks", "type", "waited_s",
    )  # fmt: skip

    def __init__(
        self, request: Request, number: int, at_s: float, started_s: float, offset_s: float, kind: AgentType
    ) -> None:
        self.id = request.id
        self.number = number  # calls that arrived before it
        self.request = request
        self.type = kind
        name = request.hints.join_group
        self.group: JoinGroup | None = None if name is None else (request.app, name)
        self.arrived_s = at_s
        self.since_s = at_s  # in the queue since
        self.started_s = started_s  # its application
        self.drift = drift(request.hints, offset_s)
        self.order_class: OrderClass = self.id if self.group is None else (self.group, self.drift)
        self.place: Place = (at_s, at_s, number)
        self.waited_s: float | None = None  # before it was admitted
        self.admitted_s: float | None = None  # the first time
        self.generated_tokens = 0
        self.first_token_step: int | None = None
        self.total_blocks = 0  # that it must find room for, cached or not
        self.floor_blocks = 0  # demand if everything were cached that can be
        self.need_blocks = 0  # a lower bound of its demand
        self.shared_blocks = 0  # of its prompt, held by others when last looked at
        self.charge: Charge = ()  # planned, or booked
        self.preempted_when: tuple[int, int] | None = None  # finished calls and uncommitted blocks at that moment


class QueueState:
    """The live calls: which wait, in lanes, which load, which run; and what they were charged."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.partition = Partition(options)
        self.types: dict[str, AgentType] = {}
        self.waiting: dict[CallId, CallRecord] = {}
        self.waiting_of_type: dict[AgentType, dict[CallId, CallRecord]] = {}
        self.lanes: WaitingLanes[CallRecord] = WaitingLanes()  # of the waiting calls
        self.loading: dict[CallId, CallRecord] = {}
        self.running: dict[CallId, CallRecord] = {}
        self.branches: dict[JoinGroup, Branches] = {}  # live calls
        self.last: dict[AppId, dict[AgentId, CallRecord]] = {}  # the last call of each agent that finished
        self.finished_calls = 0
        self._calls: dict[CallId, CallRecord] = {}
        self._numbers = count()  # of calls, as they arrive
        self._slower: list[tuple[float, int, CallRecord]] = []  # when the scores of which calls begin to grow slower
        self._started_s: dict[AppId, float] = {}  # the view knows no more of one that is over when its news is read
        self._raised: dict[AppId, dict[CallId, CallRecord]] = {}  # waiting calls whose bounds are above their floors
        self._first_start_s: float | None = None
        self._admissions = 0  # since all bounds were forgotten
        self._planned = (0.0, 0)  # when the last plan was made: time and step
        self.handlers: Mapping[type, Handler] = {
            e.AppStarted: self._app_started,
            e.AppFinished: self._app_finished,
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.FirstToken: self._first_token,
            e.CallPreempted: self._preempted,
            e.CallFinished: self._finished,
            e.CallAborted: self._aborted,
            e.LoadStarted: self._load_started,
            e.LoadFinished: self._load_finished,
            e.UploadFinished: self._upload_finished,
        }

    def begin(self, now_s: float, step: int) -> None:
        """A plan is made now. Calls whose scores grow slower from now on move to other lanes."""
        slower = self._slower
        while slower and slower[0][0] <= now_s:
            _, _, call = heappop(slower)
            if self._has_line(call):
                self._line_up(call, now_s)
                self.lanes.put(call)
        if len(slower) > MOST_LEFT_OVER + 2 * len(self.waiting):
            self._slower = [entry for entry in slower if self._has_line(entry[2])]
            heapify(self._slower)
        self._planned = (now_s, step)

    def _has_line(self, call: CallRecord) -> bool:
        """Whether it waits in a lane of calls whose scores grow at the same pace."""
        return call.id in self.waiting and type(call.order_class) is float

    def _line_up(self, call: CallRecord, now_s: float) -> None:
        """Find the lane of a call by itself, and when it will leave it for another one."""
        line = call.drift.line(call.started_s, call.since_s, now_s)
        call.order_class = line.slope
        call.place = (-line.points, call.arrived_s, call.number)
        if line.until_s < inf:
            heappush(self._slower, (line.until_s, call.number, call))

    def update_lane(self, call: CallRecord) -> None:
        """A call's demand is known better: it goes to the lane where it belongs, if it waits."""
        if call.id in self.waiting:
            self.lanes.put(call)
            if call.need_blocks > call.floor_blocks:
                self._raised.setdefault(call.request.app, {})[call.id] = call

    def prompt_blocks(self, call: CallRecord, block_tokens: int) -> int:
        """Blocks of a call's prompt, with what it generated before its last preemption."""
        return div_ceil(call.request.prompt_tokens + call.generated_tokens, block_tokens)

    # -- facts

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        kind = self.types.get(request.agent_type)
        if kind is None:
            kind = self.types[request.agent_type] = AgentType(request.agent_type, view.step)
        started_s = self._started_s[request.app]
        call = CallRecord(request, next(self._numbers), fact.at_s, started_s, self._offset_s(started_s), kind)
        if call.group is None and self._options.order:
            self._line_up(call, fact.at_s)
        self._estimate_demand(call, view.block_tokens)
        self._calls[call.id] = call
        if call.group is not None:
            branches = self.branches.get(call.group)
            if branches is None:
                branches = self.branches[call.group] = Branches(started_s)
            branches.add(call.drift, call.since_s, None)
        kind.enter(request, started_s)
        self._wait(call, view.step)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        call = self._calls[fact.call]
        planned_s, step = self._planned
        # what the last plan admitted at once runs from the next step on, however late the policy is asked again
        step = min(view.step, step + 1) if fact.at_s <= planned_s else view.step
        if call.id in self.loading:
            del self.loading[call.id]
        else:
            self._stop_waiting(call, step)
            self._book(call)
        call.type.run(step)
        self._move_branch(call, fact.at_s - call.since_s)
        if call.admitted_s is None:
            call.admitted_s = fact.at_s
        call.preempted_when = None
        self.running[call.id] = call
        self._reset_demand(call.request.app)
        self._admissions += 1
        if self._admissions >= max(REFRESH_ADMISSIONS, len(self.waiting) // 2):
            self._admissions = 0
            for app in tuple(self._raised):
                self._reset_demand(app)

    def _first_token(self, fact: e.FirstToken, view: View) -> None:
        call = self._calls.get(fact.call)
        if call is not None:
            call.first_token_step = view.step
            self._reset_demand(call.request.app)  # the whole of its prompt is cached now

    def _preempted(self, fact: e.CallPreempted, view: View) -> None:
        call = self.running.pop(fact.call)
        call.type.stop_running(view.step)
        call.type.preemptions += 1
        self._unbook(call)
        self._move_branch(call, None, fact.at_s)
        call.generated_tokens = fact.generated_tokens
        call.order_class = call.id  # whether it may return is its own matter
        call.preempted_when = (self.finished_calls, view.free_blocks - view.growth_blocks)
        self._estimate_demand(call, view.block_tokens)
        self._wait(call, view.step)

    def _finished(self, fact: e.CallFinished, view: View) -> None:
        call = self._end(fact.call, fact.at_s, view)
        self.last.setdefault(call.request.app, {})[call.request.agent] = call

    def _aborted(self, fact: e.CallAborted, view: View) -> None:
        self._end(fact.call, fact.at_s, view)

    def _end(self, name: CallId, at_s: float, view: View) -> CallRecord:
        """A call is over, wherever it was: most run, but one may have been preempted, or given up by its client."""
        call = self._calls.pop(name)
        if self.running.pop(call.id, None) is not None:
            call.type.stop_running(view.step)
        elif self.loading.pop(call.id, None) is None:
            self._stop_waiting(call, view.step)
        if call.group is not None:
            branches = self.branches[call.group]
            branches.remove(call.drift, call.since_s, call.waited_s)
            if not branches:
                del self.branches[call.group]
        self._unbook(call)
        admitted_s = at_s if call.admitted_s is None else call.admitted_s
        call.type.leave(call.request, call.started_s, at_s - admitted_s)
        self.finished_calls += 1
        return call

    def _app_started(self, fact: e.AppStarted, view: View) -> None:
        self._started_s[fact.app] = fact.at_s

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self.last.pop(fact.app, None)
        self._started_s.pop(fact.app, None)

    def _load_started(self, fact: e.LoadStarted, view: View) -> None:
        call = self.waiting.get(fact.call)
        if call is None:
            return  # a second load: it had to give its blocks up once
        self._stop_waiting(call, view.step)
        self.loading[call.id] = call
        self._book(call)

    def _load_finished(self, fact: e.LoadFinished, view: View) -> None:
        call = self._calls.get(fact.call)
        if call is not None:
            self._reset_demand(call.request.app)

    def _upload_finished(self, fact: e.UploadFinished, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is not None:
            self._reset_demand(agent.app)

    # -- book-keeping

    def _wait(self, call: CallRecord, step: int) -> None:
        self.waiting[call.id] = call
        self.waiting_of_type.setdefault(call.type, {})[call.id] = call
        self.lanes.put(call)
        call.type.wait(call.since_s, step)

    def _stop_waiting(self, call: CallRecord, step: int) -> None:
        del self.waiting[call.id]
        _remove(self._raised, call.request.app, call.id)
        _remove(self.waiting_of_type, call.type, call.id)
        self.lanes.remove(call)
        call.type.stop_waiting(call.since_s, step)

    def _move_branch(self, call: CallRecord, waited_s: float | None, since_s: float | None = None) -> None:
        """A call starts, after it has waited for so long, or waits again."""
        branches = None if call.group is None else self.branches[call.group]
        if branches is not None:
            branches.remove(call.drift, call.since_s, call.waited_s)
        call.waited_s = waited_s
        if since_s is not None:
            call.since_s = since_s
        if branches is not None:
            branches.add(call.drift, call.since_s, call.waited_s)

    def _reset_demand(self, app: AppId) -> None:
        """Blocks came onto the GPU that calls of this application may share: nothing is known of their demands."""
        for call in self._raised.pop(app, {}).values():
            call.need_blocks = call.floor_blocks
            self.lanes.put(call)

    def _estimate_demand(self, call: CallRecord, block_tokens: int) -> None:
        """Demand while nothing is known of the cache: at best, all full blocks before the last token are cached."""
        prompt_blocks = self.prompt_blocks(call, block_tokens)
        budget_tokens = call.request.prompt_tokens + call.request.max_output_tokens
        call.total_blocks = div_ceil(budget_tokens, block_tokens) if self._options.commit else prompt_blocks
        cached = (call.request.prompt_tokens + call.generated_tokens - 1) // block_tokens
        call.floor_blocks = call.need_blocks = call.total_blocks - cached

    def _book(self, call: CallRecord) -> None:
        """Charge a call that the engine started; one that it started by itself is a debt of the shared part."""
        if not call.charge:
            call.charge = ((None, call.need_blocks),)
        self.partition.charge(call.charge)
        call.type.used_blocks += sum(blocks for _, blocks in call.charge)

    def _unbook(self, call: CallRecord) -> None:
        self.partition.charge(call.charge, -1)
        call.type.used_blocks -= sum(blocks for _, blocks in call.charge)
        call.charge = ()

    def _offset_s(self, started_s: float) -> float:
        """Start of an application after the first one."""
        if self._first_start_s is None:
            self._first_start_s = started_s
        return max(0.0, started_s - self._first_start_s)


def _remove(calls: dict[BinKey, dict[CallId, CallRecord]], key: BinKey, call: CallId) -> None:
    """Take a call out of its bin, if it is there, and an empty bin away."""
    left = calls.get(key)
    if left is not None:
        left.pop(call, None)
        if not left:
            del calls[key]
