"""Between vLLM's scheduler and one policy: what happens becomes facts, and the policy's plan becomes what vLLM does.

The scheduler (`live.scheduler`) and the connector (`live.connector`) tell what happens; everything here happens in the
engine's own thread, at the start and the end of a step. `begin` starts a run, `end` ends it: one engine can serve
several, each under another policy. Without a run, and for requests without metadata, vLLM does what it does by itself.
What a run leaves behind when it ends, requests that vLLM still serves and copies under way, belongs to no run: no later
one hears of it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, nextafter
from typing import Any, NamedTuple, TypeVar

from ... import __version__
from ...policies.boundary import told
from ...policies.controller import Controller, Sink
from ...policies.execution.carry_out import SOONEST_S, TimeUnit, carry_out, wake_time
from ...policies.execution.starvation import make_way, release_held, without_choices
from ...policies.interface import NATIVE, Extent, Hits, Plan, Policy
from ...policies.registry import load_policy
from ...policies.replay import began
from ...policies.run_settings import RunSettings
from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.errors import EngineError, PolicyError, PolicyFault
from ...traces.events import Fact
from ...traces.files.fields import WrongField
from ..copier.jobs import CopyJob
from .control.client_events import ClientEvent, event_from_record
from .control.metadata import from_extra_args
from .copies import Copies
from .gpu_pool import GpuPool, idle
from .host_pool import HostPool
from .occupancy import Occupancy
from .requests import AgentCache, EngineCall
from .steps import Sums, sums_of

logger = logging.getLogger(__name__)

SECONDS = TimeUnit(SOONEST_S, float)
MOST_AGENTS = 100_000  # with those of applications that nobody ended; beyond, the one longest unheard of ends


class _Flight(NamedTuple):
    """A step that computes something, until its outcome comes."""

    output: Any  # vLLM's, by which the step is known again
    run: int
    from_s: float
    sums: Sums | None
    given_s: float | None  # when the workers were given it; None: not asked for, or they had another one


class _EmptyStep(NamedTuple):
    """A step that computes nothing, until its outcome comes."""

    output: Any
    run: int
    from_s: float
    outcomes: int  # that anything came with, before it was scheduled


class LiveApp:
    """An application between its start and its end."""

    __slots__ = ("agents", "calls", "ending", "heard_s")

    def __init__(self, now_s: float) -> None:
        self.agents: list[AgentCache] = []
        self.calls = 0  # not finished
        self.ending = False  # it ends with its last call
        self.heard_s = now_s


class Adapter:
    """One engine's. `scheduler` is vLLM's, with our methods on it."""

    def __init__(self, scheduler: Any, block_tokens: int, host_slots: int, about: Mapping[str, object]) -> None:
        self._scheduler = scheduler
        self._size = block_tokens
        self._host_slots = host_slots
        self._about = dict(about)
        self._gpu = GpuPool(scheduler.kv_cache_manager.block_pool, block_tokens)
        self.settings: RunSettings | None = None  # of the run under way
        self.errors: list[str] = []
        self._clock = time.monotonic
        self.load_policy: Callable[..., Policy] = load_policy
        self._start_s, self._start_wall_s = self._clock(), time.time()
        self._acknowledged: dict[int, float | None] = {}  # by job, seconds that it took
        self._came_s = 0.0  # the latest outcome of a step
        self._flights: deque[_Flight] = deque()  # steps whose outcome has not come, whichever run they began in
        self._empty_steps: deque[_EmptyStep] = deque()  # the others, while steps are told of
        self._outcomes = 0  # that anything came with: tokens or the ends of copies
        self._runs = 0
        self.copies = self._empty_copies()
        self._reset()

    def _empty_copies(self) -> Copies:
        return Copies(self._gpu, HostPool(self._host_slots), _unheard)

    def _reset(self) -> None:
        self._now_s = 0.0  # of the latest boundary or outcome
        self._boundary_s = -1.0  # of the latest boundary; none yet
        self._wake_s: float | None = None
        self._news = False  # whether there is news that is worth a step: what a plan itself brings about is not
        self._idle = True  # whether nothing was scheduled last, and nothing is under way
        self._native_once = False
        self._stuck = 0
        self.steps = 0
        self._occupancy = Occupancy(self._gpu)
        self._swept_s = 0.0
        self.copies.refusing = False
        self._forget_run()

    def _forget_run(self) -> None:
        """Nothing is left of a run but what copies under way hold."""
        self.settings = None
        self._controller: Controller | None = None
        self._report: Callable[[Fact], None] = _unheard
        self.copies.report = _unheard
        self.plan: Plan = NATIVE
        self._wake_s = None
        self._apps: dict[AppId, LiveApp] = {}  # the one that was heard of last is the last
        self._agents: dict[AgentId, AgentCache] = {}
        self._calls: dict[CallId, EngineCall] = {}
        self._by_request: dict[str, EngineCall] = {}
        self._unseen: set[str] = set()  # requests that started, and whose first token has not come
        self._holding: dict[
            CallId, EngineCall
        ] = {}  # calls that got blocks; those that lost them hold 0 by vLLM's count
        self._prefilling: dict[
            str, EngineCall
        ] = {}  # by request, calls that started and had not computed their prompts
        self._ended: list[EngineCall] = []  # calls whose contexts are to be written through
        self._stalled: dict[AgentId, AgentCache] = {}
        self._matched: dict[str, int] = {}  # by request, blocks that it was just found to hit

    # -- runs

    def begin(
        self,
        settings: RunSettings,
        sinks: Sequence[Sink] = (),
        journal: Sink | None = None,
        *,
        policy: Policy | None = None,
        on_empty_cache: bool = True,
    ) -> None:
        """Start a run at time 0, on an empty cache, with a fresh policy: `policy`, or the one that `settings` name.

        Raises `PolicyError` for a policy that is not there, and `EngineError` while a run or a request is under way.
        A run that needs no empty cache begins whatever is under way: it knows nothing of requests that came before it.
        When anything is raised, no run is under way.
        """
        if self.settings is not None:
            raise EngineError("a run is under way: end it first")
        if policy is None:
            policy = self.load_policy(settings.policy, seed=settings.seed)
        if on_empty_cache:
            if not self.at_rest:
                raise EngineError("the engine has requests or copies under way: expected an idle one")
            if not self._scheduler.kv_cache_manager.reset_prefix_cache():
                raise EngineError("vLLM could not empty its prefix cache: some blocks are still held")
            self.copies = self._empty_copies()
        self._reset()
        self.errors = []
        self._runs += 1
        self._start_s, self._start_wall_s = self._clock(), time.time()
        try:
            if journal is not None:
                journal(began(settings.policy, settings.seed, settings.costs))
            self._listen(Controller(policy, settings.costs, self, sinks, journal))
            size = self._about["block_bytes"]
            assert isinstance(size, int)
            self._report(e.RunStarted(0.0, self._size, self._gpu.blocks, self._host_slots, size))
        except BaseException:
            self._forget_run()
            raise
        self.settings = settings
        self._news = False

    def _listen(self, controller: Controller) -> None:
        """From now on what happens is told to this controller, until its run ends."""

        def report(fact: Fact) -> None:
            if self._controller is controller:  # else: of a copy that outlived the run that began it
                controller.hear(fact)
                self._news = controller.due

        self._controller = controller
        self._report = self.copies.report = report

    def end(self, *, cut_off: bool = False) -> None:
        """Give up all that is held, and report what the blocks were used for.

        `cut_off`: the run came to no end of its own. Applications under way have not finished, and none is said to.
        Calls that vLLM has not finished are aborted as far as the run knows; vLLM goes on with their requests. Copies
        under way end by themselves. Whatever a sink raises, no run is under way then.
        """
        if self.settings is None:
            raise EngineError("no run is under way")
        agents = list(self._agents.values())
        try:
            self._tick(self.now_s())
            for call in list(self._calls.values()):
                self._abort(call, self._now_s)
            for app in () if cut_off else list(self._apps):
                self._end_app(app, self._now_s)
            self._report(self._occupancy.reading(self.steps))
        finally:
            self._forget_run()
            for agent in agents:  # has been done, unless somebody raised
                agent.gone = True
                self.copies.cancel(agent, self._now_s)
                self.copies.unpin(agent)
                self.copies.forget(agent, self._now_s)

    @property
    def at_rest(self) -> bool:
        """Whether vLLM has no request, and nothing is being copied."""
        return not (self._scheduler.requests or self.copies.under_way)

    @property
    def computing(self) -> bool:
        """Whether a step is under way that computes something."""
        return bool(self._flights)

    @property
    def policy_s(self) -> float:
        """Wall time that the policy took."""
        return self._controller.policy_s if self._controller is not None else 0.0

    @property
    def broken(self) -> bool:
        """Whether the policy raised: the engine goes on without it."""
        return bool(self.errors)

    def now_s(self) -> float:
        """Engine time: seconds since the run began."""
        return self._clock() - self._start_s

    def wake_s(self) -> float | None:
        """When the engine must be stepped although it has no request."""
        pinned = self.copies.pinned
        if not pinned:
            return self._wake_s
        first_s = min(agent.pin_until_s for agent in pinned.values())
        return first_s if self._wake_s is None else min(first_s, self._wake_s)

    def has_work(self) -> bool:
        """Whether the engine must be stepped now although it may have no request."""
        if self.copies.under_way:
            return True
        if self._controller is None:
            return False
        if self._ended or (self._news and not self.broken):
            return True
        wake_s = self.wake_s()
        return False if wake_s is None else wake_s <= self.now_s()

    def info(self) -> dict[str, object]:
        """What this engine is, as plain data."""
        return {
            "tokencake": __version__,
            **self._about,
            "gpu_blocks": self._gpu.blocks,
            "host_blocks": self._host_slots,
            "policy": self.settings.policy if self.settings is not None else None,
        }

    # -- what a client says

    def tell(self, event: Mapping[str, object]) -> None:
        """Take in what a client says of an application or a tool. Raises `EngineError` for what means nothing."""
        self.hear(event_from_record(event))

    def hear(self, event: ClientEvent) -> None:
        """The same, of an event that was looked at."""
        if self._controller is None:
            raise EngineError("no run is under way")
        now_s = self.now_s()
        at_s = self._news_s(now_s if event.at_s is None else event.at_s, now_s)
        if event.kind == "app_started":
            if not self._makes_room(event.app, None, at_s):
                raise EngineError(f"event: app: {MOST_AGENTS} applications and agents are known, and all have calls")
            self._app(event.app, at_s)
        elif event.kind == "app_finished":
            self._app_finished(event.app, at_s)
        else:
            agent = self._agents.get(f"{event.app}/{event.agent}")
            if agent is not None:
                self._heard(event.app, now_s)
                if event.kind == "tool_started":
                    self._stall(agent, event.call, at_s)
                else:
                    self._unstall(agent, at_s)

    def _news_s(self, due_s: float, now_s: float) -> float:
        """When something happened that was due then and is told now: after the latest boundary, which missed it."""
        return min(max(0.0, due_s, nextafter(self._boundary_s, inf)), max(now_s, self._boundary_s))

    def _app(self, name: AppId, at_s: float) -> LiveApp:
        app = self._apps.get(name)
        if app is None:
            app = self._apps[name] = LiveApp(at_s)
            self._report(e.AppStarted(at_s, name))
        return app

    def _heard(self, name: AppId, at_s: float) -> LiveApp:
        """Something of an application was heard: it is the last that is given up for silence."""
        app = self._apps[name] = self._apps.pop(name)
        app.heard_s = at_s
        return app

    def _makes_room(self, app: AppId, agent: AgentId | None, at_s: float) -> bool:
        """Whether these can be known, too. If there are too many, applications end that no call is under way of, as
        far as there are any: those that were heard of first."""
        new = (app not in self._apps) + (agent is not None and agent not in self._agents)
        while new and len(self._apps) + len(self._agents) + new > MOST_AGENTS:
            name = next((name for name, known in self._apps.items() if not known.calls and name != app), None)
            if name is None:
                return False
            self._end_app(name, at_s)
        return True

    def _app_finished(self, name: AppId, at_s: float) -> None:
        app = self._apps.get(name)
        if app is None:
            return
        if app.calls:
            app.ending = True
        else:
            self._end_app(name, at_s)

    def _end_if_over(self, name: AppId, at_s: float) -> None:
        """End an application whose last call has ended, and that call's tools."""
        app = self._apps[name]
        if app.ending and not app.calls and not any(agent.name in self._stalled for agent in app.agents):
            self._end_app(name, at_s)

    def _end_app(self, name: AppId, at_s: float) -> None:
        """None of its agents comes back."""
        app = self._apps.pop(name)
        self._report(e.AppFinished(at_s, name))
        for agent in app.agents:
            agent.gone = True
            self._stalled.pop(agent.name, None)
            self.copies.cancel(agent, at_s)
            self.copies.unpin(agent)
            self.copies.forget(agent, at_s)
            del self._agents[agent.name]

    def _sweep(self, now_s: float) -> None:
        """End the applications of which nothing was heard for too long: a client may have gone without a word."""
        settings = self.settings
        if settings is None or settings.app_timeout_s is None or now_s < self._swept_s + settings.app_timeout_s / 8:
            return
        self._swept_s = now_s
        for name, app in list(self._apps.items()):
            if not app.calls and app.heard_s + settings.app_timeout_s <= now_s:
                self._end_app(name, now_s)

    def _stall(self, agent: AgentCache, call: CallId, at_s: float) -> None:
        if agent.stalled_by is None and not agent.calls:
            agent.stalled_by = call
            self._stalled[agent.name] = agent
            self._report(e.ToolStarted(at_s, call, agent.name))

    def _unstall(self, agent: AgentCache, at_s: float) -> None:
        if agent.stalled_by is not None:
            call, agent.stalled_by = agent.stalled_by, None
            self._stalled.pop(agent.name, None)
            self._report(e.ToolReturned(at_s, call, agent.name))
            self._end_if_over(agent.app, at_s)

    # -- what happens to requests

    def arrived(self, request: Any) -> None:
        """vLLM took in a request."""
        sampling = request.sampling_params
        if self._controller is None or sampling is None:
            return
        try:
            told = from_extra_args(
                sampling.extra_args, request.request_id, request.num_prompt_tokens, request.max_tokens
            )
        except WrongField as wrong:
            logger.warning("request %s is served without its metadata: %s", request.request_id, wrong)
            return
        if told is None:
            return
        now_s = self.now_s()
        at_s = self._news_s(request.arrival_time - self._start_wall_s, now_s)
        said = told.request
        if not self._makes_room(said.app, said.agent, at_s):
            logger.warning("request %s is served without its metadata: too many agents", request.request_id)
            return
        if said.id in self._calls:  # sent again before it ended
            said = said._replace(id=self._another_name(f"{said.id}#{request.request_id}"))
        self._app(said.app, at_s)
        app = self._heard(said.app, now_s)
        app.calls += 1
        app.ending = False
        agent = self._agents.get(said.agent)
        if agent is None:
            agent = self._agents[said.agent] = AgentCache(said.agent, said.app)
            app.agents.append(agent)
        self._unstall(agent, at_s)
        agent.waiting += 1
        agent.calls += 1
        call = EngineCall(said, request, agent, at_s, self._size)
        call.last = told.last
        self._calls[said.id] = call
        self._by_request[request.request_id] = call
        self._report(e.CallArrived(at_s, said))

    def _another_name(self, name: CallId) -> CallId:
        """One that no call has. Clients choose names, also those that look like ours."""
        return next(
            other for other in (name, *(f"{name}#{n}" for n in range(len(self._calls)))) if other not in self._calls
        )

    def matched(self, request: Any, hit_tokens: int) -> tuple[int | None, bool]:
        """How many tokens of a waiting request to load from the host behind those that hit on the GPU, as vLLM asks.

        None: not now. Either something is on its way for it, or it does not fit and lets those behind it try.
        """
        call = self._by_request.get(request.request_id)
        if call is None:
            return 0, False
        if call.stores or (call.agent.uploads and self.copies.uploading(call.agent)):
            return None, False
        hashes = request.block_hashes
        hits = self._matched[request.request_id] = hit_tokens // self._size
        limit = (request.num_tokens - 1) // self._size
        upto = self.copies.host_end(hashes, hits, limit)
        if self.laid.write_through and self.copies.coming(hashes, upto, limit):
            return None, False
        if upto > hits and self.copies.copying(hashes, hits, upto):
            return None, False
        if self.laid.skip and not self._fits(request, hits, upto):
            return None, False
        return (upto - hits) * self._size, upto > hits

    def _fits(self, request: Any, hits: int, upto: int) -> bool:
        """Whether there is room for all of a request that nothing was taken for yet, as vLLM is going to ask.

        If its blocks from `hits` to `upto` are to be loaded: also whether that leaves what the loaded calls, and those
        in the middle of their prompts, yet need.
        """
        free = self._gpu.free
        taken = idle(self._gpu.found(request.block_hashes, 0, hits))
        if -(-request.num_tokens // self._size) - hits + taken > free:
            return False
        if upto == hits:
            return True
        promised: int = self._scheduler._inflight_prefill_reserved_blocks()
        return upto - hits + taken <= free - promised

    def allocated(self, request: Any, blocks: Sequence[Any], external_tokens: int) -> None:
        """vLLM gave blocks to a waiting request: it starts, or what the host has of it is loaded first."""
        call = self._by_request.get(request.request_id)
        if call is None:
            return
        agent = call.agent
        self._holding[call.id] = call
        hits = self._matched.pop(request.request_id, None)
        if hits is not None:
            call.gpu_hit_tokens, call.host_hit_tokens = hits * self._size, external_tokens
        if external_tokens:
            first = call.gpu_hit_tokens // self._size
            end = first + external_tokens // self._size
            self.copies.load(call, blocks, first, end, self._now_s, lambda: self._filled(request))
        else:
            agent.waiting -= 1
            resumed = request.num_tokens if call.started else 0
            call.started = True
            call.target = request.num_tokens
            self._prefilling[request.request_id] = call
            if not call.seen:
                self._unseen.add(request.request_id)
            self._report(e.CallAdmitted(self._now_s, call.id, call.gpu_hit_tokens, call.host_hit_tokens, resumed))
        if agent.uploads:
            self.copies.taken(agent, call.arrived_s, self._now_s)
        self.copies.unpin(agent)

    def _filled(self, request: Any) -> None:
        """A waiting request's blocks were loaded: they can be hit, though vLLM looks at it only when it schedules."""
        self._scheduler.kv_cache_manager.cache_blocks(request, request.num_computed_tokens)

    def preempted(self, request: Any, generated_tokens: int) -> None:
        """A running request lost its blocks and waits again."""
        call = self._by_request.get(request.request_id)
        if call is None:
            return
        call.agent.waiting += 1
        self._holding.pop(call.id, None)
        self._prefilling.pop(request.request_id, None)
        self.copies.stops(call)
        if self.copies.held_blocks:
            self.copies.refusing = True
        self._report(e.CallPreempted(self._now_s, call.id, generated_tokens))

    def aborted(self, requests: Iterable[Any]) -> None:
        """Requests were given up by their clients, or failed."""
        for request in requests:
            call = self._by_request.get(request.request_id)
            if call is not None:
                at_s = self.now_s()
                self._abort(call, at_s)
                self._end_if_over(call.agent.app, at_s)

    def _abort(self, call: EngineCall, at_s: float) -> None:
        call.loading = False
        self._report(e.CallAborted(at_s, call.id))
        self._leave(call, at_s)

    def _finished(self, call: EngineCall, at_s: float) -> None:
        request, agent = call.vllm, call.agent
        output_tokens = int(request.num_output_tokens)
        self.copies.remember(agent, request, (request.num_prompt_tokens + output_tokens - 1) // self._size)
        if self.plan.write_through:
            self._ended.append(call)
            self.copies.used(call, self._to_store(call, self.plan.write_through))
        self._report(e.CallFinished(at_s, call.id, output_tokens, agent.context_blocks))
        self._leave(call, at_s)
        if call.request.tools:
            self._stall(agent, call.id, at_s)
        self._end_if_over(agent.app, at_s)

    def _leave(self, call: EngineCall, at_s: float) -> None:
        """A call is over."""
        request_id, agent = call.vllm.request_id, call.agent
        del self._calls[call.id], self._by_request[request_id]
        self._unseen.discard(request_id)
        self._holding.pop(call.id, None)
        self._matched.pop(request_id, None)
        self._prefilling.pop(request_id, None)
        self.copies.stops(call)
        agent.calls -= 1
        agent.waiting = min(agent.waiting, agent.calls)
        self.copies.refusing = False
        app = self._heard(agent.app, at_s)
        app.calls -= 1
        app.ending |= call.last

    # -- a step

    def boundary(self) -> None:
        """vLLM is about to schedule: take in what is due, ask the policy, and do at once what it wants done at once."""
        controller = self._controller
        self._native_once = False
        if controller is None:
            if self._stuck:  # requests of a run that ended may hold loaded blocks, and vLLM alone takes none away
                self._get_unstuck()
            return
        self._tick(self.now_s())
        now_s = self._boundary_s = self._now_s
        if self.copies.pinned:
            self.copies.unpin_expired(now_s)
        self._sweep(now_s)
        self._store_ended(now_s)
        due = self._news or (controller.due and not self._idle)
        if not self.broken and (due or (self._wake_s is not None and self._wake_s <= now_s)):
            self._ask(controller, now_s)
        if self._stuck and not self.copies.under_way:
            self._get_unstuck()
        self._occupancy.sample(now_s, self._stalled)

    def _store_ended(self, now_s: float) -> None:
        """Write through what the calls leave that have ended since the last boundary."""
        ended, self._ended = self._ended, []
        extent = self.plan.write_through
        if extent is None:
            return
        for call in ended:
            self.copies.store_rest(call, self._to_store(call, extent), now_s)

    def _to_store(self, call: EngineCall, extent: Extent) -> int:
        """How many blocks of a call that has ended are written through."""
        request = call.vllm
        tokens: int = request.num_prompt_tokens
        if extent == "contexts":
            tokens += request.num_output_tokens - 1  # the last one has no KV
        return min(tokens // self._size, len(request.block_hashes))

    def _write_through(self, extent: Extent, scheduled: Mapping[str, int]) -> None:
        """When the step ends that computes these prompts' next tokens, their full blocks are copied to the host."""
        for request_id, call in list(self._prefilling.items()):
            if request_id not in scheduled:
                continue
            request = call.vllm
            upto = request.num_computed_tokens  # scheduling has counted the step's tokens already
            if upto >= call.target:
                del self._prefilling[request_id]
            if extent == "prompts":
                upto = min(upto, request.num_prompt_tokens)
            blocks = min(upto // self._size, len(request.block_hashes))  # a token in flight is not known yet
            if blocks > call.stored:
                self.copies.store(call, blocks, self._now_s)

    def _tick(self, now_s: float) -> None:
        self._now_s = now_s
        self._occupancy.advance(now_s, busy=bool(self._flights))

    def _ask(self, controller: Controller, now_s: float) -> None:
        gauges = e.Polled(now_s, self.steps, self._gpu.free, self._growth_blocks(), self.copies.host_free)
        try:
            plan = controller.poll(gauges)
        except PolicyError as error:
            self._give_up(error)
            return
        self.plan = plan
        self._wake_s = wake_time(plan, now_s, SECONDS)
        if plan.moves or self.copies.pinned:
            try:
                carry_out(plan, self._agents, self.copies, now_s, SECONDS)
            except Exception as error:  # whoever is to blame, clients get their answers
                logger.exception("a plan could not be carried out")
                self._give_up(PolicyFault(f"a plan at {now_s:.6f} s could not be carried out: {told(error)}"))
        self._news = False

    def _give_up(self, error: PolicyError) -> None:
        """The policy did something wrong: say so once, and go on as vLLM would."""
        self.errors.append(str(error))
        logger.error("%s; the engine goes on without it", error)
        self.plan = NATIVE
        self._wake_s = None
        self.release_held()

    def _get_unstuck(self) -> None:
        """Calls wait, nothing runs and nothing was scheduled: make way for the next schedule."""
        self._native_once = make_way(self._stuck, self)

    def release_held(self) -> None:
        """Give up whatever agents have on the GPU ahead of need."""
        release_held(self._agents.values(), self.copies, self._now_s)

    def unload_last(self) -> bool:
        """The call that was loaded last gives up its blocks, which stay cached. False if there is none."""
        unloaded: bool = self._scheduler.unload_last()
        return unloaded

    def admits_anybody(self) -> bool:
        """Whether the plan admits a call that waits, when none runs."""
        admit = self.plan.admit
        return admit is None or any(call in self._calls for call in admit)

    @property
    def laid(self) -> Plan:
        """The plan that holds for this step."""
        return without_choices(self.plan) if self._native_once else self.plan

    def scheduled(self, output: Any, idle_calls: bool) -> None:
        """vLLM has scheduled a step. `idle_calls`: whether calls wait and none runs."""
        self._idle = not output.total_num_scheduled_tokens and not self._flights
        self._news = False  # the policy is asked at the next step of a busy engine anyway
        if (extent := self.laid.write_through) is not None:
            self._write_through(extent, output.num_scheduled_tokens)
        self._occupancy.look(self.copies.held_blocks)
        wanted = self.settings is not None and self.settings.steps
        if output.total_num_scheduled_tokens:
            self.steps += 1
            sums = sums_of(output, self._scheduler.requests) if wanted else None
            given_s = self.now_s() if wanted and not self._flights else None
            self._flights.append(_Flight(output, self._runs, self._now_s, sums, given_s))
        elif wanted:
            self._empty_steps.append(_EmptyStep(output, self._runs, self._now_s, self._outcomes))
        in_vain = idle_calls and not self._flights
        if in_vain and self.copies.under_way:
            in_vain = False  # whose end may let somebody start
            if not any(call.loading or self.copies.uploading(call.agent) for call in self._calls.values()):
                self.copies.refusing = True
        self._stuck = self._stuck + 1 if in_vain else 0

    def acknowledge(self, jobs: Mapping[int, float | None]) -> None:
        """The workers have done these copies, in so many seconds, if known; they are booked at the end of the step."""
        self._acknowledged.update(jobs)

    def came(self) -> None:
        """A step's outcome came."""
        if self.settings is not None and self.settings.steps:
            self._came_s = self.now_s()

    def stepped(self, scheduler_output: Any, outputs: Mapping[int, Any]) -> None:
        """A step's outcome came, and vLLM has taken it in."""
        if self._controller is not None:
            self._tick(self.now_s())
        if scheduler_output.total_num_scheduled_tokens:
            self._outcome(_landed(self._flights, scheduler_output), outputs)
        else:
            self._empty_outcome(_landed(self._empty_steps, scheduler_output))
        self._outcomes += bool(scheduler_output.total_num_scheduled_tokens or self._acknowledged)
        if self._acknowledged:
            jobs, self._acknowledged = self._acknowledged, {}
            self.copies.finish(jobs, self._now_s)
        self._occupancy.look(self.copies.held_blocks)

    def _outcome(self, flight: _Flight | None, outputs: Mapping[int, Any]) -> None:
        at_s, unseen = self._now_s, self._unseen
        for of_client in outputs.values():
            outs = of_client.outputs
            if unseen:
                news = [out for out in outs if out.finish_reason is not None or out.request_id in unseen]
            else:
                news = [out for out in outs if out.finish_reason is not None]
            for out in news:
                self._came(out, at_s)
        if flight is not None and flight.sums is not None and flight.run == self._runs:
            alone = flight.given_s is not None and not self._flights  # else the workers had others as well
            worker_s = self._came_s - flight.given_s if alone and flight.given_s is not None else None
            self._report(e.Stepped(at_s, flight.from_s, *flight.sums, worker_s))

    def _empty_outcome(self, step: _EmptyStep | None) -> None:
        """Tell of it if that says what came first: copies end with it, or something came between its begin and its end.

        What its schedule gave up, pins whose time was over, it gave up before that.
        """
        if step is not None and step.run == self._runs and (self._acknowledged or step.outcomes < self._outcomes):
            self._report(e.Stepped(self._now_s, step.from_s, 0, 0, 0, 0))

    def _came(self, out: Any, at_s: float) -> None:
        call = self._by_request.get(out.request_id)
        if call is None:
            return
        if out.new_token_ids and not call.seen:
            call.seen = True
            self._unseen.discard(out.request_id)
            self._report(e.FirstToken(at_s, call.id))
        if out.finish_reason is not None:
            self._finished(call, at_s)

    def take_jobs(self) -> list[CopyJob]:
        """The copies that the workers are to begin with this step."""
        jobs, self.copies.submitted = self.copies.submitted, []
        return jobs

    def victim(self, request: Any) -> None:
        """A running request lacks room: move whom the plan names to the end of the running ones, where vLLM looks."""
        running = self._scheduler.running
        candidates = {
            call.id: other
            for other in running[running.index(request) + 1 :]  # itself only if nobody is behind it
            if (call := self._by_request.get(other.request_id)) is not None
        }
        for name in self.laid.preempt:
            if (chosen := candidates.get(name)) is not None:
                running.remove(chosen)
                running.append(chosen)
                return

    def forget_contents(self) -> bool:
        """Give up everything that was copied: it has no value any more. False while copies are under way."""
        if self.copies.under_way:
            return False
        for agent in self._agents.values():
            self.copies.cancel(agent, self._now_s)
            self.copies.unpin(agent)
            self.copies.forget(agent, self._now_s)
            agent.context_blocks = 0
        for call in self._calls.values():
            call.stored = 0
        self.copies.clear()
        return True

    # -- what the policy asks

    def hits(self, call_id: CallId) -> Hits:
        """What is cached of a waiting call's prompt."""
        call = self._calls[call_id]
        request = call.vllm
        if request.num_computed_tokens:
            held = self._scheduler.kv_cache_manager.get_block_ids(request.request_id)[0]
            return Hits(len(held), 0, 0)
        hashes = request.block_hashes
        limit = (request.num_tokens - 1) // self._size
        blocks = self._gpu.found(hashes, 0, limit)
        gpu = len(blocks)
        return Hits(gpu, idle(blocks), self.copies.host_end(hashes, gpu, limit) - gpu)

    def shared_blocks(self, call_id: CallId) -> int:
        """Blocks of a waiting call's prompt that are held."""
        request = self._calls[call_id].vllm
        blocks = self._gpu.found(request.block_hashes, 0, (request.num_tokens - 1) // self._size)
        return len(blocks) - idle(blocks)

    def call_of(self, request_id: str) -> EngineCall | None:
        return self._by_request.get(request_id)

    @property
    def knows_all(self) -> bool:
        """Whether every request that vLLM has is a call of ours."""
        return len(self._by_request) == len(self._scheduler.requests)

    def request_of(self, call: CallId) -> Any | None:
        """vLLM's request of a call that it has not finished."""
        found = self._calls.get(call)
        return None if found is None else found.vllm

    # -- bookkeeping

    def _growth_blocks(self) -> int:
        """Blocks that running and loading calls will yet take until their declared budgets."""
        growth = 0
        for call in self._holding.values():
            computed = call.vllm.num_computed_tokens
            if computed:
                growth += max(0, call.final_blocks - -(-computed // self._size))
        return growth


_Scheduled = TypeVar("_Scheduled", _Flight, _EmptyStep)


def _landed(steps: deque[_Scheduled], scheduler_output: Any) -> _Scheduled | None:
    """The step that this was. Steps end in their order; of one that failed, no outcome comes."""
    while steps:
        step = steps.popleft()
        if step.output is scheduler_output:
            return step
    return None


def _unheard(fact: Fact) -> None:
    """What happens without a run, nobody hears."""
