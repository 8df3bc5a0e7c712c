"""Simulated runs of a synchronous engine, recorded as a live one records: with the steps among the facts."""

from __future__ import annotations

from collections.abc import Sequence

from runs import Record

from tokencake.policies.interface import Policy
from tokencake.sim.engine.scheduling.step import Scheduled
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces import events as e
from tokencake.traces.apps import Application, CallId

# What may be told of the very time at which a step ends, before the engine goes on.
OF_AN_END = (
    e.AppStarted, e.AppFinished, e.CallArrived, e.ToolStarted, e.ToolReturned, e.FirstToken, e.CallFinished,
    e.HostDropped, e.UploadCancelled,
)  # fmt: skip


def play_stepped(applications: Sequence[Application], policy: Policy, machine: Machine) -> list[Record]:
    """Everything that happens in a run, its steps included: each after all that its end brought."""
    assert not machine.asynchronous
    recorder = _Recorder(machine)
    simulate(applications, policy, machine, journal=recorder.add, one_by_one=True, step_log=recorder.step)
    return recorder.records


class _Recorder:
    def __init__(self, machine: Machine) -> None:
        self._timing = machine.timing()
        self._computed: dict[CallId, int] = {}  # tokens of running calls that have KV
        self._target: dict[CallId, int] = {}  # tokens that they compute before they decode
        self._prompt: dict[CallId, int] = {}
        self._admitted = 0  # calls, since the last step was scheduled
        self._pending: e.Stepped | None = None
        self.records: list[Record] = []

    def step(self, scheduled: Scheduled) -> None:
        if self._pending is not None:  # nothing has happened since
            self.records.append(self._pending)
        prefills = {call: (n, self._computed[call]) for call, n in scheduled.tokens.items() if self._prefills(call)}
        decoding = [self._computed[call] for call in scheduled.tokens if call not in prefills]
        completed = sum(n + before == self._target[call] for call, (n, before) in prefills.items())
        took_ps = self._timing.of_step(prefills.values(), decoding, admitted=self._admitted, completed=completed)
        self._admitted = 0
        end_ps = scheduled.at_ps + took_ps
        # a preempted call that comes back for a single token decodes, as vLLM sees it
        back = [call for call, (n, before) in prefills.items() if n == 1 and before >= self._prompt[call]]
        contexts = [*decoding, *(self._computed[call] for call in back)]
        chunks = {call: chunk for call, chunk in prefills.items() if call not in back}
        self._pending = e.Stepped(
            end_ps / PS_PER_S,
            scheduled.at_ps / PS_PER_S,
            sum(n for n, _ in chunks.values()),
            sum(n * before + n * (n + 1) // 2 for n, before in chunks.values()),
            len(contexts),
            sum(contexts),
        )
        for call, n in scheduled.tokens.items():
            self._computed[call] += n

    def _prefills(self, call: CallId) -> bool:
        return self._computed[call] < self._target[call]

    def add(self, record: Record) -> None:
        if isinstance(record, e.CallArrived):
            self._prompt[record.request.id] = record.request.prompt_tokens
        elif isinstance(record, e.CallAdmitted):
            self._admitted += 1
            self._computed[record.call] = record.gpu_hit_tokens + record.host_hit_tokens
            self._target[record.call] = record.resumed_tokens or self._prompt[record.call]
        if self._pending is not None and self._ended(record):
            self.records.append(self._pending)
            self._pending = None
        self.records.append(record)

    def _ended(self, record: Record) -> bool:
        """Whether the step under way had ended, with all that this brought, before this happened."""
        pending = self._pending
        assert pending is not None
        assert not isinstance(record, e.Began)
        return record.at_s > pending.at_s or (record.at_s == pending.at_s and not isinstance(record, OF_AN_END))
