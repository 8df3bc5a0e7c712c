"""A recorded run once more, in the simulator: does its engine do what the recorded one did?

The world is the record's: applications, arrivals and tools come when they came; each step begins and ends, and each
copy ends, when it did. What the engine does with that is the simulator's own: whom it admits and preempts, what it
finds cached, what a step computes, what the policy is told and wants. Each of these is held against the record.

Each step is recorded with the time at which it was scheduled and that of its outcome. So of an asynchronous engine,
which schedules a step while another runs, it is known in which of the two something was decided. Records are taken one
at a time: memory does not grow with the run, unless the two part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf, nextafter
from pathlib import Path

from ...policies.costs import LinearCosts
from ...policies.interface import Costs, Policy
from ...policies.registry import load_policy
from ...policies.replay.replay import setup_of
from ...traces import events as e
from ...traces.apps import Application, Call, CallId
from ...traces.errors import EngineError, PolicyError, TraceError
from ...traces.events import Fact
from ...traces.format.events_file import Record, read_events
from ...traces.questions import as_now_recorded
from ..engine.memory.context_tree import ContextTree
from ..engine.memory.link import Link
from ..machine.machine import Machine
from ..machine.timing import Timing, ps
from .agreement import COMPARED, Agreement, Tally
from .record_steps import (
    OF_THE_POLICY,
    SCHEDULING,
    CopyEnd,
    ImpossibleRecord,
    StepRecords,
    World,
    behind_finished,
    computes,
    step_records,
)
from .recorded_link import RecordedLink
from .recorded_world import RecordedWorld, WorldMismatch
from .stepped_engine import SetClock, StampedController, SteppedEngine


def play_recorded(
    path: str | Path, applications: Iterable[Application], machine: Machine, policy: str | None = None
) -> Agreement:
    """Play an events file in the simulator. `applications` are those that were played, with their arrivals in order.

    Of the machine only the limits of a step count; memory is as recorded. `policy` is the recorded one unless it is
    given; the file may name a registered one only. Raises `TraceError` if the file is none, of other applications, or
    tells what cannot be, and `PolicyError` if there is no such policy.
    """
    setup, records = setup_of(path, read_events(path), policy, None, None)
    fresh = load_policy(setup.policy, seed=setup.seed, registered_only=policy is None)
    try:
        return play_records(records, fresh, LinearCosts(**setup.costs._asdict()), applications, machine)
    except ImpossibleRecord as problem:
        raise TraceError(f"{path}: {problem}") from None


def play_records(
    records: Iterable[Record], policy: Policy, costs: Costs, applications: Iterable[Application], machine: Machine
) -> Agreement:
    """The same for records that are at hand, of a run under this policy with these beliefs."""
    coming = as_now_recorded(records)
    started = next((record for record in coming if not isinstance(record, e.Began)), None)
    if not isinstance(started, e.RunStarted):
        what = "nothing" if started is None else type(started).__name__
        raise ImpossibleRecord(f"the record holds no RunStarted before all else: got {what}")
    run = Rerun(with_memory(machine, started), policy, costs, applications)
    run.play(started, coming)
    return run.agreement


def with_memory(machine: Machine, started: e.RunStarted) -> Machine:
    """The machine with the memory that a recorded engine had."""
    if not started.block_tokens:
        raise ImpossibleRecord("RunStarted: block_tokens: expected 1 or more, got 0")
    return replace(
        machine,
        gpu_blocks=started.gpu_blocks,
        block_tokens=started.block_tokens,
        kv_bytes_per_token=started.block_bytes // started.block_tokens,
        host_gib=started.host_blocks * started.block_bytes / 2**30,
    )


class Rerun:
    """One record under way."""

    def __init__(self, machine: Machine, policy: Policy, costs: Costs, applications: Iterable[Application]) -> None:
        self._clock = SetClock()
        tree = ContextTree(2 * len(machine.kv_groups))
        self._link: RecordedLink
        self._engine = SteppedEngine(self._clock, machine, machine.timing(), tree, self._finished, link=self._make_link)
        self._controller = StampedController(policy, costs, self._engine, (), self._simulated)
        self._world = RecordedWorld(applications, tree, self._engine)
        self._behind: dict[CallId, list[World]] = {}  # by call, what the record tells right after its end
        self._tallies = {kind.__name__: Tally() for kind in COMPARED}
        self.agreement = Agreement(self._tallies)
        self._scheduled_s = -1.0
        self._coming: deque[e.Stepped] = deque()  # recorded steps that are known, and still to be scheduled
        self._open_steps = 0  # recorded ones under way that compute something

    def _make_link(self, timing: Timing) -> Link:
        self._link = RecordedLink(timing)
        return self._link

    def play(self, started: e.RunStarted, records: Iterator[Record]) -> None:
        self._at(started.at_s)
        self._engine.start(self._controller)
        try:
            for block in self._looking_ahead(step_records(records)):
                self._play(block)
        except WorldMismatch as mismatch:
            self.agreement.ended = f"at {self._controller.at_s:.6f} s {mismatch}"
        except (PolicyError, EngineError) as error:
            self.agreement.ended = f"at {self._controller.at_s:.6f} s the simulation failed: {error}"
        for tally in self._tallies.values():
            tally.close()

    def _looking_ahead(self, blocks: Iterable[StepRecords]) -> Iterator[StepRecords]:
        """The same, each once it is known when the step after its own was scheduled: maybe before the own one ended."""
        last: StepRecords | None = None
        for block in blocks:
            if block.stepped is not None:
                self._coming.append(block.stepped)
            if last is not None:
                yield last
            last = block
        if last is not None:
            yield last

    def _play(self, block: StepRecords) -> None:
        """Play on to the end of a step."""
        for record in block.before:
            self._schedule_before(record.at_s)
            self._take(record)
        if block.stepped is not None:
            self._schedule_before(block.stepped.at_s)
            self._step(block.stepped, block.outcome)

    def _take(self, record: Fact | e.Planned) -> None:
        self._idle_until(record)
        if isinstance(record, World):
            self._tell_world(record)
        elif isinstance(record, CopyEnd):
            self._at(record.at_s)
            self._link.end(record, self._clock.now_ps)
            self._compare(record)
        elif isinstance(record, e.Copied):
            self._at(record.at_s)
            self._controller.hear(record)
        elif isinstance(record, e.CallAborted):
            raise ImpossibleRecord(
                f"CallAborted: a run whose calls were given up cannot be played again: {record.call!r}"
            )
        else:
            if isinstance(record, SCHEDULING):
                if self._comes_again(record):  # for another step of the same time, if there is one
                    self._schedule_before(nextafter(record.at_s, inf))
                self._schedule(record.at_s, self._comes_again(record))
            if self._engine.stuck and not isinstance(record, OF_THE_POLICY) and self._is_ahead(record):
                self._at(record.at_s)
                self._engine.get_unstuck(record.at_s)
                if self._engine.open_steps < self._open_steps:  # one of the same time waited behind it
                    self._schedule(record.at_s, again=True)
            self._compare(record)

    def _at(self, at_s: float) -> None:
        self._clock.set(at_s)
        self._controller.at_s = at_s

    def _compare(self, record: Record, of_simulator: bool = False) -> None:
        tally = self._tallies.get(type(record).__name__)
        if tally is not None:
            tally.take(record, of_simulator)

    def _simulated(self, record: Record) -> None:
        """The journal of the simulated run."""
        if not isinstance(record, e.Began | e.Planned):
            self._link.told(record)
        self._compare(record, of_simulator=True)

    def _idle_until(self, record: Fact | e.Planned) -> None:
        """Do what an engine that computes nothing did before this, and what is not recorded.

        It gives up pins in their time. And it schedules in vain: an idle engine sees the end of a copy at the end of a
        step, and that step found nobody to start. The policy was not asked then: of that there would be a record.
        """
        at_s = self._controller.at_s
        if self._engine.open_steps or record.at_s <= at_s:
            return
        if isinstance(record, CopyEnd):
            self._schedule_in_vain(at_s)
        if not self._engine.open_steps:
            self._engine.unpin_until(ps(record.at_s))

    # -- steps

    def _schedule_before(self, at_s: float) -> None:
        """The recorded steps that were scheduled before then are scheduled, unless that has been done."""
        while self._coming and self._coming[0].from_s < at_s:
            step = self._coming.popleft()
            if not computes(step):
                self._schedule_in_vain(step.from_s)
                continue
            self._open_steps += 1
            if self._engine.open_steps < self._open_steps:
                self._schedule(step.from_s, again=self._open_steps > 1)

    def _schedule_in_vain(self, at_s: float) -> None:
        """The recorded engine scheduled at that time and found nothing to compute. Of a question there is a record."""
        if not self._engine.asks(ps(at_s)):
            self._schedule(at_s)
        elif at_s > self._scheduled_s:
            self._engine.unpin_until(ps(at_s))

    def _schedule(self, at_s: float, again: bool = False) -> None:
        """The recorded engine scheduled at that time; many records tell of one such time, unless it is `again`."""
        if self._engine.open_steps > self._open_steps or (at_s <= self._scheduled_s and not again):
            return
        self._scheduled_s = at_s
        if not self._engine.open_steps:
            self._engine.unpin_until(ps(at_s))
        self._at(at_s)
        self._engine.schedule(at_s)

    def _comes_again(self, record: Record) -> bool:
        """Whether this was done in one more schedule than in the simulation so far: maybe in another of that time."""
        return self._is_ahead(record) and (isinstance(record, e.Polled) or self._engine.open_steps > 0)

    def _is_ahead(self, record: Record) -> bool:
        """Whether the simulation has not come to this record yet."""
        tally = self._tallies.get(type(record).__name__)
        return tally is not None and tally.simulated <= tally.recorded

    def _step(self, stepped: e.Stepped, outcome: Sequence[Record]) -> None:
        """Take in a step's end."""
        self._at(stepped.at_s)
        self._behind = behind_finished(outcome)
        if not computes(stepped):
            if outcome:
                raise ImpossibleRecord(f"{type(outcome[0]).__name__}: the step that it came of computed nothing")
            self._controller.hear(stepped)
        else:
            self._open_steps -= 1
            if self._engine.open_steps:
                computed = self._engine.outcome()
                self._controller.hear(computed._replace(worker_s=stepped.worker_s))
        for record in (*outcome, stepped):
            self._compare(record)
        left, self._behind = self._behind, {}
        for facts in left.values():
            for fact in facts:
                self._tell_world(fact)

    def _finished(self, call: Call) -> None:
        """The simulated engine ended a call."""
        self._world.call_finished(call.id)
        at_s = self._controller.at_s
        for fact in self._behind.pop(call.id, ()):
            self._tell_world(fact)
        self._at(at_s)

    def _tell_world(self, fact: World) -> None:
        self._at(fact.at_s)
        self._world.act(fact)
