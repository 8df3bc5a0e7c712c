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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify
from math import inf, nextafter
from pathlib import Path
from typing import Any, NamedTuple

from ...policies.controller import Controller
from ...policies.costs import LinearCosts
from ...policies.interface import Costs, Plan, Policy
from ...policies.registry import load_policy
from ...policies.replay import plain, setup_of
from ...traces import events as e
from ...traces.apps import AppId, Application, Call, CallId
from ...traces.errors import EngineError, FactError, PolicyError, TraceError
from ...traces.events import Fact
from ...traces.events_file import Record, read_events
from ..calibration.engine_info import MachineLimits
from ..engine.clock import Clock
from ..engine.engine import Engine, Flight
from ..engine.memory.app_contexts import AppContexts
from ..engine.memory.context_tree import ContextTree
from ..engine.memory.link import Done, Link
from ..engine.requests import EngineCall
from ..engine.scheduler import Step
from ..machine.machine import Machine, Timing, ps

World = e.AppStarted | e.AppFinished | e.CallArrived | e.ToolStarted | e.ToolReturned
CopyEnd = e.OffloadFinished | e.UploadFinished | e.UploadReleased | e.LoadFinished | e.StoreFinished
OfACall = e.LoadStarted | e.LoadFinished | e.StoreStarted | e.StoreFinished
# What a step begins with.
SCHEDULING = (e.Polled, e.CallAdmitted, e.CallPreempted, e.LoadStarted, e.StoreStarted, e.StoreRefused)
OF_THE_POLICY = (e.Polled, e.Asked, e.AskedShared, e.Planned)
ADMISSIONS = "CallAdmitted"
WHEN = ("at_s", "from_s")

# What the engine decides, or what follows from it. Not compared: what the record tells the simulator.
COMPARED = (
    e.CallAdmitted, e.CallPreempted, e.FirstToken, e.CallFinished, e.LoadStarted, e.LoadFinished, e.OffloadStarted,
    e.OffloadFinished, e.OffloadRefused, e.HostDropped, e.UploadStarted, e.UploadFinished, e.UploadTaken,
    e.UploadCancelled, e.UploadReleased, e.UploadRefused, e.StoreStarted, e.StoreFinished, e.StoreRefused, e.Stepped,
    e.Polled, e.Asked, e.AskedShared, e.Planned,
)  # fmt: skip


class Parting(NamedTuple):
    """Where the simulator first did something else: the n-th record of a kind, from 1. None: there was none."""

    number: int
    recorded: Record | None
    simulated: Record | None


@dataclass(slots=True)
class Tally:
    """The records of one kind, in their order."""

    recorded: int = 0
    simulated: int = 0
    different: int = 0
    first: Parting | None = None
    _ahead: deque[Record] = field(default_factory=deque)  # of whichever side is ahead

    @property
    def equal(self) -> bool:
        return not self.different and self.recorded == self.simulated

    def take(self, record: Record, of_simulator: bool) -> None:
        """The next record of one side."""
        leads = self.simulated - self.recorded if of_simulator else self.recorded - self.simulated
        if of_simulator:
            self.simulated += 1
        else:
            self.recorded += 1
        if leads >= 0:
            self._ahead.append(record)
            return
        other = self._ahead.popleft()
        if content(other) != content(record):
            pair = (other, record) if of_simulator else (record, other)
            self._parts(min(self.simulated, self.recorded), *pair)

    def close(self) -> None:
        """No record follows: what is left over has nothing to be compared with."""
        if self._ahead:
            record = self._ahead[0]
            number = min(self.simulated, self.recorded) + 1
            self._parts(number, *((None, record) if self.simulated > self.recorded else (record, None)))
            self.different += len(self._ahead) - 1
            self._ahead.clear()

    def _parts(self, number: int, recorded: Record | None, simulated: Record | None) -> None:
        self.different += 1
        if self.first is None:
            self.first = Parting(number, recorded, simulated)


@dataclass(slots=True)
class Agreement:
    """What the comparison came to, by kind of record. `ended`: why it could not be carried to the record's end."""

    tallies: Mapping[str, Tally]
    ended: str | None = None

    @property
    def same_admissions(self) -> bool:
        """The same calls were admitted in the same order, with the same hits."""
        return self.ended is None and self.tallies[ADMISSIONS].equal

    @property
    def equal(self) -> bool:
        return self.ended is None and all(tally.equal for tally in self.tallies.values())

    def record(self) -> dict[str, object]:
        """As a validation shows it: how many admissions and how many records of all kinds, and how many differ."""
        admissions, tallies = self.tallies[ADMISSIONS], self.tallies.values()
        return {
            "admissions": admissions.recorded,
            "admissions_different": admissions.different,
            "records": sum(tally.recorded for tally in tallies),
            "records_different": sum(tally.different for tally in tallies),
            "ended": self.ended,
        }


def content(record: Record) -> tuple[object, ...]:
    """All of a record but how long something took. When it was, to the last digit, says of which step it was."""
    if isinstance(record, e.Planned):
        return (record.__class__, record.at_s, plain(record.plan))
    fields = zip(record._fields, record, strict=True)
    return (record.__class__, *(value for name, value in fields if name in WHEN or not name.endswith("_s")))


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
    except _Impossible as problem:
        raise TraceError(f"{path}: {problem}") from None


def play_records(
    records: Iterable[Record], policy: Policy, costs: Costs, applications: Iterable[Application], machine: Machine
) -> Agreement:
    """The same for records that are at hand, of a run under this policy with these beliefs."""
    coming = iter(records)
    started = next((record for record in coming if not isinstance(record, e.Began)), None)
    if not isinstance(started, e.RunStarted):
        what = "nothing" if started is None else type(started).__name__
        raise _Impossible(f"the record holds no RunStarted before all else: got {what}")
    run = _Recorded(with_memory(machine, started), policy, costs, applications)
    run.play(started, coming)
    return run.agreement


def with_memory(machine: Machine, started: e.RunStarted) -> Machine:
    """The machine with the memory that a recorded engine had."""
    if not started.block_tokens:
        raise _Impossible("RunStarted: block_tokens: expected 1 or more, got 0")
    return replace(
        machine,
        gpu_blocks=started.gpu_blocks,
        block_tokens=started.block_tokens,
        kv_bytes_per_token=started.block_bytes // started.block_tokens,
        host_gib=started.host_blocks * started.block_bytes / 2**30,
    )


def with_limits(machine: Machine, limits: MachineLimits) -> Machine:
    """The machine with what an engine can hold and do in a step. Its client takes no time, as a live run's."""
    return replace(machine, **limits.settings(), client_s=0.0)


class _Impossible(TraceError):
    """What a record tells cannot be after all that it told before, or in the applications that are known."""


class _Parted(Exception):
    """The simulated engine is in a state to which the recorded world does not fit any more."""


class _Moment(Clock):
    """A clock that is set."""

    def set(self, at_s: float) -> None:
        """It is that late now; what was reported late happens now."""
        self._now = max(self.now_ps, ps(at_s))


class _Told(Controller):
    """Gives every fact the very time of the record that it belongs to, where the clock has whole picoseconds."""

    at_s = 0.0

    def hear(self, fact: Fact) -> None:
        super().hear(fact._replace(at_s=self.at_s))

    def poll(self, gauges: e.Polled) -> Plan:
        return super().poll(gauges._replace(at_s=self.at_s))


class _RecordedLink(Link):
    """Copies end when the record says so."""

    def __init__(self, timing: Timing) -> None:
        super().__init__(timing)
        self._starting: _Whose | None = None
        self._of: dict[int, _Whose] = {}  # by order of submission

    def told(self, fact: Fact) -> None:
        """Hear of copies: the next submission is the one that was told of last."""
        if isinstance(fact, e.OffloadStarted | e.UploadStarted | e.LoadStarted | e.StoreStarted):
            whose = fact.call if isinstance(fact, OfACall) else fact.agent
            self._starting = (_FINISHED[type(fact)], whose)
        elif isinstance(fact, e.UploadCancelled):
            for order, whose_copy in self._of.items():
                if whose_copy == (e.UploadFinished, fact.agent):
                    self._of[order] = (e.UploadReleased, fact.agent)

    def end(self, fact: CopyEnd, now_ps: int) -> None:
        """The record tells of the end of a copy. If none such is under way here, that shows elsewhere."""
        whose = (type(fact), fact.call if isinstance(fact, OfACall) else fact.agent)
        entry = next((entry for entry in sorted(self.under_way) if self._of[entry[1]] == whose), None)
        if entry is not None:
            self.under_way.remove(entry)
            heapify(self.under_way)
            del self._of[entry[1]]
            entry[2](now_ps)

    def finish(self, now_ps: int) -> None:
        """Nothing ends by itself."""

    def _submit(self, way: str, blocks: int, from_ps: int, done: Done) -> None:
        super()._submit(way, blocks, from_ps, done)
        assert self._starting is not None
        self._of[self._submitted] = self._starting


_Whose = tuple[type, str]  # the fact that tells of a copy's end, and the agent or call that it names
_FINISHED: Mapping[type, type] = {
    e.OffloadStarted: e.OffloadFinished,
    e.UploadStarted: e.UploadFinished,
    e.LoadStarted: e.LoadFinished,
    e.StoreStarted: e.StoreFinished,
}


class _OpenStep(NamedTuple):
    """A step that was scheduled and whose outcome has not come."""

    computed: e.Stepped
    firsts: list[EngineCall]
    finished: list[EngineCall]


class _SteppedEngine(Engine):
    """An engine whose boundaries somebody else sets: `schedule` a step, later take in its `outcome`.

    Between the two of one step there may be those of others, in any order that an engine has.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, one_by_one=True, **kwargs)
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
        self._scheduler.lag = min(1, len(self._open))
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
            self.release_held()
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
            for call, n in step.prefill.items()
            if n > 1 or call.num_computed_tokens < call.prompt_tokens
        ]
        decoding = [
            call.num_computed_tokens
            for call, n in step.prefill.items()
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


class _Recorded:
    """One record under way."""

    def __init__(self, machine: Machine, policy: Policy, costs: Costs, applications: Iterable[Application]) -> None:
        self._clock = _Moment(0)
        self._tree = ContextTree(machine.block_tokens)
        self._link: _RecordedLink
        self._engine = _SteppedEngine(
            self._clock, machine, machine.timing(), self._tree, self._finished, link=self._make_link
        )
        self._controller = _Told(policy, costs, self._engine, (), self._simulated)
        self._applications: Iterator[Application] = iter(applications)
        self._found: dict[AppId, Application] = {}  # drawn from the trace before they started
        self._contexts: dict[AppId, AppContexts] = {}
        self._calls: dict[CallId, Call] = {}
        self._unfinished: dict[CallId, AppId] = {}
        self._in_tools: set[CallId] = set()  # calls whose tools are under way
        self._behind: dict[CallId, list[World]] = {}  # by call, what the record tells right after its end
        self._tallies = {kind.__name__: Tally() for kind in COMPARED}
        self.agreement = Agreement(self._tallies)
        self._scheduled_s = -1.0
        self._coming: deque[e.Stepped] = deque()  # recorded steps that are known, and still to be scheduled
        self._open_steps = 0  # recorded ones under way that compute something

    def _make_link(self, timing: Timing) -> Link:
        self._link = _RecordedLink(timing)
        return self._link

    def play(self, started: e.RunStarted, records: Iterator[Record]) -> None:
        self._at(started.at_s)
        self._engine.start(self._controller)
        try:
            for block in self._looking_ahead(_blocks(records)):
                self._play(block)
        except _Parted as parted:
            self.agreement.ended = f"at {self._controller.at_s:.6f} s {parted}"
        except (PolicyError, EngineError) as error:
            self.agreement.ended = f"at {self._controller.at_s:.6f} s the simulation failed: {error}"
        for tally in self._tallies.values():
            tally.close()

    def _looking_ahead(self, blocks: Iterable[_Block]) -> Iterator[_Block]:
        """The same, each once it is known when the step after its own was scheduled: maybe before the own one ended."""
        last: _Block | None = None
        for block in blocks:
            if block.stepped is not None:
                self._coming.append(block.stepped)
            if last is not None:
                yield last
            last = block
        if last is not None:
            yield last

    def _play(self, block: _Block) -> None:
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
            self._world(record)
        elif isinstance(record, CopyEnd):
            self._at(record.at_s)
            self._link.end(record, self._clock.now_ps)
            self._compare(record)
        elif isinstance(record, e.Copied):
            self._at(record.at_s)
            self._controller.hear(record)
        elif isinstance(record, e.CallAborted):
            raise _Impossible(f"CallAborted: a run whose calls were given up cannot be played again: {record.call!r}")
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
            if not _computes(step):
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
        self._behind = _behind_finished(outcome)
        if not _computes(stepped):
            if outcome:
                raise _Impossible(f"{type(outcome[0]).__name__}: the step that it came of computed nothing")
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
                self._world(fact)

    def _finished(self, call: Call) -> None:
        """The simulated engine ended a call."""
        self._unfinished.pop(call.id)
        at_s = self._controller.at_s
        for fact in self._behind.pop(call.id, ()):
            self._world(fact)
        self._at(at_s)

    # -- the world

    def _world(self, fact: World) -> None:
        self._at(fact.at_s)
        try:
            _ACTS[type(fact)](self, fact)
        except FactError as wrong:
            raise _Impossible(str(wrong)) from None

    def _app_started(self, fact: e.AppStarted) -> None:
        if fact.app in self._contexts:
            raise _Impossible(f"AppStarted: application {fact.app!r} has started before")
        app = self._application(fact.app)
        self._contexts[fact.app] = AppContexts(app)
        self._calls.update((call.id, call) for call in app.calls)
        self._engine.app_started(fact.app)

    def _application(self, name: AppId) -> Application:
        while name not in self._found:
            application = next(self._applications, None)
            if application is None:
                raise _Impossible(f"application {name!r} of the record is not in the trace")
            self._found[application.id] = application
        return self._found.pop(name)

    def _app_finished(self, fact: e.AppFinished) -> None:
        if left := [call for call, app in self._unfinished.items() if app == fact.app]:
            raise _Parted(f"application {fact.app!r} has ended, but call {left[0]!r} has not in the simulation")
        contexts = self._contexts.pop(fact.app, None)
        if contexts is None:
            raise _Impossible(f"AppFinished: application {fact.app!r} is not under way")
        self._engine.app_finished(fact.app)
        contexts.release(self._tree)
        for ended in contexts.app.calls:
            del self._calls[ended.id]
            self._in_tools.discard(ended.id)

    def _call_arrived(self, fact: e.CallArrived) -> None:
        call = self._call(fact.request.id)
        contexts = self._contexts[call.app]
        if call.id in contexts.of_call:
            raise _Impossible(f"CallArrived: call {call.id!r} has arrived before")
        if (extended := call.prompt.extends) is not None and extended not in contexts.of_call:
            raise _Impossible(f"CallArrived: call {call.id!r} continues {extended!r}, which has not arrived")
        for name, here, there in zip(fact.request._fields, fact.request, e.request_of(call), strict=True):
            if here != there:
                raise _Impossible(
                    f"CallArrived: call {call.id!r}: {name}: expected {there!r} of the trace, got {here!r}"
                )
        self._unfinished[call.id] = call.app
        self._engine.arrive(call, fact.request, contexts.add(call, self._tree))

    def _tool_started(self, fact: e.ToolStarted) -> None:
        call = self._ended(fact)
        if call.id in self._in_tools:
            raise _Impossible(f"ToolStarted: the tools of call {call.id!r} have started before")
        self._in_tools.add(call.id)
        self._engine.tool_started(call)

    def _tool_returned(self, fact: e.ToolReturned) -> None:
        call = self._ended(fact)
        if call.id not in self._in_tools:
            raise _Impossible(f"ToolReturned: no tool of call {call.id!r} is under way")
        self._in_tools.remove(call.id)
        self._engine.tool_returned(call)

    def _ended(self, fact: e.ToolStarted | e.ToolReturned) -> Call:
        """A call that has ended, in the simulation too."""
        call = self._call(fact.call)
        if call.id in self._unfinished:
            raise _Parted(f"call {call.id!r} has ended, but not in the simulation")
        if call.id not in self._contexts[call.app].of_call:
            raise _Impossible(f"{type(fact).__name__}: call {call.id!r} has not arrived")
        if fact.agent != call.agent:
            raise _Impossible(
                f"{type(fact).__name__}: agent: expected {call.agent!r} of call {call.id!r}, got {fact.agent!r}"
            )
        return call

    def _call(self, name: CallId) -> Call:
        if name not in self._calls:
            raise _Impossible(f"call {name!r} of the record is not in the trace, or its application is not under way")
        return self._calls[name]


_ACTS: Mapping[type, Callable[[_Recorded, Any], None]] = {
    e.AppStarted: _Recorded._app_started,
    e.AppFinished: _Recorded._app_finished,
    e.CallArrived: _Recorded._call_arrived,
    e.ToolStarted: _Recorded._tool_started,
    e.ToolReturned: _Recorded._tool_returned,
}


class _Block(NamedTuple):
    """What is recorded up to the end of a step: first what came before its outcome, then that."""

    before: Sequence[Fact | e.Planned]
    outcome: Sequence[Fact | e.Planned]  # begins with a first token or the end of a call
    stepped: e.Stepped | None  # None behind the last step


def _blocks(records: Iterable[Record]) -> Iterator[_Block]:
    """A record step by step. Raises `TraceError` if the steps were not recorded."""
    before: list[Fact | e.Planned] = []
    outcome: list[Fact | e.Planned] = []
    last_s = -inf
    for record in records:
        if isinstance(record, e.Stepped):
            if record.from_s < last_s:
                expected = f"{last_s} or later, as steps end in the order in which they were scheduled"
                raise _Impossible(f"Stepped: from_s: expected {expected}, got {record.from_s}")
            last_s = record.from_s
            yield _Block(before, outcome, record)
            before, outcome = [], []
            continue
        if isinstance(record, e.RunStarted):
            raise _Impossible("RunStarted: expected the records of one run, got a second one")
        if outcome and isinstance(record, SCHEDULING):
            break
        if not isinstance(record, e.Began):
            ended = outcome or isinstance(record, e.FirstToken | e.CallFinished)
            (outcome if ended else before).append(record)
    if outcome:
        raise _Impossible("the record has outcomes of steps, but no Stepped: steps are recorded when that is asked for")
    yield _Block(before, outcome, None)


def _computes(step: e.Stepped) -> bool:
    """Whether a recorded step computed anything."""
    return bool(step.prefill_tokens or step.decode_calls)


def _behind_finished(group: Iterable[Record]) -> dict[CallId, list[World]]:
    """By call that ended in a step, what of the world is told before anything else of that step."""
    behind: dict[CallId, list[World]] = {}
    last: CallId = ""
    for record in group:
        if isinstance(record, e.CallFinished):
            last = record.call
        elif isinstance(record, World):
            behind.setdefault(last, []).append(record)
    return behind
