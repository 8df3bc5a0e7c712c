"""The default spatial half: old applications, small calls and siblings of running calls first.

It takes the place of the published score, reserves and commitment (`published/`); docs/study.md compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from math import inf
from typing import ClassVar, NamedTuple

from ...traces import events as e
from ...traces.apps import AppId, CallId
from ...traces.events import Request
from ..interface import CallView, Hits, View
from ..parts.admission import LOOK_AHEAD_CALLS, Admission, Claim, Rival, needed_blocks
from ..parts.dispatch import Handler, Listener
from .halves import SPACE_FACTS, Needs
from .known_agents import KnownAgents
from .miss_share import MissShare
from .options import Options
from .published.score import Line
from .seniority_queue import SeniorityQueue, WaitingCall

USUAL_WEIGHT = 0.1  # of the newest call in what is usual for its agent type


class LiveCall:
    """A call that arrived and has not ended."""

    __slots__ = ("app", "place", "runs")

    def __init__(self, app: AppId, place: WaitingCall) -> None:
        self.app = app
        self.place = place
        self.runs = False


class Blocked(NamedTuple):
    """The waiting call that comes next and did not fit."""

    app: AppId
    missing_blocks: int


class Seniority:
    """Which calls start next. In a plan: `handlers` for each fact, `begin`, `admission`, then the questions.

    Waiting calls are ordered by the weight `size · (1 + rank)^age_power`, the smallest first. `rank` is the number of
    live applications that started before the call's own; `size` is the call's prompt and budget as a multiple of what
    is usual for its agent type.

    Cached calls go first. A call is ahead of all others if running calls hold at least half of its blocks. While
    contexts get lost (`MissShare`), calls follow of which the GPU caches at least half, and then those of which GPU and
    host together do, before it is overwritten.

    Admission stops at the first call whose prompt does not fit, as in vLLM.

    A plan costs as much with ten thousand waiting calls as with a thousand: of the calls by weight, only the first 128,
    and the first 128 whose applications have a running call, are looked up in the cache before their turn has come, and
    no plan names more calls than the engine has places for.
    """

    listens_to: ClassVar[frozenset[type]] = SPACE_FACTS

    def __init__(self, options: Options, miss_share: MissShare, agents: KnownAgents) -> None:
        self._options = options
        self._miss_share = miss_share
        self._queue = SeniorityQueue(options.age_power)
        self._calls: dict[CallId, LiveCall] = {}
        self._numbers = count()  # of calls, as they arrive
        self._usual_blocks: dict[str, float] = {}  # of a call, by agent type
        self._agents = agents
        self._hits: dict[CallId, Hits] = {}  # looked up in this plan
        self._head: tuple[CallView, int] | None = None  # the first call that did not fit, and what it needs
        self.listeners: Sequence[Listener] = (miss_share, self)
        self.handlers: Mapping[type, Handler] = {
            e.AppStarted: self._app_started,
            e.AppFinished: self._app_finished,
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.LoadStarted: self._load_started,
            e.CallPreempted: self._preempted,
            e.CallFinished: self._ended,
            e.CallAborted: self._ended,
        }

    def heeds_start(self, call: CallView, view: View) -> bool:
        hits = self._look_up(call, view)
        return self._miss_share.learns(call.request.id, (hits.gpu_blocks + hits.host_blocks) * view.block_tokens)

    def begin(self, view: View) -> None:
        """All facts are taken in: what follows is about this moment."""
        self._hits.clear()
        self._head = None

    def importance(self, request: Request) -> float:
        """The application's own word."""
        return request.hints.importance

    def agent_score(self, request: Request) -> float:
        """Where the agent's next call would stand if it were like its last one; higher goes first."""
        return -self._weight(request.app, self._agents.of(request.app, request.agent).size)

    def agent_line(self, request: Request) -> Line:
        return Line(self.agent_score(request), 0.0, -inf)  # each application that ends changes it

    # -- admit

    def admission(self, view: View, needs: Needs) -> Admission:
        """Loading calls, then those that start now, in order. A call that is not named is held back.

        Claims, highest score first, take their share of the room where their score stands in the order. No victims are
        named: the call that was admitted last gives way, as in vLLM.
        """
        loading = sorted(view.loading, key=lambda name: view.loading[name].place)
        room = view.free_blocks - (view.growth_blocks if self._options.commit else 0)
        chosen: list[CallId] = []
        fit = 0
        places = view.max_running - len(view.running)
        startable = room > 0 and places > 0  # a prompt's last block is never cached
        if len(loading) < len(view.waiting) and (startable or needs.claims):
            chosen, fit, room = self._chosen(view, room, places, list(reversed(needs.claims)))
        for claim in needs.claims:
            room -= claim.granted_blocks or claim.grant(room)
        if not (chosen or loading or view.running):
            chosen = list(view.waiting)  # the engine starts the first that fits
        admit = (*loading, *chosen)
        rival = self._rival(admit, view) if needs.held_blocks else None
        return Admission(admit, fit, max(0, room - (0 if self._options.commit else view.growth_blocks)), rival)

    def _rival(self, admit: tuple[CallId, ...], view: View) -> Rival | None:
        """The call that did not fit, and might have if uploads held no room."""
        if self._head is None:
            first = next(self._ordered(view), None)
            if first is None or first.request.id in admit:
                return None
            self._head = (first, self._need(first, view))
        call, need = self._head
        return Rival(-self._weight(call.request.app, self._size(call)), need)

    def blocked(self, admission: Admission) -> Blocked | None:
        """The call that comes next and did not fit, after `admission`."""
        if self._head is None:
            return None
        call, need = self._head
        return Blocked(call.request.app, need - admission.room_blocks)

    def rank(self, app: AppId) -> int:
        """How many live applications started before this one."""
        return self._queue.rank(app)

    def _chosen(self, view: View, room: int, places: int, claims: list[Claim]) -> tuple[list[CallId], int, int]:
        """Calls that start, the blocks that they take, and those that are left. `claims`: the highest last."""
        chosen: list[CallId] = []
        fit = 0
        for call in self._ordered(view):
            if len(chosen) >= places:
                break
            request = call.request
            while claims and -claims[-1].score < self._weight(request.app, self._size(call)):
                room -= claims.pop().grant(room)
            need = self._need(call, view)
            if need <= room:
                room -= need
                fit += need
                chosen.append(request.id)
                continue
            if self._head is None:
                self._head = (call, need)
            if not self._options.skip:
                break
        return chosen, fit, room

    def _look_up(self, call: CallView, view: View) -> Hits:
        """How much of a call's prompt is cached: looked up once a plan."""
        name = call.request.id
        hits = self._hits.get(name)
        if hits is None:
            hits = self._hits[name] = view.hits(name)
        return hits

    def _need(self, call: CallView, view: View) -> int:
        """How many free blocks the call takes if it starts."""
        tokens = call.request.prompt_tokens
        tokens += call.request.max_output_tokens if self._options.commit else call.generated_tokens
        return needed_blocks(tokens, self._look_up(call, view), view.block_tokens)

    # -- order

    def _ordered(self, view: View) -> Iterator[CallView]:
        """Waiting calls without blocks, in the order in which they should start: found one after another."""
        waiting = view.waiting
        ahead: set[CallId] = set()
        related: list[CallId] = []  # that are not ahead
        if self._options.prefix_affinity:
            for _, name in islice(self._queue.related(), LOOK_AHEAD_CALLS):
                if self._is_held(waiting[name], view):
                    ahead.add(name)
                    yield waiting[name]
                else:
                    related.append(name)
        queue = iter(self._queue)
        first: list[CallId] = []
        if self._miss_share.share > self._options.lost_share:
            first = [name for _, name in islice(queue, LOOK_AHEAD_CALLS)]
            names = dict.fromkeys((*first, *related))  # by weight: the related ones are among the first, or follow
            for name in self._cached([name for name in names if name not in ahead], view):
                ahead.add(name)
                yield waiting[name]
        for name in first:
            if name not in ahead:
                yield waiting[name]
        for _, name in queue:
            if name not in ahead:
                yield waiting[name]

    def _is_held(self, call: CallView, view: View) -> bool:
        """Whether running calls hold at least half of the call's blocks: only ones of its application can."""
        hits = self._look_up(call, view)
        return hits.gpu_blocks - hits.idle_blocks >= _half(call, view)

    def _cached(self, names: Iterable[CallId], view: View) -> Iterator[CallId]:
        """Of these calls, those of which the GPU has at least half; then those of which GPU and host have."""
        on_host = []
        for name in names:
            call = view.waiting[name]
            half = _half(call, view)
            hits = self._look_up(call, view)
            if hits.gpu_blocks >= half:
                yield name
            elif hits.gpu_blocks + hits.host_blocks >= half:
                on_host.append(name)
        yield from on_host

    def _weight(self, app: AppId, size: float) -> float:
        return self._queue.weight(self.rank(app), size)

    def _size(self, call: CallView) -> float:
        return self._calls[call.request.id].place.size

    # -- facts

    def _app_started(self, fact: e.AppStarted, view: View) -> None:
        self._queue.app_started(fact.app)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self._queue.app_finished(fact.app)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        blocks = (request.prompt_tokens + request.max_output_tokens) / view.block_tokens
        usual = self._usual_blocks.get(request.agent_type, blocks)
        size = self._agents.of(request.app, request.agent).size = blocks / usual
        call = self._calls[request.id] = LiveCall(request.app, WaitingCall(size, next(self._numbers), request.id))
        self._queue.put(request.app, call.place)
        self._usual_blocks[request.agent_type] = usual + USUAL_WEIGHT * (blocks - usual)

    def _load_started(self, fact: e.LoadStarted, view: View) -> None:
        call = self._calls[fact.call]
        self._queue.remove(call.app, call.place)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        call = self._calls[fact.call]
        self._queue.remove(call.app, call.place)
        self._queue.runs(call.app)
        call.runs = True

    def _preempted(self, fact: e.CallPreempted, view: View) -> None:
        call = self._calls[fact.call]
        self._stop(call)
        self._queue.put(call.app, call.place)

    def _ended(self, fact: e.CallFinished | e.CallAborted, view: View) -> None:
        """It ran, or waited: its last token may come after a preemption."""
        call = self._calls.pop(fact.call)
        if call.runs:
            self._stop(call)
        else:
            self._queue.remove(call.app, call.place)

    def _stop(self, call: LiveCall) -> None:
        call.runs = False
        self._queue.runs_no_more(call.app)


def _half(call: CallView, view: View) -> float:
    """Of the blocks that a call takes up to its declared budget."""
    request = call.request
    return (request.prompt_tokens + request.max_output_tokens) / view.block_tokens / 2
