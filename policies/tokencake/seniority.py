"""The spatial half that measurements brought: old applications first, small calls first, siblings of what runs first.

It replaces the published score, reserves and commitment (`spatial`); docs/study.md holds both against each other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import chain, count, islice
from typing import Any, NamedTuple

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.events import Request
from ..interface import CallView, Hits, View
from ..parts.admission import LOOK_AHEAD_CALLS, Admission, Claim, Rival, needed_blocks
from .losses import Losses
from .options import Options
from .pins import Blocked

MOST_STARTS = 1024  # calls of a plan: what vLLM runs at once by default, so more cannot start before one of them ends
USUAL_WEIGHT = 0.1  # of the newest call in what is usual for its agent type

HELD, ON_GPU, ON_HOST, FREE = range(4)  # where half of a call's demand is
Place = tuple[int, float, int]  # smallest first: tier, weight, number


class Waiting(NamedTuple):
    """A call that waits and has no blocks yet. Of one application the smallest goes first, then the first that came."""

    size: float
    number: int
    call: CallId


class Queue:
    """Waiting calls by application, in order of weight, found one after another: as far as somebody asks.

    All calls of an application have its rank, and the ranks of all fall when an old one ends. So what is kept is their
    order within applications, and that of the applications.
    """

    def __init__(self, age_power: float) -> None:
        self._age_power = age_power
        self._numbers: dict[AppId, int] = {}  # of live applications, as they started
        self._live: list[int] = []
        self._waiting: dict[int, list[Waiting]] = {}  # by the application's number
        self._with_calls: list[int] = []  # the numbers of those that have waiting calls
        self._sizes: list[float] = []  # of all waiting calls
        self._started = count()

    def app_started(self, app: AppId) -> None:
        if app not in self._numbers:
            number = self._numbers[app] = next(self._started)
            self._live.append(number)

    def app_finished(self, app: AppId) -> None:
        number = self._numbers.pop(app, None)
        if number is not None:
            del self._live[bisect_left(self._live, number)]
            for waiting in tuple(self._waiting.get(number, ())):
                self._take_out(number, waiting)

    def put(self, app: AppId, waiting: Waiting) -> None:
        """A call waits. One of an application that is not live has no place here."""
        number = self._numbers.get(app)
        if number is None:
            return
        if number not in self._waiting:
            self._waiting[number] = []
            insort(self._with_calls, number)
        insort(self._waiting[number], waiting)
        insort(self._sizes, waiting.size)

    def remove(self, app: AppId, waiting: Waiting) -> None:
        """It waits no longer, or has blocks. Nothing if it is not there."""
        number = self._numbers.get(app)
        if number is not None and waiting in self.of(app):
            self._take_out(number, waiting)

    def of(self, app: AppId) -> Sequence[Waiting]:
        """The waiting calls of an application."""
        return self._waiting.get(self._numbers.get(app, -1), ())

    def rank(self, app: AppId) -> int:
        """How many live applications started before this one; 0 if it is not live."""
        number = self._numbers.get(app)
        return 0 if number is None else bisect_left(self._live, number)

    def weight(self, rank: int, size: float) -> float:
        """What calls are ordered by, the smallest first."""
        weight: float = size * (1 + rank) ** self._age_power
        return weight

    def __iter__(self) -> Iterator[tuple[float, CallId]]:
        """Weights and calls, the smallest first, then the first that came."""
        heads: list[tuple[float, int, int, int, CallId]] = []  # weight, call's number; application's, and place there
        coming = iter(self._with_calls)
        number = next(coming, None)
        while True:
            while number is not None:
                rank = bisect_left(self._live, number)
                if heads and self.weight(rank, self._sizes[0]) > heads[0][0]:
                    break  # nothing of it, or of those that started later, can be smaller
                first = self._waiting[number][0]
                heappush(heads, (self.weight(rank, first.size), first.number, number, 0, first.call))
                number = next(coming, None)
            if not heads:
                return
            weight, _, of, at, call = heads[0]
            yield weight, call
            calls, at = self._waiting[of], at + 1
            if at == len(calls):
                heappop(heads)
                continue
            following = calls[at]
            own = self.weight(bisect_left(self._live, of), following.size)
            heapreplace(heads, (own, following.number, of, at, following.call))

    def _take_out(self, number: int, waiting: Waiting) -> None:
        calls = self._waiting[number]
        del calls[bisect_left(calls, waiting)]
        del self._sizes[bisect_left(self._sizes, waiting.size)]
        if not calls:
            del self._waiting[number]
            del self._with_calls[bisect_left(self._with_calls, number)]


class Seniority:
    """Who starts next. First `handlers` for each fact, then `begin`, `admission`, and the questions.

    A waiting call's place is `size · (1 + rank)^age_power`, the smallest first: `rank` is the number of live
    applications that started before its own, `size` its prompt and budget as a multiple of what is usual for its agent
    type. Calls at least half of whose demand running calls hold already go before all others; and while contexts get
    lost (`Losses`), those follow of whose demand at least half is cached on the GPU, then those with the host's part,
    before it is overwritten. The first call whose prompt does not fit waits, and all behind it, as in vLLM. What is
    cached of a call that stands behind 128 others by its place alone, while nothing of its application runs, is not
    looked for, and no plan names more than 1,024 calls: it costs as much with ten thousand waiting as with a thousand.
    """

    def __init__(self, rules: Options, losses: Losses) -> None:
        self._rules = rules
        self._losses = losses
        self._queue = Queue(rules.age_power)
        self._calls: dict[CallId, tuple[AppId, Waiting]] = {}  # live ones
        self._numbers = count()  # of calls, as they arrive
        self._usual_blocks: dict[str, float] = {}  # of a call, by agent type
        self._of_agent: dict[AgentId, float] = {}  # size of its latest call
        self._agents_of: dict[AppId, list[AgentId]] = {}
        self._hits: dict[CallId, Hits] = {}  # looked up in this plan
        self._head: tuple[CallView, int] | None = None  # who did not fit, and what it needs
        self.handlers: Mapping[type, Callable[[Any, View], None]] = {
            e.AppStarted: self._app_started,
            e.AppFinished: self._app_finished,
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._waits_no_more,
            e.LoadStarted: self._waits_no_more,
            e.CallPreempted: self._waits_again,
            e.CallFinished: self._ended,
            e.CallAborted: self._ended,
        }

    def begin(self, view: View) -> None:
        """The news is taken in: what follows is about this moment."""
        self._hits.clear()
        self._head = None

    def importance(self, request: Request, view: View) -> float:
        """What an offload of this call's agent is weighed with, if it is weighed."""
        return request.hints.importance

    def agent_score(self, request: Request, view: View) -> float:
        """Where the agent's next call would stand if it were like its last one; higher goes first."""
        return -self._weight(request.app, self._of_agent.get(request.agent, 1.0))

    def victims(self, view: View) -> tuple[CallId, ...]:
        """Whoever was admitted last gives way: the engine's own choice."""
        return ()

    # -- admit

    def admission(self, view: View, claims: Sequence[Claim] = ()) -> Admission:
        """Loading calls, then those that start now, in order. A call that is not named is held back.

        Claims, highest score first, take their share of the room where their score stands in the order.
        """
        loading = sorted(view.loading, key=lambda name: view.loading[name].place)
        room = view.free_blocks - (view.growth_blocks if self._rules.commit else 0)
        chosen: list[CallId] = []
        fit = 0
        if len(loading) < len(view.waiting) and (room > 0 or claims):  # a prompt's last block is never cached
            chosen, fit, room = self._chosen(view, room, list(reversed(claims)))
        for claim in claims:
            room -= claim.granted_blocks or claim.grant(room)
        if not (chosen or loading or view.running):
            chosen = list(view.waiting)  # the engine starts the first that fits
        return Admission((*loading, *chosen), fit, max(0, room - (0 if self._rules.commit else view.growth_blocks)))

    def rival(self, admission: Admission, held_blocks: int, view: View) -> Rival | None:
        """The call that did not fit, and might have if uploads held no room."""
        if self._head is None:
            first = next(self._ordered(view), None)
            if first is None or first.request.id in (admission.admit or ()):
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

    def _chosen(self, view: View, room: int, claims: list[Claim]) -> tuple[list[CallId], int, int]:
        """Calls that start, the blocks that they take, and those that are left. `claims`: the highest last."""
        chosen: list[CallId] = []
        fit = 0
        for call in self._ordered(view):
            request = call.request
            while claims and -claims[-1].score < self._weight(request.app, self._size(call)):
                room -= claims.pop().grant(room)
            need = self._need(call, view)
            if need <= room:
                room -= need
                fit += need
                chosen.append(request.id)
                if len(chosen) == MOST_STARTS:
                    break
                continue
            if self._head is None:
                self._head = (call, need)
            if not self._rules.skip:
                break
        return chosen, fit, room

    def _look(self, call: CallView, view: View) -> Hits:
        """What is cached of a call's prompt. Asked once a plan."""
        name = call.request.id
        hits = self._hits.get(name)
        if hits is None:
            hits = self._hits[name] = view.hits(name)
        return hits

    def _need(self, call: CallView, view: View) -> int:
        """Blocks that are free now and that the call takes if it starts."""
        tokens = call.request.prompt_tokens
        tokens += call.request.max_output_tokens if self._rules.commit else call.generated_tokens
        return needed_blocks(tokens, self._look(call, view), view.block_tokens)

    # -- order

    def _ordered(self, view: View) -> Iterator[CallView]:
        """Waiting calls that have no blocks yet, first to start first."""
        apps = (call.request.app for call in view.running.values()) if self._rules.prefix_affinity else ()
        running = dict.fromkeys(apps)  # in a fixed order: so are the questions about their calls
        scarce = self._losses.share > self._rules.lost_share
        queue = iter(self._queue)
        looked_at = [*islice(queue, LOOK_AHEAD_CALLS)] if scarce else []
        related = (waiting.call for app in running for waiting in self._queue.of(app))
        ahead: dict[CallId, Place] = {}
        for name in chain(related, (name for _, name in looked_at)):
            call = view.waiting[name]
            if name not in ahead and (tier := self._tier(call, running, scarce, view)) != FREE:
                ahead[name] = (tier, self._weight(call.request.app, self._size(call)), call.number)
        for name in sorted(ahead, key=lambda name: ahead[name]):
            yield view.waiting[name]
        for _, name in chain(looked_at, queue):
            if name not in ahead:
                yield view.waiting[name]

    def _tier(self, call: CallView, running: Container[AppId], scarce: bool, view: View) -> int:
        """0: running calls hold half of it; then, while contexts get lost, what the GPU has, what the host has too."""
        request = call.request
        related = request.app in running  # only they can hold much of its prompt
        half = (request.prompt_tokens + request.max_output_tokens) / view.block_tokens / 2
        hits = self._look(call, view)
        if related and hits.gpu_blocks - hits.idle_blocks >= half:
            return HELD
        if not scarce or hits.gpu_blocks + hits.host_blocks < half:
            return FREE
        return ON_GPU if hits.gpu_blocks >= half else ON_HOST

    def _weight(self, app: AppId, size: float) -> float:
        return self._queue.weight(self.rank(app), size)

    def _size(self, call: CallView) -> float:
        return self._calls[call.request.id][1].size

    # -- facts

    def _app_started(self, fact: e.AppStarted, view: View) -> None:
        self._queue.app_started(fact.app)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self._queue.app_finished(fact.app)
        for agent in self._agents_of.pop(fact.app, ()):
            self._of_agent.pop(agent, None)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        blocks = (request.prompt_tokens + request.max_output_tokens) / view.block_tokens
        usual = self._usual_blocks.get(request.agent_type, blocks)
        if request.agent not in self._of_agent:
            self._agents_of.setdefault(request.app, []).append(request.agent)
        size = self._of_agent[request.agent] = blocks / usual
        waiting = Waiting(size, next(self._numbers), request.id)
        self._calls[request.id] = (request.app, waiting)
        self._queue.put(request.app, waiting)
        self._usual_blocks[request.agent_type] = usual + USUAL_WEIGHT * (blocks - usual)

    def _ended(self, fact: e.CallFinished | e.CallAborted, view: View) -> None:
        app, waiting = self._calls.pop(fact.call)
        self._queue.remove(app, waiting)

    def _waits_no_more(self, fact: e.CallAdmitted | e.LoadStarted, view: View) -> None:
        self._queue.remove(*self._calls[fact.call])

    def _waits_again(self, fact: e.CallPreempted, view: View) -> None:
        self._queue.put(*self._calls[fact.call])
