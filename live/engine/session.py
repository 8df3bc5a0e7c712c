"""A run: its policy and the plan that holds, its clock, and all that is known of its applications and calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from math import inf, nextafter
from typing import Protocol

from ...policies.boundary import told
from ...policies.controller import Controller, Sink
from ...policies.execution.carry_out import SOONEST_S, TimeUnit, carry_out, wake_time
from ...policies.execution.starvation import make_way, release_held, without_choices
from ...policies.interface import NATIVE, Plan, Policy
from ...policies.run_settings import RunSettings
from ...traces import events as e
from ...traces.errors import FactError, PolicyError, PolicyFault
from ...traces.events import Fact
from .apps import Apps
from .calls import Calls
from .grouped_prompt_cache import prompt_cache
from .memory.copies import Copies
from .memory.gpu_pool import GpuPool
from .memory.occupancy import Occupancy
from .stores import Stores
from .vllm_surface import VllmScheduler, VllmSchedulerOutput

logger = logging.getLogger(__name__)

SECONDS = TimeUnit(SOONEST_S, float)


class UnloadingScheduler(VllmScheduler, Protocol):
    """vLLM's scheduler with what `live.scheduler` adds."""

    def unload_last(self) -> bool: ...


class RunClock:
    """Seconds since the latest run began, from a monotonic clock that `read` reads."""

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        self.read = read
        self.restart()

    def restart(self) -> None:
        """A run begins."""
        self._start_s, self.start_wall_s = self.read(), time.time()

    def now_s(self) -> float:
        return self.read() - self._start_s


class Session:
    """One run, from its begin to its end. What happens afterwards, nobody hears of.

    `now_s` is the time of the latest boundary or outcome, `steps` counts those that compute something.
    """

    def __init__(
        self,
        scheduler: UnloadingScheduler,
        gpu: GpuPool,
        copies: Copies,
        clock: RunClock,
        settings: RunSettings,
        policy: Policy,
        sinks: Sequence[Sink],
        journal: Sink | None,
    ) -> None:
        self._scheduler = scheduler
        self._gpu = gpu
        self._copies = copies
        self._clock = clock
        self.settings = settings
        self.errors: list[str] = []  # what the policy raised
        self.now_s = 0.0
        self.steps = 0
        self._boundary_s = -1.0  # the latest; none yet
        self._wake_s: float | None = None
        self.due = False  # whether there is news that is worth a step: what a plan itself brings about is not
        self._idle = True  # whether nothing was scheduled last, and nothing is under way
        self._open = True
        self._plan: Plan = NATIVE  # the policy's latest
        self.laid: Plan = NATIVE  # what holds for this step
        self.apps = Apps(copies, self.report, settings.app_timeout_s, settings.session_timeout_s)
        self.stores = Stores(copies, gpu.block_tokens)
        self.calls = Calls(scheduler, gpu.rules, copies, self.apps, self.stores, self.report)
        self.prompts = prompt_cache(scheduler, gpu, copies, self.calls.by_id, self.stores)
        self.occupancy = Occupancy(gpu)
        self.controller = Controller(policy, settings.costs, self.prompts, sinks, journal)

    def report(self, fact: Fact) -> None:
        """Something happened. What comes after the end is of a copy or a step that outlived its run."""
        if self._open:
            try:
                self.controller.hear(fact)
            except FactError as error:  # a bug of ours; clients get their answers all the same
                self._give_up(error)
            self.due = self.controller.due

    def begin(self, host_blocks: int, block_bytes: int) -> None:
        """Report the start. It is no news that is worth a step."""
        self.report(e.RunStarted(0.0, self._gpu.block_tokens, self._gpu.blocks, host_blocks, block_bytes))
        self.due = False

    def end(self, *, cut_off: bool, computing: bool) -> None:
        """Give up all that is held: see `Adapter.end`."""
        agents = list(self.apps.agents.values())
        try:
            self.tick(computing=computing)
            for call in list(self.calls.by_id.values()):
                self.calls.abort(call, self.now_s)
            for app in () if cut_off else list(self.apps.by_name):
                self.apps.end(app, self.now_s)
            self.report(self.occupancy.reading(self.steps))
        finally:
            self._open = False
            for agent in agents:  # has been done, unless somebody raised
                agent.gone = True
                self._copies.cancel(agent, self.now_s)
                self._copies.unpin(agent)
                self._copies.forget(agent, self.now_s)

    # -- time

    def tick(self, *, computing: bool) -> None:
        """It is now. `computing`: whether a step was under way since the last tick."""
        self.now_s = self._clock.now_s()
        self.occupancy.advance(self.now_s, busy=computing)

    def news_s(self, due_s: float, now_s: float) -> float:
        """When something happened that was due then and is told now: after the latest boundary, which missed it."""
        return min(max(0.0, due_s, nextafter(self._boundary_s, inf)), max(now_s, self._boundary_s))

    def wake_s(self) -> float | None:
        """When the engine must be stepped although it has no request."""
        if not self._copies.pinned:
            return self._wake_s
        first_s = self._copies.next_unpin_s()
        return first_s if self._wake_s is None else min(first_s, self._wake_s)

    def has_work(self) -> bool:
        """Whether the engine must be stepped now although it may have no request."""
        if self.stores.ended or (self.due and not self.errors):
            return True
        wake_s = self.wake_s()
        return False if wake_s is None else wake_s <= self._clock.now_s()

    # -- the plan

    def boundary(self, schedules_in_vain: int, *, computing: bool) -> None:
        """vLLM is about to schedule: take in what is due, ask the policy, and do at once what it wants done at once."""
        self.tick(computing=computing)
        now_s = self._boundary_s = self.now_s
        if self._copies.pinned:
            self._copies.unpin_expired(now_s)
        self.apps.end_silent(now_s)
        self.stores.store_ended(now_s)
        due = self.due or (self.controller.due and not self._idle)
        if not self.errors and (due or (self._wake_s is not None and self._wake_s <= now_s)):
            self._ask(now_s)
        starving = schedules_in_vain > 0 and not self._copies.under_way
        self.laid = without_choices(self._plan) if starving and make_way(schedules_in_vain, self) else self._plan
        self.occupancy.sample(now_s, self.apps.stalled)

    def _ask(self, now_s: float) -> None:
        growth_blocks, max_running = self.calls.growth_blocks(), self._scheduler.max_num_running_reqs
        gauges = e.Polled(now_s, self.steps, self._gpu.free, growth_blocks, self._copies.host_free, max_running)
        try:
            plan = self.controller.poll(gauges)
        except PolicyError as error:
            self._give_up(error)
            return
        self._hold(plan)
        self._wake_s = wake_time(plan, now_s, SECONDS)
        if plan.moves or self._copies.pinned:
            try:
                carry_out(plan, self.apps.agents, self._copies, now_s, SECONDS)
            except Exception as error:  # whoever is to blame, clients get their answers
                logger.exception("a plan could not be carried out")
                self._give_up(PolicyFault(f"a plan at {now_s:.6f} s could not be carried out: {told(error)}"))
        self.due = False

    def _hold(self, plan: Plan) -> None:
        self._plan = plan
        self.stores.extent = plan.write_through

    def _give_up(self, error: PolicyError | FactError) -> None:
        """The policy did something wrong, or knows something wrong: say so once, and go on as vLLM would."""
        self.controller.give_up()
        self.errors.append(str(error))
        logger.error("%s; the engine goes on without it", error)
        self._hold(NATIVE)
        self._wake_s = None
        self.release_held()

    def release_held(self) -> None:
        """Give up the pins and uploads of all agents."""
        release_held(self.apps.agents.values(), self._copies, self.now_s)

    def admits_anybody(self) -> bool:
        """Whether the plan admits a call that waits, when none runs."""
        admit = self._plan.admit
        return admit is None or any(call in self.calls.by_id for call in admit)

    def unload_last(self) -> bool:
        """The call that was loaded last gives up its blocks, which stay cached. False if there is none."""
        return self._scheduler.unload_last()

    # -- after the schedule

    def scheduled(self, output: VllmSchedulerOutput, *, computing: bool) -> None:
        """vLLM has scheduled a step. `computing`: whether one is under way already."""
        self._idle = not output.total_num_scheduled_tokens and not computing
        self.due = False  # the policy is asked at the next step of a busy engine anyway
        self.stores.store_computed(output.num_scheduled_tokens, self.now_s)
        self.occupancy.look(self._copies.held_blocks)
        self.steps += bool(output.total_num_scheduled_tokens)

    def wait_for_copies(self) -> None:
        """No call starts before a copy ends. If none of those brings blocks back, no more are held till a call ends."""
        calls = self.calls.by_id.values()
        if not any(call.loading or self._copies.uploading(call.agent) for call in calls):
            self._copies.refusing = True

    def forget_contents(self) -> None:
        """Nothing that was copied or cached has any value any more."""
        for agent in self.apps.agents.values():
            self._copies.cancel(agent, self.now_s)
            self._copies.unpin(agent)
            self._copies.forget(agent, self.now_s)
            agent.context_blocks = 0
        for call in self.calls.by_id.values():
            call.stored = 0
