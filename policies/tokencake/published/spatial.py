"""The spatial half of Tokencake: which calls start, in which order, and who gives way.

It is incremental. Facts keep a record a live call and running sums an agent type; a plan looks closer only at calls
that may fit. A call's demand is remembered as a lower bound: what is cached of its prompt can only shrink, until a call
that may share the prompt brings blocks onto the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, TypeVar

from ....traces import events as e
from ....traces.apps import AgentId, AppId, CallId
from ....traces.events import Request
from ...interface import View
from ...parts.admission import Admission, Claim, Rival
from ...parts.dispatch import Part
from ..halves import SPACE_FACTS, Needs
from ..options import Options
from .agent_types import AgentType
from .partition import Charge, Partition, Room
from .score import START_OFFSET_S, drift, waits_in_order_s
from .waiting_lanes import Lane, Lanes, Peers, in_order

Group = tuple[AppId, str]  # a join group of an application
Key = TypeVar("Key")

REFRESH_ADMISSIONS = 16  # so many admissions, or half the queue if that is more, and every bound is forgotten


class LiveCall:
    """A call that arrived and has not finished."""

    __slots__ = (
        "admitted_s", "arrived_s", "charge", "drift", "first_token_step", "floor_blocks", "generated_tokens", "group",
        "held", "id", "need_blocks", "number", "peers", "request", "shared_blocks", "since_s", "started_s",
        "total_blocks", "type", "waited_s",
    )  # fmt: skip

    def __init__(
        self, request: Request, number: int, at_s: float, started_s: float, offset_s: float, kind: AgentType
    ) -> None:
        self.id = request.id
        self.number = number  # calls that arrived before it
        self.request = request
        self.type = kind
        name = request.hints.join_group
        self.group: Group | None = None if name is None else (request.app, name)
        self.arrived_s = at_s
        self.since_s = at_s  # in the queue since
        self.started_s = started_s  # its application
        self.drift = drift(request.hints, offset_s)
        self.peers: Peers = self.id if name is not None else self.drift
        self.waited_s: float | None = None  # before it was admitted
        self.admitted_s: float | None = None  # the first time
        self.generated_tokens = 0
        self.first_token_step: int | None = None
        self.total_blocks = 0  # that it must find room for, cached or not
        self.floor_blocks = 0  # demand if everything were cached that can be
        self.need_blocks = 0  # a lower bound of its demand
        self.shared_blocks = 0  # of its prompt, held by others when last looked at
        self.charge: Charge = ()  # planned, or booked
        self.held: tuple[int, int] | None = (
            None  # preempted when so many calls had finished and so much was uncommitted
        )


class Scores:
    """Scores at one moment, each worked out once, and only if somebody asks."""

    __slots__ = ("_best", "_branches", "_groups", "_now_s", "_own")

    def __init__(self, now_s: float, branches: Mapping[Group, Mapping[CallId, LiveCall]]) -> None:
        self._now_s = now_s
        self._branches = branches  # live calls by join group
        self._own: dict[LiveCall, float] = {}
        self._groups: dict[Group, float] = {}
        self._best: dict[AgentType, float] = {}

    def own(self, call: LiveCall) -> float:
        """The call's own score; its wait stops counting when it is admitted."""
        score = self._own.get(call)
        if score is None:
            waited_s = self._now_s - call.since_s if call.waited_s is None else call.waited_s
            score = self._own[call] = call.drift.points(self._now_s - call.started_s, waited_s)
        return score

    def rank(self, call: LiveCall) -> float:
        """What it is ordered by: a branch of a join group counts as much as the group's most urgent live call."""
        group = call.group
        if group is None:
            return self.own(call)
        score = self._groups.get(group)
        if score is None:
            score = self._groups[group] = max(map(self.own, self._branches[group].values()))
        return score

    def best(self, kind: AgentType, waiting: Iterable[LiveCall], above: float) -> float:
        """The highest rank of a type's waiting calls, or the first one found that is above `above`."""
        best = self._best.get(kind, -inf)
        if best <= above:
            for call in waiting:
                best = max(best, self.rank(call))
                if best > above:
                    break
            self._best[kind] = best
        return best


class PublishedSpace:
    """Order, reserve, admit, preempt. First `handlers` for each fact, then `begin`, `admission`, and the questions."""

    listens_to = SPACE_FACTS

    def __init__(self, options: Options) -> None:
        self.parts: Sequence[Part] = (self,)
        self._options = options
        self._partition = Partition(options)
        self._types: dict[str, AgentType] = {}
        self._calls: dict[CallId, LiveCall] = {}
        self._numbers = count()  # of calls, as they arrive
        self._ageing: list[tuple[float, int, LiveCall]] = []  # when who leaves the lane of its early days
        self._last: dict[AppId, dict[AgentId, LiveCall]] = {}  # the last call of each agent that finished
        self._started_s: dict[AppId, float] = {}  # the view knows no more of one that is over when its news is read
        self._branches: dict[Group, dict[CallId, LiveCall]] = {}
        self._waiting: dict[CallId, LiveCall] = {}
        self._of_app: dict[AppId, dict[CallId, LiveCall]] = {}  # waiting ones
        self._of_type: dict[AgentType, dict[CallId, LiveCall]] = {}  # waiting ones
        self._lanes: Lanes[LiveCall] = Lanes()  # waiting ones
        self._loading: dict[CallId, LiveCall] = {}
        self._running: dict[CallId, LiveCall] = {}
        self._first_start_s: float | None = None
        self._finished_calls = 0
        self._admissions = 0  # since all bounds were forgotten
        self._uncommitted_blocks = 0
        self._planned = (0.0, 0)  # when the last plan was made: time and step
        self._scores = Scores(0.0, self._branches)
        self._looked_at: dict[CallId, LiveCall] = {}  # in this plan
        self.handlers: Mapping[type, Callable[[Any, View], None]] = {
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

    def begin(self, view: View) -> None:
        """The news is taken in: what follows is about this moment."""
        self._scores = Scores(view.now_s, self._branches)
        self._place_anew()
        self._looked_at.clear()
        while self._ageing and self._ageing[0][0] <= view.now_s:
            _, _, call = heappop(self._ageing)
            if call.peers != call.id:
                call.peers = call.drift
            if call.id in self._waiting:
                self._lanes.put(call)
        self._planned = (view.now_s, view.step)
        self._uncommitted_blocks = view.free_blocks - (view.growth_blocks if self._options.commit else 0)

    def importance(self, request: Request) -> float:
        """What a save of this call's context is weighed with: its own importance, or its type's (at most 10)."""
        kind = self._types[request.agent_type]
        return max(request.hints.importance, min(10.0, kind.score(*self._planned) / 2))

    def agent_score(self, request: Request) -> float:
        """Score that the agent's next call would have if it arrived now, judged by its last one, which has finished."""
        last = self._last[request.app][request.agent]
        now_s, _ = self._planned
        return last.drift.points(now_s - last.started_s, 0.0)

    # -- admit

    def admission(self, view: View, needs: Needs) -> Admission:
        """Loading calls, then those that start now, in order. A call that is not named is held back.

        Claims, highest score first, take their share of the room where their score stands in the order. While nothing
        waits and the temporal half is at rest, reserves are left as they are.
        """
        if needs.at_rest and not self._waiting:
            return Admission((), 0, 0, preempt=self._victims(view))
        if self._options.reserve:
            self._partition.update(view.step, view.now_s, view.free_blocks, view.gpu_blocks, self._types.values())
        chosen = self._fitting(view, needs.claims) if self._waiting else []
        if not chosen and self._waiting and not self._running and not self._loading:
            chosen = self._somebody(view)
        fit = 0
        room = self._uncommitted_blocks
        for call in chosen:
            fit += call.need_blocks
        room -= fit
        for claim in needs.claims:
            room -= claim.granted_blocks or claim.grant(room)
        room = max(0, room)
        admit = (*self._loading, *(call.id for call in chosen))
        rival = self._rival(set(admit), room + needs.held_blocks, view) if needs.held_blocks else None
        return Admission(admit, fit, room, rival, self._victims(view))

    def _rival(self, admit: set[CallId], reach_blocks: int, view: View) -> Rival | None:
        """The highest-scored waiting call that was not admitted, but might have been if uploads held no room."""
        self._place_anew()
        left = [call for lane in self._lanes.upto(reach_blocks) for call in lane.calls if call.id not in admit]
        if not left:
            return None
        best = max(left, key=lambda call: (self._scores.own(call), -call.number))
        return Rival(self._scores.own(best), self._look(best, view))

    def _fitting(self, view: View, claims: Sequence[Claim]) -> list[LiveCall]:
        """Calls that fit, in the order in which they should start. Books what they will be charged."""
        skip = self._options.skip
        if skip:
            lanes = [lane for lane in self._lanes.upto(self._uncommitted_blocks) if self._may_return(lane.calls[0])]
        else:
            lanes = self._lanes.all()
        if not lanes:
            return []
        room = self._room()
        chosen = []
        refused = []
        left = list(reversed(claims))

        def reach_blocks() -> float:
            """Claims and barriers need all calls, also those that do not fit."""
            return inf if left or not skip else room.uncommitted_blocks

        for call in self._ordered(lanes, reach_blocks, view):
            while left and left[-1].score > self._scores.rank(call):
                room.uncommitted_blocks -= left.pop().grant(room.uncommitted_blocks)
            if call.need_blocks > room.uncommitted_blocks or self._look(call, view) > room.uncommitted_blocks:
                if skip:
                    continue
                break
            charge = self._draw(call, room)
            if charge is not None:
                call.charge = charge
                chosen.append(call)
            elif skip:
                refused.append(call)
            else:
                break
        if self._options.lend:
            for call in refused:
                charge = room.lend(call.need_blocks)
                if charge is not None:
                    call.charge = charge
                    chosen.append(call)
        return chosen

    def _room(self) -> Room:
        if self._options.reserve:
            return self._partition.room(self._uncommitted_blocks)
        return Room(self._uncommitted_blocks, max(0, self._uncommitted_blocks), {})

    def _draw(self, call: LiveCall, room: Room) -> Charge | None:
        """Shared part, own reserve, then the idle reserves whose owners have nothing waiting, or nothing so urgent."""
        need = call.need_blocks
        idle = room.idle_blocks
        own = call.type.name
        reserves = [own] if own in idle else []
        blocks = room.shared_blocks + idle.get(own, 0)
        if need > blocks:
            if need > room.shared_blocks + sum(idle.values()):
                return None
            for name in reversed(idle):
                if idle[name] and name != own and self._may_borrow(call, self._types[name]):
                    reserves.append(name)
                    blocks += idle[name]
                    if need <= blocks:
                        break
        return room.draw(need, reserves)

    def _may_borrow(self, call: LiveCall, owner: AgentType) -> bool:
        scores = self._scores
        least = scores.rank(call) - self._options.borrow_points
        return not owner.waiting or scores.best(owner, self._of_type[owner].values(), least) <= least

    def _look(self, call: LiveCall, view: View) -> int:
        """Ask what is cached of a call's prompt: its demand in blocks that are free now. Once a plan is enough."""
        if call.id not in self._looked_at:
            hits = view.hits(call.id)
            call.shared_blocks = hits.gpu_blocks - hits.idle_blocks
            call.need_blocks = call.total_blocks - call.shared_blocks
            self._looked_at[call.id] = call
        return call.need_blocks

    def _place_anew(self) -> None:
        """Calls that were looked at go where they belong; not before the plan is through with the lanes."""
        for call in self._looked_at.values():
            if call.id in self._waiting:
                self._lanes.put(call)

    def _may_return(self, call: LiveCall) -> bool:
        """A preempted call waits until capacity improved or another call finished."""
        if call.held is None:
            return True
        finished_calls, uncommitted = call.held
        return self._finished_calls > finished_calls or self._uncommitted_blocks > uncommitted

    def _somebody(self, view: View) -> list[LiveCall]:
        """Nothing runs and nothing fits with its whole budget: the first call whose prompt fits may start all the same.

        If none does, every call is named, and what the engine can start it starts.
        """
        calls = list(self._ordered(self._lanes.all(), lambda: inf, view))
        for call in calls:
            need = self._look(call, view)
            call.charge = ((None, need),)
            beyond_prompt = call.total_blocks - self._prompt_blocks(call, view.block_tokens)
            if need - beyond_prompt <= view.free_blocks:
                return [call]
        return calls

    # -- order

    def _ordered(
        self, lanes: list[Lane[LiveCall]], reach_blocks: Callable[[], float], view: View
    ) -> Iterator[LiveCall]:
        """The lanes' calls, first to start first."""
        if not self._options.order:
            return in_order(lanes, lambda call: (call.arrived_s, call.number), reach_blocks)
        calls = in_order(lanes, self._place, reach_blocks)
        scarce = self._uncommitted_blocks < self._options.affinity_free_share * view.gpu_blocks
        if scarce and self._options.prefix_affinity:
            half = [lane for lane in lanes if 2 * lane.need_blocks <= lane.calls[0].total_blocks]
            held = [call for lane in half for call in lane.calls if self._is_held(call, view)]
            if held:
                return self._by_affinity(sorted(held, key=self._place), calls)
        return calls

    def _place(self, call: LiveCall) -> tuple[float, float, float, int]:
        own = self._scores.own(call)
        rank = own if call.group is None else self._scores.rank(call)
        return (-rank, -own, call.arrived_s, call.number)

    def _by_affinity(self, held: list[LiveCall], calls: Iterator[LiveCall]) -> Iterator[LiveCall]:
        """Within `affinity_points` of the best that is left, a call whose prefix running calls hold goes first."""
        rank, points = self._scores.rank, self._options.affinity_points
        ahead = {call.id for call in held}
        first = 0  # of those that are left
        for call in calls:
            if call.id in ahead:
                continue
            while first < len(held) and rank(held[first]) >= rank(call) - points:
                yield held[first]
                first += 1
            yield call
        yield from held[first:]

    def _is_held(self, call: LiveCall, view: View) -> bool:
        """Whether the blocks it shares with running calls at least cover its new demand: half of its total or less."""
        need = self._look(call, view)
        return call.shared_blocks >= need and view.shared_blocks(call.id) >= need

    # -- preempt

    def _victims(self, view: View) -> tuple[CallId, ...]:
        """Running calls, first victim first; () as long as everything that runs can grow to its budget.

        Among calls within `preempt_points` of the lowest score: first those that alone free what is missing, then
        those not near their end, then those that cost least recomputation for a freed block. One token a step is
        assumed since the first. Of equal ones who came last gives way first.
        """
        missing = view.growth_blocks - view.free_blocks
        if missing <= 0 or not self._options.preempt:
            return ()
        scores = {call.id: self._scores.own(call) for call in self._running.values()}
        most = min(scores.values(), default=0.0) + self._options.preempt_points

        def rank(call: LiveCall) -> tuple[bool, float, bool, float, int]:
            if scores[call.id] > most:
                return (True, scores[call.id], False, 0.0, -call.number)
            steps = 0 if call.first_token_step is None else view.step - call.first_token_step
            generated = min(call.request.max_output_tokens, call.generated_tokens + steps)
            tokens = call.request.prompt_tokens + generated
            freed = max(1, tokens // view.block_tokens - call.shared_blocks)
            done = generated >= self._options.preempt_done_share * call.request.max_output_tokens
            return (False, float(freed < missing), done, tokens / freed, -call.number)

        return tuple(call.id for call in sorted(self._running.values(), key=rank))

    # -- facts

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        kind = self._types.get(request.agent_type)
        if kind is None:
            kind = self._types[request.agent_type] = AgentType(request.agent_type, view.step)
        started_s = self._started_s[request.app]
        offset_s = self._offset_s(started_s)
        call = LiveCall(request, next(self._numbers), fact.at_s, started_s, offset_s, kind)
        if call.group is None and offset_s < START_OFFSET_S:
            like = drift(request.hints, 0.0)
            call.peers = like
            heappush(self._ageing, (started_s + waits_in_order_s(like), call.number, call))
        self._size(call, view.block_tokens)
        self._calls[call.id] = call
        if call.group is not None:
            self._branches.setdefault(call.group, {})[call.id] = call
        kind.enter(request, started_s)
        self._wait(call, view.step)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        call = self._calls[fact.call]
        planned_s, step = self._planned
        # what the last plan admitted at once runs from the next step on, however late the policy is asked again
        step = min(view.step, step + 1) if fact.at_s <= planned_s else view.step
        if call.id in self._loading:
            del self._loading[call.id]
        else:
            self._stop_waiting(call, step)
            self._book(call)
        call.type.run(step)
        call.waited_s = fact.at_s - call.since_s
        if call.admitted_s is None:
            call.admitted_s = fact.at_s
        call.held = None
        self._running[call.id] = call
        self._came(call.request.app)
        self._admissions += 1
        if self._admissions >= max(REFRESH_ADMISSIONS, len(self._waiting) // 2):
            self._admissions = 0
            for other in self._waiting.values():
                self._need(other, other.floor_blocks)

    def _first_token(self, fact: e.FirstToken, view: View) -> None:
        call = self._calls.get(fact.call)
        if call is not None:
            call.first_token_step = view.step
            self._came(call.request.app)  # the whole of its prompt is cached now

    def _preempted(self, fact: e.CallPreempted, view: View) -> None:
        call = self._running.pop(fact.call)
        call.type.stop_running(view.step)
        call.type.preemptions += 1
        self._unbook(call)
        call.since_s = fact.at_s
        call.waited_s = None
        call.generated_tokens = fact.generated_tokens
        call.peers = call.id  # whether it may return is its own matter
        call.held = (self._finished_calls, view.free_blocks - view.growth_blocks)
        self._size(call, view.block_tokens)
        self._wait(call, view.step)

    def _finished(self, fact: e.CallFinished, view: View) -> None:
        call = self._leave(fact.call, fact.at_s, view)
        self._last.setdefault(call.request.app, {})[call.request.agent] = call

    def _aborted(self, fact: e.CallAborted, view: View) -> None:
        self._leave(fact.call, fact.at_s, view)

    def _leave(self, name: CallId, at_s: float, view: View) -> LiveCall:
        """A call is over, wherever it was: most run, but one may have been preempted, or given up by its client."""
        call = self._calls.pop(name)
        if self._running.pop(call.id, None) is not None:
            call.type.stop_running(view.step)
        elif self._loading.pop(call.id, None) is None:
            self._stop_waiting(call, view.step)
        if call.group is not None:
            _remove(self._branches, call.group, call.id)
        self._unbook(call)
        admitted_s = at_s if call.admitted_s is None else call.admitted_s
        call.type.leave(call.request, call.started_s, at_s - admitted_s)
        self._finished_calls += 1
        return call

    def _app_started(self, fact: e.AppStarted, view: View) -> None:
        self._started_s[fact.app] = fact.at_s

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self._last.pop(fact.app, None)
        self._started_s.pop(fact.app, None)

    def _load_started(self, fact: e.LoadStarted, view: View) -> None:
        call = self._waiting.get(fact.call)
        if call is None:
            return  # a second load: it had to give its blocks up once
        self._stop_waiting(call, view.step)
        self._loading[call.id] = call
        self._book(call)

    def _load_finished(self, fact: e.LoadFinished, view: View) -> None:
        call = self._calls.get(fact.call)
        if call is not None:
            self._came(call.request.app)

    def _upload_finished(self, fact: e.UploadFinished, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is not None:
            self._came(agent.app)

    # -- book-keeping

    def _wait(self, call: LiveCall, step: int) -> None:
        self._waiting[call.id] = call
        self._of_app.setdefault(call.request.app, {})[call.id] = call
        self._of_type.setdefault(call.type, {})[call.id] = call
        self._lanes.put(call)
        call.type.wait(call.since_s, step)

    def _stop_waiting(self, call: LiveCall, step: int) -> None:
        del self._waiting[call.id]
        _remove(self._of_app, call.request.app, call.id)
        _remove(self._of_type, call.type, call.id)
        self._lanes.remove(call)
        call.type.stop_waiting(call.since_s, step)

    def _need(self, call: LiveCall, blocks: int) -> None:
        """A waiting call's demand is at least so much."""
        call.need_blocks = blocks
        self._lanes.put(call)

    def _came(self, app: AppId) -> None:
        """Blocks came onto the GPU that calls of this application may share."""
        for call in self._of_app.get(app, {}).values():
            self._need(call, call.floor_blocks)

    def _size(self, call: LiveCall, block_tokens: int) -> None:
        """Demand while nothing is known of the cache: at best, all full blocks before the last token are cached."""
        prompt_blocks = self._prompt_blocks(call, block_tokens)
        budget_tokens = call.request.prompt_tokens + call.request.max_output_tokens
        call.total_blocks = -(-budget_tokens // block_tokens) if self._options.commit else prompt_blocks
        cached = (call.request.prompt_tokens + call.generated_tokens - 1) // block_tokens
        call.floor_blocks = call.need_blocks = call.total_blocks - cached

    @staticmethod
    def _prompt_blocks(call: LiveCall, block_tokens: int) -> int:
        return -(-(call.request.prompt_tokens + call.generated_tokens) // block_tokens)

    def _book(self, call: LiveCall) -> None:
        """Charge a call that the engine started; one that it started by itself is a debt of the shared part."""
        if not call.charge:
            call.charge = ((None, call.need_blocks),)
        self._partition.charge(call.charge)
        call.type.used_blocks += sum(blocks for _, blocks in call.charge)

    def _unbook(self, call: LiveCall) -> None:
        self._partition.charge(call.charge, -1)
        call.type.used_blocks -= sum(blocks for _, blocks in call.charge)
        call.charge = ()

    def _offset_s(self, started_s: float) -> float:
        """Start of an application after the first one."""
        if self._first_start_s is None:
            self._first_start_s = started_s
        return max(0.0, started_s - self._first_start_s)


def _remove(calls: dict[Key, dict[CallId, LiveCall]], key: Key, call: CallId) -> None:
    """Take a call out of its bin, and an empty bin away."""
    left = calls[key]
    del left[call]
    if not left:
        del calls[key]
