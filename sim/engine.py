"""The engine: continuous batching as vLLM V1 does it, on virtual time, advanced in stretches of equal iterations.

At each *boundary* (the end of a step, or an arrival at an idle engine) it takes in what ended, asks the policy if
there is news, and schedules: running calls first, then waiting ones. What it schedules is a stretch: as many iterations
as go by before anything can change. News inside a stretch cuts it at the first step boundary that follows.

Asynchronous scheduling keeps a step ahead: while one runs, the next is scheduled already. So an arrival waits for the
end of the running and of the scheduled step, and blocks come back one schedule later.

`one_by_one` makes every stretch a single iteration; the facts are the same (a test holds them to it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from math import ceil
from typing import NamedTuple

from ..policies.controller import Controller
from ..policies.interface import NATIVE, Hits, Plan
from ..traces import events as e
from ..traces.apps import AgentId, AppId, Call, CallId
from ..traces.errors import EngineError
from ..traces.events import Fact
from .batch import Batch, Pace
from .content import Context, ContextTree
from .copies import Copies
from .jobs import AgentCache, Job, State
from .kv import KvPool
from .link import Link
from .machine import PS_PER_S, Machine
from .meter import Meter
from .moments import BOUNDARY, SCHEDULE, At, Clock

SOONEST_PS = PS_PER_S // 1000  # a wake-up or the end of a pin comes no sooner: a policy must not stop the clock


class Scheduled(NamedTuple):
    """One iteration as it was scheduled: what a test holds against vLLM's scheduler."""

    at_ps: int
    tokens: dict[CallId, int]  # by call, in the order of admission
    free_blocks: int  # afterwards
    evicted_blocks: int  # since the start


StepLog = Callable[[Scheduled], None]


class Step:
    """Iterations that are scheduled but not done: `iterations` of them, the last one with these outcomes."""

    __slots__ = ("finals", "iterations", "pace", "prefill")

    def __init__(self, pace: Pace, iterations: int, prefill: dict[Job, int], finals: list[Job]) -> None:
        self.pace = pace
        self.iterations = iterations
        self.prefill = prefill  # tokens by call
        self.finals = finals  # calls whose prefill is complete after it


class Flight:
    """One step that runs now (asynchronous scheduling only)."""

    __slots__ = ("end_ps", "finished", "firsts")

    def __init__(self, end_ps: int, firsts: list[Job], finished: list[Job]) -> None:
        self.end_ps = end_ps
        self.firsts = firsts
        self.finished = finished


class Engine:
    """One simulated vLLM engine. The world tells it of applications, arrivals and tools; it calls `finished`."""

    def __init__(
        self,
        clock: Clock,
        machine: Machine,
        tree: ContextTree,
        finished: Callable[[Call], None],
        *,
        pool: type[KvPool] = KvPool,
        one_by_one: bool = False,
        step_log: StepLog | None = None,
    ) -> None:
        self._clock = clock
        self._machine = machine
        self._timing = machine.timing()
        self._client_ps = self._timing.client_ps
        self._size = machine.block_tokens
        self._budget = machine.step_budget_tokens
        self._finished = finished
        self._one_by_one = one_by_one
        self._step_log = step_log
        self.gpu = pool(tree, machine.gpu_blocks, 0)
        self.host = pool(tree, machine.host_blocks, 1)
        self._tree = tree
        self._link = Link(self._timing)
        self._copies = Copies(self.gpu, self.host, self._link, self._size)
        self._batch = Batch(self._timing, self._size)
        self._meter = Meter(self.gpu, self._copies)
        self._jobs: dict[CallId, Job] = {}
        self._waiting: dict[CallId, Job] = {}
        self._loaded: dict[
            CallId, Job
        ] = {}  # of the waiting: those with blocks, in the order in which their loads began
        self._running: dict[CallId, Job] = {}
        self._prefilling: Job | None = None  # the call in the middle of its prompt; the last of the running ones
        self._agents: dict[AgentId, AgentCache] = {}
        self._of_app: dict[AppId, list[AgentCache]] = {}
        self._pinned: dict[AgentId, AgentCache] = {}
        self._plan: Plan = NATIVE
        self._wake_ps: int | None = None
        self._flight: Flight | None = None
        self._step: Step | None = None
        self._base_ps = 0  # the stretch's first boundary, or (asynchronous) the end of the step before it
        self._boundary: At | None = None
        self._boundary_ps = 0
        self._scheduling = False
        self._blocked = False  # nobody can be admitted before something changes that is a boundary anyway
        self._refused: tuple[int, int, int, int] | None = None  # the situation in which nobody could be admitted
        self._admitted = 0
        self._growth_blocks = 0
        self._lag = 1 if machine.asynchronous else 0
        self._controller: Controller
        self._report: Callable[[Fact], None]

    def start(self, controller: Controller) -> None:
        """Report the engine's limits; facts go to the controller from now on."""
        self._controller = controller
        self._report = self._copies.report = controller.hear
        machine = self._machine
        self._report(
            e.RunStarted(self._now_s(), self._size, machine.gpu_blocks, machine.host_blocks, machine.block_bytes)
        )

    @property
    def iterations(self) -> int:
        return self._batch.iteration

    # -- what the world does

    def app_started(self, app: AppId) -> None:
        self._of_app[app] = []
        self._news(e.AppStarted(self._now_s(), app))

    def app_finished(self, app: AppId) -> None:
        """None of its agents comes back."""
        self._settle()
        self._report(e.AppFinished(self._now_s(), app))
        for agent in self._of_app.pop(app):
            agent.gone = True
            self._copies.set_stalled(agent, False)
            self._copies.cancel(agent, self._clock.now_ps)
            self._unpin(agent)
            self._copies.forget(agent, self._clock.now_ps)
            del self._agents[agent.name]
        self._cut_for_news()

    def arrive(self, call: Call, request: e.Request, context: Context) -> None:
        """A call arrives; `context` is its prompt and its answer, and lives as long as the call's application."""
        agent = self._agents.get(call.agent)
        if agent is None:
            agent = self._agents[call.agent] = AgentCache(call.agent)
            self._of_app[call.app].append(agent)
        final = -(-(call.prompt.tokens + call.max_output_tokens) // self._size)
        job = Job(call, agent, context, self._tree.path(context), final, self._clock.now_ps)
        self._jobs[call.id] = self._waiting[call.id] = job
        agent.waiting += 1
        if agent.owner.stalled:
            self._settle()
            self._copies.set_stalled(agent, False)
        self._report(e.CallArrived(self._now_s(), request))
        if self._boundary is None:
            self._act_at(self._clock.now_ps)
        elif self._controller.due or (not self._blocked and self._plan.admit is None):
            self._cut(self._clock.now_ps)

    def tool_started(self, call: Call) -> None:
        self._settle()
        agent = self._agents[call.agent]
        self._copies.set_stalled(agent, True)
        self._news(e.ToolStarted(self._now_s(), call.id, call.agent))

    def tool_returned(self, call: Call) -> None:
        self._settle()
        self._copies.set_stalled(self._agents[call.agent], False)
        self._news(e.ToolReturned(self._now_s(), call.id, call.agent))

    def stop(self) -> None:
        """The last application has ended."""
        self._settle()
        self._report(self._meter.reading(self._batch.iteration))

    # -- what the policy asks

    def hits(self, call: CallId) -> Hits:
        job = self._waiting[call]
        if job.hold is not None:
            return Hits(job.hold.blocks, 0, 0)
        gpu, idle = self.gpu.hits(job.path, (job.target - 1) // self._size)
        return Hits(gpu, idle, self._copies.host_hits(job, gpu) - gpu)

    def shared_blocks(self, call: CallId) -> int:
        job = self._waiting[call]
        return self.gpu.held(job.path, (job.target - 1) // self._size)

    # -- boundaries

    def _act_at(self, at_ps: int) -> None:
        self._boundary_ps = at_ps
        self._boundary = At(self._clock, at_ps - self._clock.now_ps, BOUNDARY, self._on_boundary)

    def _on_boundary(self, event: At) -> None:
        if event is not self._boundary:
            return  # a cut took its place
        self._boundary = None
        now = self._clock.now_ps
        self._scheduling = True
        self._commit(now)
        if self._link.busy:
            self._link.finish(now)
        if self._pinned:
            self._release_expired_pins(now)
        if self._client_ps:
            self._schedule_at(now)
        else:
            At(self._clock, 0, SCHEDULE, lambda _: self._schedule_at(self._clock.now_ps))
            self._boundary = event  # arrivals until then need no boundary of their own

    def _commit(self, now: int) -> None:
        """Take in the iterations that were scheduled up to now, and report what the steps that ended brought."""
        flight, step = self._flight, self._step
        self._growth_blocks -= self._meter.finish(now, 0 if step is None else step.iterations, self._batch)
        self._step = None
        if flight is not None:
            self._flight = None
            if flight.firsts or flight.finished:
                self._outcomes(flight.firsts, flight.finished, now)
        if step is None:
            return
        firsts, finished = self._advance(step)
        if self._lag:
            end = now + step.pace.one(step.iterations - 1)
            self._flight = Flight(end, firsts, finished)
        elif firsts or finished:
            self._outcomes(firsts, finished, now)

    def _advance(self, step: Step) -> tuple[list[Job], list[Job]]:
        """The step's iterations are all scheduled: move the calls on. Who got a first token, who a last one."""
        batch = self._batch
        if batch.chunk is not None:
            self._book_chunks(step)
        finished = batch.advance(step.iterations)
        for job, tokens in step.prefill.items():
            job.computed += tokens * step.iterations
        firsts = []
        for job in step.finals:
            if job.target - job.prompt_tokens == 0:
                firsts.append(job)
            if job.last_iteration < batch.iteration:
                finished.append(job)
            else:
                batch.join(job, job.target)
        return firsts, finished

    def _book_chunks(self, step: Step) -> None:
        """A stretch of chunks is over: its later ones have their blocks, too, and can be hit."""
        self._batch.chunk = None
        for job, chunk in step.prefill.items():
            hold = job.hold
            assert hold is not None
            upto = job.computed + step.iterations * chunk
            hold.blank += -(-upto // self._size) - hold.blocks
            self.gpu.register(hold, job.path, upto // self._size)

    def _outcomes(self, firsts: list[Job], finished: list[Job], now: int) -> None:
        """A step ended: first tokens and finished calls, in the order in which they were scheduled."""
        at_s = now / PS_PER_S
        jobs = [*firsts, *finished]
        if len(jobs) > 1:
            jobs = sorted(set(jobs), key=_by_order)
        for job in jobs:
            if not job.seen and job in firsts:
                job.seen = True
                self._report(e.FirstToken(at_s, job.id))
            if job in finished:
                self._finish(job, at_s)

    def _finish(self, job: Job, at_s: float) -> None:
        agent = job.agent
        del self._jobs[job.id]
        self._copies.refusing = False
        agent.context = job.context
        agent.path = job.path
        agent.context_blocks = (job.prompt_tokens + job.output_tokens - 1) // self._size
        if job.state is State.RUNNING:
            del self._running[job.id]
            self._release(job, agent.context_blocks)
        else:  # preempted while its last token was on its way
            del self._waiting[job.id]
            agent.waiting -= 1
        self._report(e.CallFinished(at_s, job.id, job.output_tokens, agent.context_blocks))
        self._finished(job.call)

    def _release(self, job: Job, registered_blocks: int) -> None:
        """A running call gives up its blocks; `registered_blocks` of them are full and known."""
        hold = job.hold
        assert hold is not None
        held = -(-job.computed // self._size)
        hold.blank = held - hold.registered
        self.gpu.register(hold, job.path, registered_blocks)
        self.gpu.release(hold, job.agent.owner)
        self._growth_blocks -= job.final_blocks - held
        job.hold = None

    # -- scheduling

    def _schedule_at(self, now: int) -> None:
        self._boundary = None
        self._scheduling = True
        controller = self._controller
        if controller.due or (self._wake_ps is not None and self._wake_ps <= now):
            self._ask(now)
        step = self._schedule(now)
        if step is None and self._stuck():
            step = self._resolve(now)
        if step is None and self._starved():
            self._copies.refusing = True
        if step is not None and self._lag and self._flight is None:
            # nothing runs: this step starts at once, and the next is scheduled behind it
            firsts, finished = self._advance(step)
            self._flight = Flight(now + step.pace.first, firsts, finished)
            step = self._schedule(now)
        self._scheduling = False
        self._go(step, now)

    def _go(self, step: Step | None, now: int) -> None:
        """Set the next boundary."""
        self._step = step
        flight = self._flight
        base = self._base_ps = now if flight is None else flight.end_ps
        if step is None:
            self._meter.busy = flight is not None
            if flight is not None:
                self._act_at(base)
            else:
                self._sleep(now)
            return
        self._meter.busy = True
        if step.iterations == 1:
            self._act_at(base if self._lag else base + step.pace.first)
            return
        end = base + step.pace.total(step.iterations - self._lag)
        alarm = self._alarm(now)
        if alarm is not None and alarm < end:
            end = self._cut_stretch(step, alarm)
        self._meter.begin(base, step.pace, self._lag)
        self._act_at(end)

    def _sleep(self, now: int) -> None:
        """Nothing to run: act again when an alarm goes off, or when something happens."""
        alarm = self._next_timer()
        if alarm is not None:
            self._act_at(max(now, alarm))

    def _alarm(self, now: int) -> int | None:
        """When to act at the latest: at once, if there is news that the policy has not seen."""
        return now if self._controller.due else self._next_timer()

    def _next_timer(self) -> int | None:
        """When something happens of which the world does not tell: the end of a copy or a pin, the policy's wake-up."""
        at = self._link.next_end_ps if self._link.busy else None
        if self._wake_ps is not None and (at is None or self._wake_ps < at):
            at = self._wake_ps
        if self._pinned:
            unpin = min(agent.pin_until_ps for agent in self._pinned.values())
            at = unpin if at is None else min(at, unpin)
        return at

    def _cut_stretch(self, step: Step, at_ps: int) -> int:
        """Shorten a stretch to its first boundary at or after a time. When that is."""
        boundaries = max(1, step.pace.covering(at_ps - self._base_ps) + self._lag)
        step.iterations = min(step.iterations, boundaries)
        return self._base_ps + step.pace.total(step.iterations - self._lag)

    def _cut(self, at_ps: int) -> None:
        """Something happened: act at the first boundary from now on."""
        if self._scheduling or self._boundary is None:
            return
        if self._step is not None and self._step.iterations > 1:
            end = self._cut_stretch(self._step, at_ps)
            if end < self._boundary_ps:
                self._act_at(end)
        elif self._step is None and self._flight is None:
            self._act_at(at_ps)  # it sleeps

    def _news(self, fact: Fact) -> None:
        self._report(fact)
        self._cut_for_news()

    def _cut_for_news(self) -> None:
        if not self._controller.due:
            return
        if self._boundary is None:
            if not self._scheduling:
                self._act_at(self._clock.now_ps)
        else:
            self._cut(self._clock.now_ps)

    def _ask(self, now: int) -> None:
        """Ask the policy, and do at once what its plan wants done at once."""
        plan = self._controller.poll(
            e.Polled(now / PS_PER_S, self._batch.iteration, self.gpu.free, self._growth_blocks, self.host.free)
        )
        self._plan = plan
        self._refused = None
        self._wake_ps = None if plan.wake_at_s is None else max(now + SOONEST_PS, ceil(plan.wake_at_s * PS_PER_S))
        if plan is not NATIVE:
            self._apply(plan, now)

    def _apply(self, plan: Plan, now: int) -> None:
        from_ps = now if self._flight is None else self._flight.end_ps
        copies = self._copies
        pins = {name: until_s for name, until_s in plan.pin.items() if until_s * PS_PER_S > now}
        for name in plan.forget:
            if (agent := self._agents.get(name)) is not None:
                copies.forget(agent, now)
        for name in plan.cancel:
            if (agent := self._agents.get(name)) is not None:
                copies.cancel(agent, now)
        for name, agent in list(self._pinned.items()):
            if name not in pins:
                self._unpin(agent)
        for move in plan.offload:
            if (agent := self._agents.get(move.agent)) is not None:
                copies.offload(agent, move, now, from_ps)
        for name, until_s in pins.items():
            if (agent := self._agents.get(name)) is not None:
                copies.pin(agent, max(ceil(until_s * PS_PER_S), now + SOONEST_PS))
                if agent.pin is not None:
                    self._pinned[name] = agent
        for move in plan.upload:
            if (agent := self._agents.get(move.agent)) is not None:
                copies.upload(agent, move, now, from_ps)
        for name in reversed(plan.evict):
            if (agent := self._agents.get(name)) is not None:
                self.gpu.expose(agent.path, agent.context_blocks)

    def _schedule(self, now: int) -> Step | None:
        """One schedule of vLLM's: running calls, then waiting ones. Nothing scheduled: None."""
        batch = self._batch
        need = batch.needs()
        prefill: dict[Job, int] = {}
        finals: list[Job] = []
        preempted = False
        chunk, blocks = (0, 0) if self._prefilling is None else self._chunk()
        if need + blocks <= self.gpu.free:
            if need:
                self.gpu.allocate(need)
                self._growth_blocks -= need
        else:
            preempted = self._grow_one_by_one(now)
            chunk, blocks = self._chunk()
        budget = self._budget - batch.calls
        if self._prefilling is not None:
            budget -= chunk
            self._prefill(self._prefilling, chunk, blocks, prefill, finals)
        if preempted or not budget or not self._waiting:
            self._blocked = False
        elif self._refused != self._situation():
            self._admit(now, budget, prefill, finals)
        return self._close(now, prefill, finals, preempted)

    def _close(self, now: int, prefill: dict[Job, int], finals: list[Job], preempted: bool) -> Step | None:
        batch = self._batch
        if not batch.calls and not prefill:
            return None
        tokens = attended = 0
        for job, chunk in prefill.items():
            tokens += chunk
            attended += chunk * job.computed + chunk * (chunk + 1) // 2
        for job in finals:
            job.last_iteration = batch.iteration + job.output_tokens - 1 - (job.target - job.prompt_tokens)
        if self._step_log is not None:
            self._log(now, prefill)
        iterations = 1 if preempted or self._one_by_one else self._stretch(prefill, finals)
        return Step(batch.pace(tokens, attended, tokens if batch.chunk else 0), iterations, prefill, finals)

    def _stretch(self, prefill: dict[Job, int], finals: list[Job]) -> int:
        """How many iterations go by before anything changes: decoding, or whole chunks of one prompt beside it."""
        batch, flight = self._batch, self._flight
        if finals or len(prefill) > 1 or (self._lag and (flight is None or flight.firsts or flight.finished)):
            return 1
        most = batch.until_end()
        for job, chunk in prefill.items():
            if batch.calls + chunk < self._budget:
                return 1
            chunks = (job.target - job.computed - 1) // chunk  # all but the last one, which leaves room for other calls
            most = chunks if most is None else min(most, chunks)
            batch.chunk = (job.computed, chunk)
            self._blocked = True  # until then there is no token left for anybody
        assert most is not None
        return batch.until_full(self.gpu.free, most)

    def _prefill(self, job: Job, chunk: int, blocks: int, prefill: dict[Job, int], finals: list[Job]) -> None:
        """Compute the next tokens of a running call's prompt. Its full blocks can be hit from this moment on."""
        hold = job.hold
        assert hold is not None
        self.gpu.take(hold, blocks)
        self._growth_blocks -= blocks
        upto = job.computed + chunk
        self.gpu.register(hold, job.path, upto // self._size)
        prefill[job] = chunk
        if upto == job.target:
            finals.append(job)
            self._prefilling = None
        else:
            self._prefilling = job

    def _chunk(self) -> tuple[int, int]:
        """Tokens that the call in the middle of its prompt computes next, and the blocks that it takes for them."""
        job = self._prefilling
        if job is None:
            return 0, 0
        chunk = min(job.target - job.computed, self._budget - self._batch.calls)
        return chunk, -(-(job.computed + chunk) // self._size) - -(-job.computed // self._size)

    def _grow_one_by_one(self, now: int) -> bool:
        """Give each running call the blocks that it needs now, in their order; preempt where there are none."""
        running = list(self._running.values())
        preempted = False
        at = 0
        while at < len(running):
            job = running[at]
            if job is self._prefilling:
                blocks = self._chunk()[1]
            elif job.decoding:
                blocks = 0 if self._batch.computed(job) % self._size else 1
            else:
                blocks = 0  # its last token is on its way
            while blocks > self.gpu.free:
                victim = self._victim(running[at:])
                running.remove(victim)
                self._preempt(victim, now)
                preempted = True
                if victim is job:
                    break  # the policy's choice: those behind it still need theirs
            else:
                at += 1
                if job is not self._prefilling:
                    self.gpu.allocate(blocks)
                    self._growth_blocks -= blocks
        return preempted

    def _victim(self, candidates: list[Job]) -> Job:
        if self._plan.preempt:
            by_id = {job.id: job for job in candidates}
            for name in self._plan.preempt:
                if name in by_id:
                    return by_id[name]
        return candidates[-1]

    def _preempt(self, job: Job, now: int) -> None:
        """A running call loses its blocks and waits again, before all others."""
        known = job.computed
        if job is self._prefilling:
            self._prefilling = None
        else:
            if job.decoding:
                self._batch.leave(job)
            # with a step in flight, the token of the last slot is not known yet
            known = job.computed - self._lag if job.computed > job.target else job.computed
            job.target = job.computed + 1
        generated = job.target - job.prompt_tokens
        del self._running[job.id]
        self._release(job, known // self._size)
        job.state = State.WAITING
        job.computed = 0
        job.agent.waiting += 1
        self._waiting = {job.id: job, **self._waiting}
        if self._copies.held_blocks:
            self._copies.refusing = True
        self._report(e.CallPreempted(now / PS_PER_S, job.id, generated))

    # -- admission

    def _admit(self, now: int, budget: int, prefill: dict[Job, int], finals: list[Job]) -> None:
        """Start waiting calls while tokens, places and memory last."""
        self._blocked = False
        skip = self._plan.skip
        before = budget
        started = []
        for job in self._candidates():
            if len(self._running) >= self._machine.max_running:
                self._blocked = True
                break
            if job.state is State.LOADING or self._awaits_copy(job):
                continue
            if job.state is State.WAITING:
                hits, idle = self.gpu.hits(job.path, (job.target - 1) // self._size)
                fits = -(-job.target // self._size) - hits + idle <= self.gpu.free
                loads_to = self._copies.host_hits(job, hits) if self.host.touched else hits
                if loads_to > hits:
                    if self._copies.under_way(job, hits, loads_to):
                        continue
                    if fits:
                        self._load(job, hits, loads_to, now)
                        continue
            else:
                assert job.hold is not None
                hits = job.hold.blocks
                fits = -(-job.target // self._size) - hits <= self.gpu.free
            if not fits:
                if skip:
                    continue
                self._blocked = True
                break
            budget -= self._start(job, hits, budget, now, prefill, finals)
            started.append(job.id)
            if not budget:
                break
        for name in started:
            del self._waiting[name]
            self._loaded.pop(name, None)
        self._refused = self._situation() if budget == before else None

    def _situation(self) -> tuple[int, int, int, int]:
        """While this is the same, under the same plan and with no more room, whoever was refused is refused again."""
        return self.gpu.version, self.host.version, len(self._waiting), len(self._running)

    def _candidates(self) -> Iterator[Job]:
        """Waiting calls in the order in which they may start. Only as many as are asked for: there may be thousands."""
        waiting = self._waiting
        if self._plan.admit is not None:
            return (waiting[name] for name in self._plan.admit if name in waiting)
        if not self._loaded:
            return iter(waiting.values())
        return chain(self._loaded.values(), (job for job in waiting.values() if job.state is State.WAITING))

    def _awaits_copy(self, job: Job) -> bool:
        """Whether an upload for this call's agent is on its way: the call takes it when it has come."""
        return bool(job.agent.uploads) and self._copies.uploading(job.agent)

    def _load(self, job: Job, first: int, end: int, now: int) -> None:
        from_ps = now if self._flight is None else self._flight.end_ps
        self._copies.load(job, first, end, now, from_ps)
        self._loaded[job.id] = job
        self._growth_blocks += job.final_blocks - end
        self._taken_over(job, now)

    def _start(self, job: Job, hits: int, budget: int, now: int, prefill: dict[Job, int], finals: list[Job]) -> int:
        """Admit a call: it takes its hits and the blocks of its first chunk. How many tokens are computed."""
        if job.state is State.WAITING:
            job.hold = self.gpu.open(job.path, hits)
            job.computed = hits * self._size
            self._growth_blocks += job.final_blocks - hits
            job.gpu_hit_tokens, job.host_hit_tokens = job.computed, 0
        job.state = State.RUNNING
        job.agent.waiting -= 1
        self._admitted += 1
        job.order = self._admitted
        self._running[job.id] = job
        resumed = job.target if job.started else 0
        job.started = True
        self._report(e.CallAdmitted(now / PS_PER_S, job.id, job.gpu_hit_tokens, job.host_hit_tokens, resumed))
        chunk = min(job.target - job.computed, budget)
        self._prefill(job, chunk, -(-(job.computed + chunk) // self._size) - hits, prefill, finals)
        self._taken_over(job, now)
        return chunk

    def _taken_over(self, job: Job, now: int) -> None:
        """What was held for a call's agent is the call's own now."""
        agent = job.agent
        if agent.uploads:
            self._copies.taken(agent, job.arrived_ps, now)
        self._unpin(agent)

    # -- pins, and getting unstuck

    def _unpin(self, agent: AgentCache) -> None:
        self._copies.unpin(agent)
        self._pinned.pop(agent.name, None)

    def _release_expired_pins(self, now: int) -> None:
        for agent in [a for a in self._pinned.values() if a.pin_until_ps <= now]:
            self._unpin(agent)

    def _stuck(self) -> bool:
        """Nothing runs, nothing is on its way, and yet calls wait."""
        return self._flight is None and bool(self._waiting) and not self._running and self._link.next_end_ps is None

    def _starved(self) -> bool:
        """Nothing runs, and the calls that wait do not wait for a copy of their own."""
        if self._flight is not None or self._running or not self._waiting:
            return False
        return not any(job.state is State.LOADING or self._awaits_copy(job) for job in self._waiting.values())

    def _resolve(self, now: int) -> Step | None:
        """Get a stuck engine going: give up what is held ahead of time, then loaded calls' blocks, then the plan."""
        for agent in list(self._agents.values()):
            self._copies.cancel(agent, now)
            self._unpin(agent)
        if (step := self._schedule(now)) is not None or self._link.next_end_ps is not None:
            return step
        for job in reversed(list(self._loaded.values())):
            self._unload(job)
            if (step := self._schedule(now)) is not None or self._link.next_end_ps is not None:
                return step
        kept, self._plan, self._refused = self._plan, NATIVE, None
        step = self._schedule(now)
        self._plan, self._refused = kept, None
        if step is None and self._link.next_end_ps is None:
            job = next(iter(self._waiting.values()))
            raise EngineError(
                f"call {job.id!r}: {job.target} tokens do not fit into {self.gpu.blocks} blocks of {self._size}"
            )
        return step

    def _unload(self, job: Job) -> None:
        """A loaded call gives its blocks up; they stay cached until somebody needs the room."""
        assert job.hold is not None
        self._growth_blocks -= job.final_blocks - job.hold.blocks
        self.gpu.release(job.hold, job.agent.owner)
        job.hold = None
        job.state = State.WAITING
        job.computed = 0
        del self._loaded[job.id]

    # -- bookkeeping

    def _settle(self) -> None:
        """Bring the pool and the meter up to now, inside a stretch."""
        self._growth_blocks -= self._meter.settle(self._clock.now_ps, self._batch)

    def _now_s(self) -> float:
        return self._clock.now_ps / PS_PER_S

    def _log(self, now: int, prefill: dict[Job, int]) -> None:
        assert self._step_log is not None
        tokens = {job.id: prefill.get(job, 1) for job in self._running.values() if job in prefill or job.decoding}
        self._step_log(Scheduled(now, tokens, self.gpu.free, self.gpu.evicted))


def _by_order(job: Job) -> int:
    return job.order
