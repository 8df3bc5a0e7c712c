"""The engine in simulated time: when it acts, what it takes in, what it reports.

It acts at *boundaries*: the end of a step, or an arrival at an idle engine. There it takes in what has ended, asks the
policy if there is news, and schedules (see `scheduler`). What it schedules is a *stretch*: iterations in which nothing
changes. So boundaries are rare. News inside a stretch cuts it short, at the first end of an iteration that follows.

With asynchronous scheduling vLLM schedules one step ahead of the one that runs. So an arrival waits for the end of two
steps, the running one and the scheduled one, and what a call frees can be used one schedule later.

`one_by_one` makes every stretch a single iteration. The facts are the same; a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...policies.controller import Controller
from ...policies.execution.carry_out import carry_out, wake_time
from ...policies.interface import Hits
from ...traces import events as e
from ...traces.apps import AgentId, AppId, Call, CallId
from ...traces.events import Fact
from ..machine.machine import Machine
from ..machine.timing import Timing, seconds
from .clock import BOUNDARY, PICOSECONDS, SCHEDULE, At, Clock
from .memory.block_pool import BlockPool, MakePool
from .memory.context_tree import Context, ContextTree
from .memory.copies import Copies
from .memory.link import Link
from .memory.occupancy import OccupancyMeter
from .requests import EngineCall, SimAgent
from .scheduling.scheduler import Scheduler
from .scheduling.step import Step, StepLog
from .starvation import Starvation


class Flight:
    """One step that runs now (asynchronous scheduling only)."""

    __slots__ = ("end_ps", "finished", "firsts")

    def __init__(self, end_ps: int, firsts: list[EngineCall], finished: list[EngineCall]) -> None:
        self.end_ps = end_ps
        self.firsts = firsts
        self.finished = finished


class Engine:
    """One simulated vLLM engine. The world tells it of applications, arrivals and tools; it calls `finished`."""

    def __init__(
        self,
        clock: Clock,
        machine: Machine,
        timing: Timing,
        tree: ContextTree,
        finished: Callable[[Call], None],
        *,
        pool: MakePool = BlockPool,
        link: Callable[[Timing], Link] = Link,
        one_by_one: bool = False,
        step_log: StepLog | None = None,
    ) -> None:
        self._clock = clock
        self._machine = machine
        self._client_ps = timing.client_ps
        self._block_tokens = machine.block_tokens
        self._finished = finished
        self._tree = tree
        self._link = link(timing)
        if len(machine.kv_groups) == 1:
            self.gpu = pool(tree, machine.gpu_blocks, 0)
            self.host = pool(tree, machine.host_blocks, 1)
            self._copies = Copies(self.gpu, self.host, self._link, self._block_tokens)
            self._scheduler = Scheduler(
                machine, timing, self.gpu, self.host, self._copies, one_by_one=one_by_one, step_log=step_log
            )
            self._meter = OccupancyMeter(self.gpu)
        else:
            from .hybrid.parts import hybrid_parts  # most machines have one group, and start without it

            parts = hybrid_parts(machine, timing, tree, self._link, one_by_one=one_by_one, step_log=step_log)
            self.gpu, self.host, self._copies, self._scheduler, self._meter = parts
        self._agents: dict[AgentId, SimAgent] = {}
        self._latest: dict[AppId, SimAgent] = {}  # of each application, the agent that came last
        self._starvation = Starvation(clock, self._scheduler, self._copies, self._link, self._agents, self._schedule)
        self._wake_ps: int | None = None
        self._flight: Flight | None = None
        self._step: Step | None = None
        self._base_ps = 0  # the stretch's first boundary, or (asynchronous) the end of the step before it
        self._boundary: int | None = None  # the number of the next one
        self._boundaries_set = 0
        self._boundary_ps = 0
        self._scheduling = False
        self._lag = 1 if machine.asynchronous else 0
        self._controller: Controller
        self._report: Callable[[Fact], None]

    def start(self, controller: Controller) -> None:
        """Report the engine's limits; facts go to the controller from now on."""
        self._controller = controller
        self._report = self._copies.report = controller.hear
        self._scheduler.report = self._scheduler.running.report = controller.hear
        machine = self._machine
        self._report(
            e.RunStarted(
                self._now_s(), self._block_tokens, machine.gpu_blocks, machine.host_blocks, machine.block_bytes
            )
        )

    @property
    def iterations(self) -> int:
        return self._scheduler.batch.iteration

    # -- what the world does

    def app_started(self, app: AppId) -> None:
        self._news(e.AppStarted(self._now_s(), app))

    def app_finished(self, app: AppId) -> None:
        """None of its agents comes back."""
        self._settle()
        self._report(e.AppFinished(self._now_s(), app))
        free = self.gpu.num_free_blocks
        for agent in self._agents_of(app):
            agent.gone = True
            self.gpu.set_stalled(agent.owner, False)
            self._copies.cancel(agent, self._clock.now_ps)
            self._copies.unpin(agent)
            self._copies.forget(agent, self._clock.now_ps)
            del self._agents[agent.name]
        self._latest.pop(app, None)
        if self.gpu.num_free_blocks > free:
            self._cut(self._clock.now_ps)  # somebody may have waited for this room
        self._cut_for_news()

    def arrive(self, call: Call, request: e.Request, context: Context) -> None:
        """A call arrives; `context` is its prompt and its answer, and lives as long as the call's application."""
        agent = self._agents.get(call.agent)
        if agent is None:
            agent = SimAgent(call.agent, self._latest.get(call.app))
            self._agents[call.agent] = self._latest[call.app] = agent
        self._scheduler.waiting.add(EngineCall(call, agent, context, self._block_tokens, self._clock.now_ps))
        if agent.owner.stalled:
            self._settle()
            self.gpu.set_stalled(agent.owner, False)
        self._report(e.CallArrived(self._now_s(), request))
        if self._boundary is None:
            self._act_at(self._clock.now_ps)
        elif self._controller.due or self._scheduler.heeds_arrivals:
            self._cut(self._clock.now_ps)

    def tool_started(self, call: CallId, agent: AgentId) -> None:
        self._settle()
        self.gpu.set_stalled(self._agents[agent].owner, True)
        self._news(e.ToolStarted(self._now_s(), call, agent))

    def tool_returned(self, call: CallId, agent: AgentId) -> None:
        self._settle()
        self.gpu.set_stalled(self._agents[agent].owner, False)
        self._news(e.ToolReturned(self._now_s(), call, agent))

    def stop(self) -> None:
        """The last application has ended."""
        self._settle()
        self._report(self._meter.reading(self.iterations))

    # -- what the policy asks

    def hits(self, call: CallId) -> Hits:
        """What is cached of a waiting call's prompt."""
        return self._scheduler.hits(call)

    def shared_blocks(self, call: CallId) -> int:
        """Blocks of a waiting call's prompt that running calls hold."""
        return self._scheduler.shared_blocks(call)

    # -- boundaries

    def _act_at(self, at_ps: int) -> None:
        self._boundary_ps = at_ps
        self._boundaries_set += 1
        self._boundary = self._boundaries_set
        At(self._clock, at_ps - self._clock.now_ps, BOUNDARY, self._on_boundary, self._boundaries_set)

    def _on_boundary(self, number: int) -> None:
        if number != self._boundary:
            return  # a cut took its place
        self._boundary = None
        now_ps = self._clock.now_ps
        self._scheduling = True
        self._commit(now_ps)
        if self._link.under_way:
            self._link.finish(now_ps)
        if self._copies.pinned:
            self._copies.unpin_expired(now_ps)
        if self._client_ps or not self._clock.has_more_now():
            self._schedule_at(now_ps)
        else:
            At(self._clock, 0, SCHEDULE, self._schedule_at, now_ps)
            self._boundary = number  # arrivals until then need no boundary of their own

    def _commit(self, now_ps: int) -> None:
        """Take in the iterations that were scheduled up to now, and report what the steps that ended brought."""
        flight, step = self._flight, self._step
        taken = self._meter.finish(now_ps, 0 if step is None else step.iterations, self._scheduler.batch)
        self._scheduler.running.growth_blocks -= taken
        self._step = None
        if flight is not None:
            self._flight = None
            if flight.firsts or flight.finished:
                self._outcomes(flight.firsts, flight.finished, now_ps)
        if step is None:
            return
        firsts, finished = self._scheduler.advance(step)
        if self._lag:
            end_ps = now_ps + step.pace.iteration_ps(step.iterations - 1)
            self._flight = Flight(end_ps, firsts, finished)
        elif firsts or finished:
            self._outcomes(firsts, finished, now_ps)

    def _outcomes(self, firsts: list[EngineCall], finished: list[EngineCall], now_ps: int) -> None:
        """A step ended: first tokens and finished calls, in the order in which they were scheduled."""
        at_s = seconds(now_ps)
        calls: Collection[EngineCall] = firsts or finished
        begun: Collection[EngineCall] = firsts
        ended: Collection[EngineCall] = finished
        if len(firsts) + len(finished) > 1:
            begun, ended = set(firsts), set(finished)
            calls = sorted(begun | ended, key=_by_order)
        for call in calls:
            if call in begun and not call.had_first_token:
                call.had_first_token = True
                self._report(e.FirstToken(at_s, call.id))
            if call in ended:
                self._scheduler.finish(call)
                self._report(e.CallFinished(at_s, call.id, call.output_tokens, call.agent.context_blocks))
                self._finished(call.trace_call)

    # -- scheduling

    def _schedule_at(self, now_ps: int) -> None:
        self._boundary = None
        self._scheduling = True
        controller = self._controller
        if self._scheduler.write_through.ended:
            self._scheduler.store_ended(now_ps, self._next_start_ps(now_ps))
        if controller.due or (self._wake_ps is not None and self._wake_ps <= now_ps):
            self._ask(now_ps)
        step = self._schedule(now_ps)
        if step is None and self._flight is None and self._scheduler.is_idle():
            step = self._resolve(now_ps)
        if step is not None and self._lag and self._flight is None:
            # nothing runs: this step starts at once, and the next is scheduled behind it
            firsts, finished = self._scheduler.advance(step)
            self._flight = Flight(now_ps + step.pace.first_ps, firsts, finished)
            step = self._schedule(now_ps)
        self._scheduling = False
        self._go(step, now_ps)

    def _schedule(self, now_ps: int) -> Step | None:
        flight = self._flight
        single = self._lag > 0 if flight is None else bool(flight.firsts or flight.finished)
        start_ps = self._copies.next_step_ps = self._next_start_ps(now_ps)
        self._scheduler.running.step_in_flight = flight is not None
        return self._scheduler.schedule(now_ps, start_ps, single)

    def _next_start_ps(self, now_ps: int) -> int:
        """When the step that is scheduled now starts: when the running one ends."""
        return now_ps if self._flight is None else self._flight.end_ps

    def _go(self, step: Step | None, now_ps: int) -> None:
        """Set the next boundary."""
        self._step = step
        flight = self._flight
        base_ps = self._base_ps = self._next_start_ps(now_ps)
        if step is None:
            self._meter.busy = flight is not None
            if flight is not None:
                self._act_at(base_ps)
            else:
                self._sleep(now_ps)
            return
        self._meter.busy = True
        if step.iterations == 1:
            self._act_at(base_ps if self._lag else base_ps + step.pace.first_ps)
            return
        end_ps = base_ps + step.pace.total_ps(step.iterations - self._lag)
        alarm_ps = self._alarm(now_ps)
        if alarm_ps is not None and alarm_ps < end_ps:
            end_ps = self._cut_stretch(step, alarm_ps)
        self._meter.begin(base_ps, step.pace, self._lag)
        self._act_at(end_ps)

    def _sleep(self, now_ps: int) -> None:
        """Nothing to run: act again when an alarm goes off, or when something happens."""
        alarm_ps = self._next_timer()
        if alarm_ps is not None:
            self._act_at(max(now_ps, alarm_ps))

    def _alarm(self, now_ps: int) -> int | None:
        """When to act at the latest: at once, if there is news that the policy has not seen."""
        return now_ps if self._controller.due else self._next_timer()

    def _next_timer(self) -> int | None:
        """When something happens of which the world does not tell: the end of a copy or a pin, the policy's wake-up."""
        at = self._link.next_end_ps if self._link.under_way else None
        if self._wake_ps is not None and (at is None or self._wake_ps < at):
            at = self._wake_ps
        if self._copies.pinned:
            unpin = self._copies.next_unpin_ps()
            at = unpin if at is None else min(at, unpin)
        return at

    def _cut_stretch(self, step: Step, at_ps: int) -> int:
        """Shorten a stretch to its first boundary at or after a time. When that is."""
        boundaries = max(1, step.pace.covering(at_ps - self._base_ps) + self._lag)
        step.iterations = min(step.iterations, boundaries)
        return self._base_ps + step.pace.total_ps(step.iterations - self._lag)

    def _cut(self, at_ps: int) -> None:
        """Something happened: act at the first boundary from now on."""
        if self._scheduling or self._boundary is None:
            return
        if self._step is not None and self._step.iterations > 1:
            end_ps = self._cut_stretch(self._step, at_ps)
            if end_ps < self._boundary_ps:
                self._act_at(end_ps)
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

    def _ask(self, now_ps: int) -> None:
        """Ask the policy, and do at once what its plan wants done at once."""
        plan = self._controller.poll(
            e.Polled(
                seconds(now_ps),
                self.iterations,
                self.gpu.num_free_blocks,
                self._scheduler.running.growth(),
                self.host.num_free_blocks,
                self._machine.max_running,
            )
        )
        self._scheduler.plan = plan
        self._wake_ps = wake_time(plan, now_ps, PICOSECONDS)
        if plan.moves or self._copies.pinned:
            self._copies.next_step_ps = self._next_start_ps(now_ps)
            carry_out(plan, self._agents, self._copies, now_ps, PICOSECONDS)

    def _resolve(self, now_ps: int) -> Step | None:
        """Calls wait and nothing runs."""
        return self._starvation.end(now_ps)

    # -- bookkeeping

    def _settle(self) -> None:
        """Bring the pool and the meter up to now, inside a stretch."""
        self._scheduler.running.growth_blocks -= self._meter.settle(self._clock.now_ps, self._scheduler.batch)

    def _agents_of(self, app: AppId) -> list[SimAgent]:
        """An application's agents, as they came."""
        agents = []
        agent = self._latest.get(app)
        while agent is not None:
            agents.append(agent)
            agent = agent.before
        agents.reverse()
        return agents

    def _now_s(self) -> float:
        return seconds(self._clock.now_ps)


def _by_order(call: EngineCall) -> int:
    return call.admission
