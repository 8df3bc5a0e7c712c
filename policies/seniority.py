"""The spatial half that measurements brought: old applications first, small calls first, siblings of what runs first.

It replaces the published score, reserves and commitment (`spatial`); docs/study.md holds both against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapify, heappop
from typing import Any

from ..traces import events as e
from ..traces.apps import AgentId, AppId, CallId
from ..traces.events import Request
from .admission import Admission, Claim, Rival, needed_blocks
from .interface import CallView, Hits, View
from .keeps import Blocked
from .losses import Losses
from .rules import Rules

USUAL_WEIGHT = 0.1  # of the newest call in what is usual for its agent type

HELD, ON_GPU, ON_HOST, FREE = range(4)  # where half of a call's demand is
Place = tuple[int, float, int]  # smallest first: tier, weight, number


class Seniority:
    """Who starts next. First `handlers` for each fact, then `begin`, `admission`, and the questions.

    A waiting call's place is `size · (1 + rank)^age_power`, the smallest first: `rank` is the number of live
    applications that started before its own, `size` its prompt and budget as a multiple of what is usual for its agent
    type. Calls at least half of whose demand running calls hold already go before all others; and while contexts get
    lost (`Losses`), those follow of whose demand at least half is cached on the GPU, then those with the host's part,
    before it is overwritten. The first call whose prompt does not fit waits, and all behind it, as in vLLM.
    """

    def __init__(self, rules: Rules, losses: Losses) -> None:
        self._rules = rules
        self._losses = losses
        self._applications: dict[AppId, None] = {}  # live ones, as they started
        self._rank: dict[AppId, int] = {}
        self._ranked = True  # whether the ranks are up to date
        self._usual_blocks: dict[str, float] = {}  # of a call, by agent type
        self._size: dict[CallId, float] = {}  # of live calls
        self._of_agent: dict[AgentId, float] = {}  # size of its latest call
        self._agents_of: dict[AppId, list[AgentId]] = {}
        self._hits: dict[CallId, Hits] = {}  # looked up in this plan
        self._head: tuple[CallView, int] | None = None  # who did not fit, and what it needs
        self.handlers: Mapping[type, Callable[[Any, View], None]] = {
            e.AppStarted: self._app_started,
            e.AppFinished: self._app_finished,
            e.CallArrived: self._arrived,
            e.CallFinished: self._ended,
            e.CallAborted: self._ended,
        }

    def begin(self, view: View) -> None:
        """The news is taken in: what follows is about this moment."""
        if not self._ranked:
            self._ranked = True
            self._rank = {app: at for at, app in enumerate(self._applications)}
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
        loading = [name for name, call in view.waiting.items() if call.loading]
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
        return Rival(-self._weight(call.request.app, self._size[call.request.id]), need)

    def blocked(self, admission: Admission) -> Blocked | None:
        """The call that comes next and did not fit, after `admission`."""
        if self._head is None:
            return None
        call, need = self._head
        return Blocked(call.request.app, need - admission.room_blocks)

    def rank(self, app: AppId) -> int:
        """How many live applications started before this one."""
        return self._rank.get(app, 0)

    def _chosen(self, view: View, room: int, claims: list[Claim]) -> tuple[list[CallId], int, int]:
        """Calls that start, the blocks that they take, and those that are left. `claims`: the highest last."""
        chosen: list[CallId] = []
        fit = 0
        for call in self._ordered(view):
            request = call.request
            while claims and -claims[-1].score < self._weight(request.app, self._size[request.id]):
                room -= claims.pop().grant(room)
            need = self._need(call, view)
            if need <= room:
                room -= need
                fit += need
                chosen.append(request.id)
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
        running = {call.request.app for call in view.running.values()}
        calls = [(*self._place(call, running, view), call) for call in view.waiting.values() if not call.loading]
        heapify(calls)
        while calls:
            yield heappop(calls)[-1]

    def _place(self, call: CallView, running: set[AppId], view: View) -> Place:
        request = call.request
        return self._tier(call, running, view), self._weight(request.app, self._size[request.id]), call.number

    def _tier(self, call: CallView, running: set[AppId], view: View) -> int:
        """0: running calls hold half of it; then, while contexts get lost, what the GPU has, what the host has too."""
        request = call.request
        scarce = self._losses.share > self._rules.lost_share
        related = request.app in running and self._rules.prefix_affinity  # only they can hold much of its prompt
        if not (related or scarce):
            return FREE
        half = (request.prompt_tokens + request.max_output_tokens) / view.block_tokens / 2
        hits = self._look(call, view)
        if related and hits.gpu_blocks - hits.idle_blocks >= half:
            return HELD
        if not scarce or hits.gpu_blocks + hits.host_blocks < half:
            return FREE
        return ON_GPU if hits.gpu_blocks >= half else ON_HOST

    def _weight(self, app: AppId, size: float) -> float:
        weight: float = size * (1 + self.rank(app)) ** self._rules.age_power
        return weight

    # -- facts

    def _app_started(self, fact: e.AppStarted, view: View) -> None:
        self._applications[fact.app] = None
        self._ranked = False

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self._applications.pop(fact.app, None)
        self._ranked = False
        for agent in self._agents_of.pop(fact.app, ()):
            self._of_agent.pop(agent, None)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        blocks = (request.prompt_tokens + request.max_output_tokens) / view.block_tokens
        usual = self._usual_blocks.get(request.agent_type, blocks)
        if request.agent not in self._of_agent:
            self._agents_of.setdefault(request.app, []).append(request.agent)
        self._size[request.id] = self._of_agent[request.agent] = blocks / usual
        self._usual_blocks[request.agent_type] = usual + USUAL_WEIGHT * (blocks - usual)

    def _ended(self, fact: e.CallFinished | e.CallAborted, view: View) -> None:
        self._size.pop(fact.call, None)
