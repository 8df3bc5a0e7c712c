"""vLLM's steps between their schedule and their outcome, and what a step computes.

An asynchronous engine schedules a step before the one before has ended, and a run may end in between: steps belong to
the engine, and each reports to the run that it began in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...policies.interface import NATIVE, Plan
from ...traces import events as e
from ...traces.events import Fact
from .memory.copies import Copies
from .session import RunClock, Session, UnloadingScheduler
from .vllm_surface import VllmOutputs, VllmRequest, VllmSchedulerOutput


class Sums(NamedTuple):
    """The four sums that a machine's step time is made of: see `traces.events.Stepped`."""

    prefill_tokens: int
    attended_tokens: int
    decode_calls: int
    context_tokens: int


NOTHING = Sums(0, 0, 0, 0)


class StepUnderWay:
    """A step under way. `report` is that of the run that it began in, if that wants to hear of steps."""

    __slots__ = ("computes", "from_s", "given_s", "outcomes", "output", "report", "sums")

    def __init__(
        self,
        output: VllmSchedulerOutput,
        computes: bool,
        from_s: float,
        report: Callable[[Fact], None] | None,
        sums: Sums,
        given_s: float | None,
        outcomes: int,
    ) -> None:
        self.output = output  # by which the step is known again
        self.computes = computes
        self.from_s = from_s
        self.report = report
        self.sums = sums
        self.given_s = given_s  # when the workers were given it, if they had no other one
        self.outcomes = outcomes  # that anything came with, before it was scheduled


class Steps:
    """An engine's steps under way. `report` is that of the run under way, if it wants to hear of steps."""

    def __init__(self, scheduler: UnloadingScheduler, clock: RunClock) -> None:
        self.report: Callable[[Fact], None] | None = None
        self.schedules_in_vain = 0  # the latest ones, that started nobody though calls wait and none runs
        self._scheduler = scheduler
        self._clock = clock
        self._under_way: deque[StepUnderWay] = deque()
        self._computing = 0  # of them
        self._outcomes = 0  # that anything came with: tokens or the ends of copies
        self._came_s = 0.0  # the latest outcome
        self._ran = 0  # calls, when it came
        self._acknowledged: dict[int, float | None] = {}  # by job, seconds that it took

    @property
    def computing(self) -> bool:
        """Whether a step is under way that computes something."""
        return bool(self._computing)

    def boundary(self, session: Session | None) -> Plan:
        """vLLM is about to schedule. The plan that holds for this step."""
        if session is not None:
            session.boundary(self.schedules_in_vain, computing=self.computing)
            return session.laid
        if self.schedules_in_vain > 1:  # a run that ended left loaded requests, and vLLM alone takes no blocks away
            self._scheduler.unload_last()
        return NATIVE

    def scheduled(self, output: VllmSchedulerOutput, idle_calls: bool, session: Session | None, copies: Copies) -> None:
        """vLLM has scheduled a step. `idle_calls`: whether calls wait and none runs."""
        if session is not None:
            session.scheduled(output, computing=self.computing)
        self._begin(output, 0.0 if session is None else session.now_s)
        in_vain = idle_calls and not self.computing
        if in_vain and copies.under_way:
            in_vain = False  # whose end may let somebody start
            if session is not None:
                session.wait_for_copies()
        self.schedules_in_vain = self.schedules_in_vain + 1 if in_vain else 0

    def _begin(self, output: VllmSchedulerOutput, from_s: float) -> None:
        report, computes = self.report, bool(output.total_num_scheduled_tokens)
        sums, given_s = NOTHING, None
        if computes and report is not None:
            sums = sums_of(output, self._scheduler.requests)
            given_s = None if self._computing else self._clock.now_s()
        self._computing += computes
        self._under_way.append(StepUnderWay(output, computes, from_s, report, sums, given_s, self._outcomes))

    def acknowledge(self, jobs: Mapping[int, float | None]) -> None:
        """The workers have done these copies, in so many seconds, if known; they are booked at the end of the step."""
        self._acknowledged.update(jobs)

    def came(self) -> None:
        """A step's outcome came from the workers, and vLLM is about to take it in."""
        self._ran = len(self._scheduler.running)
        if self.report is not None:
            self._came_s = self._clock.now_s()

    def stepped(
        self,
        output: VllmSchedulerOutput,
        outputs: Mapping[int, VllmOutputs],
        session: Session | None,
        copies: Copies,
    ) -> None:
        """vLLM has taken a step's outcome in: first come its tokens, then its own end, then those of copies."""
        if session is not None:
            session.tick(computing=self.computing)
        at_s = self._clock.now_s() if session is None else session.now_s
        step = self._landed(output)
        if session is not None and output.total_num_scheduled_tokens:
            scheduler = self._scheduler
            # what streams its prompt stops to run without having finished
            ended = len(scheduler.running) < self._ran or bool(scheduler.finished_req_ids)
            session.calls.came(outputs, ended, at_s)
        jobs, self._acknowledged = self._acknowledged, {}
        self._end(step, at_s, copies_ended=bool(jobs))
        copies.finish(jobs, at_s)
        if session is not None:
            session.occupancy.look(copies.held_blocks)

    def _landed(self, output: VllmSchedulerOutput) -> StepUnderWay | None:
        """The step that this was, which is no longer under way.

        Steps end in their order; of one that failed, no outcome comes.
        """
        while self._under_way:
            step = self._under_way.popleft()
            self._computing -= step.computes
            if step.output is output:
                return step
        return None

    def _end(self, step: StepUnderWay | None, at_s: float, copies_ended: bool) -> None:
        """Report a step whose outcome was taken in.

        One that computes nothing is reported if that says what came first: copies end with it, or something came
        between its begin and its end. What its schedule gave up, pins whose time was over, it gave up before that.
        """
        if step is None:
            return
        if step.report is not None and (step.computes or copies_ended or step.outcomes < self._outcomes):
            alone = step.given_s is not None and not self._computing  # else the workers had others as well
            worker_s = self._came_s - step.given_s if alone and step.given_s is not None else None
            step.report(e.Stepped(at_s, step.from_s, *step.sums, worker_s))
        self._outcomes += step.computes or copies_ended


def sums_of(output: VllmSchedulerOutput, requests: Mapping[str, VllmRequest]) -> Sums:
    """The sums of vLLM's `SchedulerOutput`, right after it was scheduled."""
    prefill_tokens = attended_tokens = decode_calls = context_tokens = 0
    for request_id, tokens in output.num_scheduled_tokens.items():
        request = requests[request_id]
        before = request.num_computed_tokens - tokens  # scheduling has counted them already
        if tokens == 1 and before >= request.num_prompt_tokens:
            decode_calls += 1
            context_tokens += before
        else:
            prefill_tokens += tokens
            attended_tokens += tokens * before + tokens * (tokens + 1) // 2
    return Sums(prefill_tokens, attended_tokens, decode_calls, context_tokens)
