"""The published spatial half of Tokencake: which calls start, in which order, and which give way.

It is incremental: a plan looks closer only at calls that may fit, however many wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import ClassVar

from ....traces.apps import CallId
from ....traces.events import Request
from ...interface import CallView, View
from ...parts.admission import LOOK_AHEAD_CALLS, Admission, Claim, Rival
from ...parts.dispatch import Listener
from ..halves import SPACE_FACTS, Needs
from ..options import Options
from .agent_types import AgentType
from .partition import Charge, Room
from .queue_state import CallRecord, QueueState
from .score import Line
from .score_table import ScoreTable
from .waiting_lanes import WaitingLane, in_order


class PublishedSpace:
    """Orders calls by score, reserves blocks for critical agent types, and admits calls with room for their answers.

    In a plan: facts to the `listeners`, then `begin`, the questions about scores, and `admission`.
    """

    listens_to: ClassVar[frozenset[type]] = SPACE_FACTS

    def __init__(self, options: Options) -> None:
        self._options = options
        self._state = QueueState(options)
        self.listeners: Sequence[Listener] = (self._state,)
        self._now_s = 0.0
        self._step = 0
        self._uncommitted_blocks = 0
        self._scores = ScoreTable(0.0, self._state.branches)
        self._looked_up: dict[CallId, CallRecord] = {}  # in this plan

    def begin(self, view: View) -> None:
        """All facts are taken in: what follows is about this moment."""
        self._now_s, self._step = view.now_s, view.step
        self._scores = ScoreTable(view.now_s, self._state.branches)
        self._state.begin(view.now_s, view.step)
        self._uncommitted_blocks = view.free_blocks - (view.growth_blocks if self._options.commit else 0)

    def importance(self, request: Request) -> float:
        """What a save of this call's context is weighed with: its own importance, or its type's (at most 10)."""
        kind = self._state.types[request.agent_type]
        return max(request.hints.importance, min(10.0, kind.score(self._now_s, self._step) / 2))

    def agent_score(self, request: Request) -> float:
        """Score that the agent's next call would have if it arrived now, judged by its last one, which has finished."""
        last = self._state.last[request.app][request.agent]
        return last.drift.points(self._now_s - last.started_s, 0.0)

    def agent_line(self, request: Request) -> Line:
        last = self._state.last[request.app][request.agent]
        return last.drift.line(last.started_s, None, self._now_s)

    def heeds_start(self, call: CallView, view: View) -> bool:
        return True

    # -- admit

    def admission(self, view: View, needs: Needs) -> Admission:
        """Loading calls, then those that start now, in order. A call that is not named is held back.

        Claims, highest score first, take their share of the room where their score stands in the order. While nothing
        waits and the temporal half is at rest, reserves are left as they are.
        """
        state = self._state
        if needs.at_rest and not state.waiting:
            return Admission((), 0, 0, preempt=self._victims(view))
        if self._options.reserve:
            state.partition.update(view.step, view.now_s, view.free_blocks, view.gpu_blocks, state.types.values())
        chosen = self._fitting(view, needs.claims) if state.waiting else []
        if not chosen and state.waiting and not state.running and not state.loading:
            chosen = self._first_to_start(view)
        self._update_lanes()
        fit = 0
        room = self._uncommitted_blocks
        for call in chosen:
            fit += call.need_blocks
        room -= fit
        for claim in needs.claims:
            room -= claim.granted_blocks or claim.grant(room)
        room = max(0, room)
        admit = (*state.loading, *(call.id for call in chosen))
        rival = self._rival(set(admit), room + needs.held_blocks, view) if needs.held_blocks else None
        return Admission(admit, fit, room, rival, self._victims(view))

    def _rival(self, admit: set[CallId], reach_blocks: int, view: View) -> Rival | None:
        """The highest-scored waiting call that was not admitted, but might have been if uploads held no room."""
        best: CallRecord | None = None
        for lane in self._state.lanes.upto(reach_blocks):
            first = next((call for call in lane.upto(reach_blocks) if call.id not in admit), None)
            if first is not None and (best is None or self._by_own_score(first) > self._by_own_score(best)):
                best = first
        if best is None:
            return None
        need_blocks = self._look_up(best, view)
        self._update_lanes()
        return Rival(self._scores.own(best), need_blocks)

    def _by_own_score(self, call: CallRecord) -> tuple[float, int]:
        return (self._scores.own(call), -call.number)

    def _fitting(self, view: View, claims: Sequence[Claim]) -> list[CallRecord]:
        """Calls that fit, in the order in which they should start, each with what it will be charged."""
        skip, queue = self._options.skip, self._state.lanes
        places = view.max_running - len(view.running)
        if places <= 0:
            return []
        most = self._uncommitted_blocks if skip else inf
        lanes = queue.upto(self._uncommitted_blocks) if skip else queue.all()
        if skip:
            lanes = [lane for lane in lanes if self._may_return(lane.first)]
        if not lanes:
            return []
        room = self._room()
        chosen = []
        refused = []
        left = list(reversed(claims))
        in_vain = 0  # calls that were looked up and do not start
        rank = self._scores.rank

        def reach_blocks() -> float:
            """No call beyond this can start; none is left out if one may block the rest."""
            return room.uncommitted_blocks if skip else inf

        def reach_between_claims() -> float:
            """As far as it matters which claims come before a call, where calls do not come by score."""
            return most if left else reach_blocks()

        for call in self._ordered(lanes, reach_blocks, reach_between_claims, view):
            while left and left[-1].score > rank(call):
                room.grant(left.pop())
            if call.need_blocks <= room.uncommitted_blocks:
                fits = self._look_up(call, view) <= room.uncommitted_blocks
                charge = self._draw(call, room) if fits else None
                if charge is not None:
                    call.charge = charge
                    chosen.append(call)
                    if len(chosen) >= places:
                        return chosen
                    continue
                in_vain += 1
                if fits and skip:
                    refused.append(call)
            if not skip or in_vain == LOOK_AHEAD_CALLS:
                break
        if self._options.lend and refused:
            if left:  # of those that were not looked at, some come after a claim
                lowest = min([rank(last) for lane in lanes if (last := lane.last(most)) is not None])
                while left and left[-1].score > lowest:
                    room.grant(left.pop())
            for call in refused[: places - len(chosen)]:
                charge = room.lend(call.need_blocks)
                if charge is not None:
                    call.charge = charge
                    chosen.append(call)
        return chosen

    def _room(self) -> Room:
        if self._options.reserve:
            return self._state.partition.room(self._uncommitted_blocks)
        return Room(self._uncommitted_blocks, max(0, self._uncommitted_blocks), {})

    def _draw(self, call: CallRecord, room: Room) -> Charge | None:
        """Take from the shared part, its type's reserve, then idle reserves of types with no call as urgent waiting."""
        need = call.need_blocks
        idle = room.idle_blocks
        own = call.type.name
        reserves = [own] if own in idle else []
        blocks = room.shared_blocks + idle.get(own, 0)
        if need > blocks:
            if need > room.shared_blocks + sum(idle.values()):
                return None
            for name in reversed(idle):
                if idle[name] and name != own and self._may_borrow(call, self._state.types[name]):
                    reserves.append(name)
                    blocks += idle[name]
                    if need <= blocks:
                        break
        return room.draw(need, reserves)

    def _may_borrow(self, call: CallRecord, owner: AgentType) -> bool:
        scores = self._scores
        least = scores.rank(call) - self._options.borrow_points
        return not owner.waiting or scores.best(owner, self._state.waiting_of_type[owner].values(), least) <= least

    def _look_up(self, call: CallRecord, view: View) -> int:
        """How many free blocks the call needs, by what is cached of its prompt: looked up once a plan."""
        if call.id not in self._looked_up:
            hits = view.hits(call.id)
            call.shared_blocks = hits.gpu_blocks - hits.idle_blocks
            call.need_blocks = call.total_blocks - call.shared_blocks
            self._looked_up[call.id] = call
        return call.need_blocks

    def _update_lanes(self) -> None:
        """Put the calls that were looked up into their lanes. Not while a plan goes through the lanes."""
        for call in self._looked_up.values():
            self._state.update_lane(call)
        self._looked_up.clear()

    def _may_return(self, call: CallRecord) -> bool:
        """A preempted call waits until there is more room than then, or another call has finished."""
        if call.preempted_when is None:
            return True
        finished_calls, uncommitted = call.preempted_when
        return self._state.finished_calls > finished_calls or self._uncommitted_blocks > uncommitted

    def _first_to_start(self, view: View) -> list[CallRecord]:
        """The first call whose prompt fits, where nothing runs and no call fits with its whole budget.

        If no prompt fits, all calls: the engine starts what it can.
        """
        calls: list[CallRecord] = []
        for call in self._ordered(self._state.lanes.all(), _everywhere, _everywhere, view):
            calls.append(call)
            need = self._look_up(call, view)
            call.charge = ((None, need),)
            beyond_prompt = call.total_blocks - self._state.prompt_blocks(call, view.block_tokens)
            if need - beyond_prompt <= view.free_blocks:
                return [call]
        return calls

    # -- order

    def _ordered(
        self,
        lanes: list[WaitingLane[CallRecord]],
        reach_blocks: Callable[[], float],
        reach_between_claims: Callable[[], float],
        view: View,
    ) -> Iterator[CallRecord]:
        """The lanes' calls, first to start first."""
        if not self._options.order:
            return in_order(lanes, _arrival, reach_between_claims)
        calls = in_order(lanes, self._sort_key, reach_blocks)
        scarce = self._uncommitted_blocks < self._options.affinity_free_share * view.gpu_blocks
        if scarce and self._options.prefix_affinity:
            half = in_order(lanes, self._sort_key, reach_between_claims, half=True)
            return self._by_affinity(self._sharing(half, view), calls)
        return calls

    def _sort_key(self, call: CallRecord) -> tuple[float, float, float, int]:
        own = self._scores.own(call)
        rank = own if call.group is None else self._scores.rank(call)
        return (-rank, -own, call.arrived_s, call.number)

    def _by_affinity(self, sharing: Iterator[CallRecord], calls: Iterator[CallRecord]) -> Iterator[CallRecord]:
        """A call whose prefix running calls hold goes before a call whose score is up to `affinity_points` higher.

        Both are in the same order, and `sharing` are some of `calls`.
        """
        rank, points = self._scores.rank, self._options.affinity_points
        ahead: set[CallId] = set()
        following = next(sharing, None)
        for call in calls:
            if call.id in ahead:
                continue
            while following is not None and (following is call or rank(following) >= rank(call) - points):
                ahead.add(following.id)
                yield following
                following = next(sharing, None)
            if call.id not in ahead:
                yield call
        while following is not None:
            yield following
            following = next(sharing, None)

    def _sharing(self, calls: Iterator[CallRecord], view: View) -> Iterator[CallRecord]:
        """Of the first of these calls, those whose prefixes running calls hold."""
        for call in islice(calls, LOOK_AHEAD_CALLS):
            if self._shares_prefix(call, view):
                yield call

    def _shares_prefix(self, call: CallRecord, view: View) -> bool:
        """Whether running calls hold at least as many of the call's blocks as it needs anew."""
        need = self._look_up(call, view)
        return call.shared_blocks >= need and view.shared_blocks(call.id) >= need

    # -- preempt

    def _victims(self, view: View) -> tuple[CallId, ...]:
        """Running calls, first victim first; () while all of them can grow to their budgets.

        Calls within `preempt_points` of the lowest score come first. Of these, calls that free what is missing alone;
        then those that are not near their end; then those that cost the least recomputation for a block; then those
        that came last. A call is taken to have generated one token a step since its first.
        """
        missing = view.growth_blocks - view.free_blocks
        if missing <= 0 or not self._options.preempt:
            return ()
        scores = {call.id: self._scores.own(call) for call in self._state.running.values()}
        most = min(scores.values(), default=0.0) + self._options.preempt_points

        def rank(call: CallRecord) -> tuple[bool, float, bool, float, int]:
            if scores[call.id] > most:
                return (True, scores[call.id], False, 0.0, -call.number)
            steps = 0 if call.first_token_step is None else view.step - call.first_token_step
            generated = min(call.request.max_output_tokens, call.generated_tokens + steps)
            tokens = call.request.prompt_tokens + generated
            freed = max(1, tokens // view.block_tokens - call.shared_blocks)
            done = generated >= self._options.preempt_done_share * call.request.max_output_tokens
            return (False, float(freed < missing), done, tokens / freed, -call.number)

        return tuple(call.id for call in sorted(self._state.running.values(), key=rank))


def _everywhere() -> float:
    return inf


def _arrival(call: CallRecord) -> tuple[float, int]:
    return (call.arrived_s, call.number)
