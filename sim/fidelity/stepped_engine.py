"""The engine of a rerun: its clock, its facts and its steps follow the times of a record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ...policies.controller import Controller
from ...policies.interface import Plan
from ...traces import events as e
from ...traces.apps import Call
from ...traces.events import Fact
from ..engine.clock import Clock
from ..engine.engine import Engine, Flight
from ..engine.memory.context_tree import ContextTree
from ..engine.memory.link import Link
from ..engine.requests import EngineCall
from ..engine.scheduling.step import Step
from ..machine.machine import Machine
from ..machine.timing import Timing, ps


class SetClock(Clock):
    """A clock that is set."""

    def set(self, at_s: float) -> None:
        """It is that late now; what was reported late happens now."""
        self.now_ps = max(self.now_ps, ps(at_s))


class StampedController(Controller):
    """Gives every fact the very time of the record that it belongs to, where the clock has whole picoseconds."""

    at_s = 0.0

    def hear(self, fact: Fact) -> None:
        super().hear(fact._replace(at_s=self.at_s))

    def poll(self, gauges: e.Polled) -> Plan:
        return super().poll(gauges._replace(at_s=self.at_s))


class _OpenStep(NamedTuple):
    """A step that was scheduled and whose outcome has not come."""

    computed: e.Stepped
    firsts: list[EngineCall]
    finished: list[EngineCall]


class SteppedEngine(Engine):
    """An engine whose boundaries somebody else sets: `schedule` a step, later take in its `outcome`.

    Between the two of one step there may be those of others, in any order that an engine has.
    """

    def __init__(
        self,
        clock: Clock,
        machine: Machine,
        timing: Timing,
        tree: ContextTree,
        finished: Callable[[Call], None],
        *,
        link: Callable[[Timing], Link] = Link,
    ) -> None:
        super().__init__(clock, machine, timing, tree, finished, link=link, one_by_one=True)
        self._lag = 0  # no step is scheduled that nobody asked for
        self._open: deque[_OpenStep] = deque()
        self.stuck = False  # calls wait, nothing runs and nothing was scheduled; nothing was given up for them yet

    def _act_at(self, at_ps: int) -> None:
        """Whoever plays the record knows when."""

    def asks(self, now_ps: int) -> bool:
        """Whether the policy is asked before the next step."""
        return self._controller.due or (self._wake_ps is not None and self._wake_ps <= now_ps)

    @property
    def open_steps(self) -> int:
        """How many steps are under way."""
        return len(self._open)

    def unpin_until(self, at_ps: int) -> None:
        """Pins whose time is over before then are given up when it is over, of which no record tells."""
        copies = self._copies
        while copies.pinned and (now_ps := max(self._clock.now_ps, copies.next_unpin_ps())) < at_ps:
            copies.unpin_expired(now_ps)

    def schedule(self, at_s: float) -> None:
        """The clock has come to `at_s`, if with whole picoseconds only."""
        now_ps = self._clock.now_ps
        self._copies.unpin_expired(now_ps)
        self._scheduler.running.lag = min(1, len(self._open))
        self._schedule_at(now_ps)
        self._scheduled(at_s)

    def get_unstuck(self, at_s: float) -> None:
        """What a live engine does the next time that it schedules, if it has not heard anything new by then."""
        self.stuck = False
        now_ps = self._clock.now_ps
        self._go(super()._resolve(now_ps), now_ps)
        self._scheduled(at_s)

    def _schedule(self, now_ps: int) -> Step | None:
        if self.stuck:  # something new came first, and the policy was asked
            self.stuck = False
            self._starvation.release_held()
        return super()._schedule(now_ps)

    def _resolve(self, now_ps: int) -> Step | None:
        if self._link.under_way:
            return super()._resolve(now_ps)
        self.stuck = True
        return None

    def _scheduled(self, at_s: float) -> None:
        """Open the step that was just scheduled, if there is one."""
        now_ps = self._clock.now_ps
        step, self._step = self._step, None
        if step is not None:
            computed = self._computed(step)._replace(from_s=at_s)
            firsts, finished = self._scheduler.advance(step)
            self._open.append(_OpenStep(computed, firsts, finished))
            self._flight = Flight(now_ps, firsts, finished)

    def outcome(self) -> e.Stepped:
        """The oldest of the open steps ended. What it computed, at no time."""
        ended = self._open.popleft()
        now_ps = self._clock.now_ps
        self._meter.finish(now_ps, 0, self._scheduler.batch)
        if not self._open:
            self._flight = None
        self._outcomes(ended.firsts, ended.finished, now_ps)
        return ended.computed

    def _computed(self, step: Step) -> e.Stepped:
        """What a step computes that was just scheduled.

        A single token behind all of a prompt is a decoding one for vLLM, though a preempted call comes back with it.
        """
        batch = self._scheduler.batch
        chunks = [
            (n, call.num_computed_tokens)
            for call, n in step.prefill_tokens.items()
            if n > 1 or call.num_computed_tokens < call.prompt_tokens
        ]
        decoding = [
            call.num_computed_tokens
            for call, n in step.prefill_tokens.items()
            if n == 1 and call.num_computed_tokens >= call.prompt_tokens
        ]
        return e.Stepped(
            0.0,
            0.0,
            sum(tokens for tokens, _ in chunks),
            sum(tokens * before + tokens * (tokens + 1) // 2 for tokens, before in chunks),
            batch.num_calls + len(decoding),
            batch.context_tokens + sum(decoding),
        )
