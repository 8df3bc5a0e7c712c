"""A recorded run played again in the simulator: the same in all that the engine decides, or it is said where not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from adversary import Adversary, hard_workload
from differential.workloads import capped
from runs import MakePolicy, Record
from stepped_runs import play_stepped

from tokencake.policies.field.vllm import Vllm
from tokencake.policies.interface import Plan, Policy, View
from tokencake.policies.replay.replay import began
from tokencake.policies.tokencake.policy import tokencake
from tokencake.sim.calibration.engine_info import MachineLimits, with_limits
from tokencake.sim.fidelity.agreement import Agreement
from tokencake.sim.fidelity.rerun import play_recorded, play_records
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces import events as e
from tokencake.traces.apps import Application
from tokencake.traces.errors import TokencakeError, TraceError
from tokencake.traces.format.events_file import EventsWriter
from tokencake.traces.generate.workloads import code_writer

# Costs that have nothing to do with those of the run: the times must come from the record.
ELSEWHERE = {"step_s": 7.0, "prefill_token_s": 0.0, "context_token_s": 0.0, "decode_call_s": 0.0}


def again(
    records: Sequence[Record], make: MakePolicy, applications: Sequence[Application], machine: Machine
) -> Agreement:
    other = replace(machine, **ELSEWHERE, gpu_blocks=10**6, host_gib=0.0)  # type: ignore[arg-type]
    return play_records(records, _Simulated(make()), machine.beliefs(), applications, other)


class _Simulated:
    """A policy that hears what it heard when it was recorded: a simulation tells of no steps, a live run does."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def listens_to(self) -> frozenset[type]:
        return self._policy.listens_to - {e.Stepped, e.Copied}

    def plan(self, view: View) -> Plan:
        return self._policy.plan(view)


def assert_equal(agreement: Agreement) -> None:
    assert agreement.ended is None
    for kind, tally in agreement.tallies.items():
        assert tally.equal, f"{kind}: {tally}"
    assert agreement.equal


@pytest.mark.parametrize("seed", range(30))
def test_a_simulated_run_plays_again_as_it_was(seed: int) -> None:
    """Whatever the policy: with the times of the record, the engine does the same once more, step by step."""
    applications, machine = hard_workload(seed)
    machine = replace(machine, asynchronous=False, client_s=0.0)
    makes: tuple[MakePolicy, ...] = (
        Vllm,
        tokencake,
        partial(tokencake, upload="pause"),
        partial(tokencake, rules="published", gate=False, upload="pause"),
        partial(Adversary, seed),
    )
    for make in makes:
        assert_plays_again(make, applications, machine)


@pytest.mark.parametrize("seed", [177, 211], ids=["schedules in vain", "pins run out"])
def test_what_an_idle_engine_does_without_a_record_is_done_again(seed: int) -> None:
    """It finds nobody to start, and holds nothing more until a call has ended; and pins run out in their time."""
    applications, machine = hard_workload(seed)
    assert_plays_again(partial(Adversary, seed), applications, replace(machine, asynchronous=False, client_s=0.0))


@pytest.mark.parametrize("seed", range(12))
def test_a_run_in_which_long_prompts_are_cut_plays_again(seed: int) -> None:
    applications, machine = hard_workload(seed, capped)
    machine = replace(machine, asynchronous=False, client_s=0.0)
    for make in (Vllm, tokencake, partial(Adversary, seed)):
        assert_plays_again(make, applications, machine)


def assert_plays_again(make: MakePolicy, applications: Sequence[Application], machine: Machine) -> None:
    records = play_stepped(applications, make(), machine)
    assert any(isinstance(record, e.Stepped) for record in records)
    assert_equal(again(records, make, applications, machine))


PREDICTIVE = partial(tokencake, rules="published", gate=False)
CROWDED = replace(PUBLISHED, gpu_blocks=1500, asynchronous=False, client_s=0.0, max_running=256)


@pytest.fixture(scope="module")
def writers() -> tuple[Application, ...]:
    return tuple(code_writer(apps=3, qps=2.0, spread=0.2))


@pytest.fixture(scope="module")
def recorded(writers: tuple[Application, ...]) -> list[Record]:
    return play_stepped(writers, PREDICTIVE(), CROWDED)


def test_code_writers_with_copies_play_again(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    agreement = again(recorded, PREDICTIVE, writers, CROWDED)
    assert_equal(agreement)
    for kind in ("OffloadStarted", "UploadFinished", "CallAdmitted", "Stepped", "Planned"):
        assert agreement.tallies[kind].recorded > 0
    said = agreement.record()
    assert said["admissions"] == agreement.tallies["CallAdmitted"].recorded
    assert (said["admissions_different"], said["records_different"], said["ended"]) == (0, 0, None)


def test_an_arrival_may_be_told_late(writers: tuple[Application, ...]) -> None:
    """Calls that were due before the engine heard of them: it acts when it hears."""
    late = [
        record._replace(at_s=max(0.0, record.at_s - 0.5)) if isinstance(record, e.CallArrived) else record
        for record in play_stepped(writers, Vllm(), CROWDED)
    ]
    assert_equal(again(late, Vllm, writers, CROWDED))


def test_admissions_in_another_order_are_found(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    places = [i for i, record in enumerate(recorded) if isinstance(record, e.CallAdmitted)]
    one, other = places[4], places[5]
    swapped = list(recorded)
    swapped[one], swapped[other] = (
        recorded[one]._replace(call=recorded[other].call),
        recorded[other]._replace(call=recorded[one].call),
    )
    agreement = again(swapped, PREDICTIVE, writers, CROWDED)
    admitted = agreement.tallies["CallAdmitted"]
    assert not agreement.same_admissions
    assert admitted.different == 2
    assert admitted.first is not None
    assert admitted.first.number == 5
    assert admitted.first.recorded == swapped[one]
    assert admitted.first.simulated == recorded[one]


def test_an_admission_in_another_step_is_found(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    """Among the admissions its place is the same: the time says that it was another step."""
    moved = list(recorded)
    last = max(i for i, record in enumerate(recorded) if isinstance(record, e.CallAdmitted))
    steps = (record.from_s for record in recorded[last:] if isinstance(record, e.Stepped))
    moved[last] = recorded[last]._replace(at_s=next(from_s for from_s in steps if from_s > recorded[last].at_s))
    agreement = again(moved, PREDICTIVE, writers, CROWDED)
    assert agreement.tallies["CallAdmitted"].different == 1
    assert not agreement.same_admissions


def test_a_step_that_was_scheduled_at_another_time_is_found(
    writers: tuple[Application, ...], recorded: list[Record]
) -> None:
    moved = list(recorded)
    first = next(i for i, record in enumerate(recorded) if isinstance(record, e.Stepped))
    moved[first] = recorded[first]._replace(from_s=recorded[first].from_s + 1e-6)
    assert again(moved, PREDICTIVE, writers, CROWDED).tallies["Stepped"].different == 1


def test_an_end_of_a_load_that_never_began_is_found(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    last = next(i for i, record in enumerate(recorded) if isinstance(record, e.LoadFinished))
    twice = [*recorded[:last], recorded[last], *recorded[last:]]
    assert again(twice, PREDICTIVE, writers, CROWDED).tallies["LoadFinished"].different


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"step_budget_tokens": 512}, {"Stepped"}),
        ({"max_running": 2}, {"Stepped", "CallAdmitted"}),
    ],
    ids=["budget", "places"],
)
def test_an_engine_with_other_limits_is_found(
    change: dict[str, int], kinds: set[str], writers: tuple[Application, ...], recorded: list[Record]
) -> None:
    agreement = again(recorded, PREDICTIVE, writers, replace(CROWDED, **change))  # type: ignore[arg-type]
    assert not agreement.equal
    assert kinds <= {kind for kind, tally in agreement.tallies.items() if not tally.equal}


def test_less_memory_than_recorded_is_found(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    less = [r._replace(gpu_blocks=1200) if isinstance(r, e.RunStarted) else r for r in recorded]
    agreement = again(less, PREDICTIVE, writers, CROWDED)
    assert not agreement.equal
    assert agreement.tallies["Polled"].first is not None


def test_another_policy_is_found(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    agreement = again(recorded, Vllm, writers, CROWDED)
    assert not agreement.equal
    assert not agreement.tallies["Planned"].equal


# -- files


def written(path: Path, records: Sequence[Record]) -> Path:
    with EventsWriter(path) as writer:
        for record in records:
            writer.add(record)
    return path


def test_a_file_says_which_policy_ran(tmp_path: Path, writers: tuple[Application, ...], recorded: list[Record]) -> None:
    path = written(tmp_path / "e.jsonl", [began("tokencake:rules=published,gate=off", 0, CROWDED.beliefs()), *recorded])
    assert_equal(play_recorded(path, iter(writers), CROWDED))


@pytest.mark.parametrize(
    ("keep", "machine", "message"),
    [
        (lambda record: not isinstance(record, e.Stepped), CROWDED, "no Stepped"),
        (lambda record: not isinstance(record, e.RunStarted), CROWDED, "no RunStarted"),
    ],
    ids=["steps", "start"],
)
def test_what_cannot_be_played_again_is_refused(
    keep: Callable[[Record], bool],
    machine: Machine,
    message: str,
    writers: tuple[Application, ...],
    recorded: list[Record],
) -> None:
    with pytest.raises(TokencakeError, match=message):
        play_records(filter(keep, recorded), Vllm(), CROWDED.beliefs(), writers, machine)


def test_another_trace_is_refused(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    with pytest.raises(TraceError, match="application 'a2' of the record is not in the trace"):
        again(recorded, Vllm, writers[:2], CROWDED)


def test_an_aborted_call_is_refused(writers: tuple[Application, ...], recorded: list[Record]) -> None:
    arrived = next(i for i, record in enumerate(recorded) if isinstance(record, e.CallArrived))
    aborted = e.CallAborted(recorded[arrived].at_s, recorded[arrived].request.id)
    with pytest.raises(TraceError, match="given up"):
        again([*recorded[: arrived + 1], aborted], Vllm, writers, CROWDED)


Mutation = Callable[[list[Record]], list[Record]]


def first_of(kind: type, records: Sequence[Record]) -> int:
    return next(i for i, record in enumerate(records) if isinstance(record, kind))


def twice(kind: type) -> Mutation:
    return lambda records: [*records[: first_of(kind, records) + 1], *records[first_of(kind, records) :]]


def without(kind: type) -> Mutation:
    return lambda records: [record for i, record in enumerate(records) if i != first_of(kind, records)]


def soonest(kind: type) -> Mutation:
    return lambda records: [records[0], records[first_of(kind, records)], *records[1:]]


def replaced(kind: type, **fields: object) -> Mutation:
    def change(records: list[Record]) -> list[Record]:
        at = first_of(kind, records)
        return [*records[:at], records[at]._replace(**fields), *records[at + 1 :]]

    return change


def computing_nothing(records: list[Record]) -> list[Record]:
    return [
        r._replace(prefill_tokens=0, decode_calls=0) if isinstance(r, e.Stepped) and r.decode_calls else r
        for r in records
    ]


def steps_out_of_order(records: list[Record]) -> list[Record]:
    """A step was scheduled before the one that ended before it."""
    at = [i for i, record in enumerate(records) if isinstance(record, e.Stepped)][5]
    return [*records[:at], records[at]._replace(from_s=0.0), *records[at + 1 :]]


def of_another_length(records: list[Record]) -> list[Record]:
    at = first_of(e.CallArrived, records)
    arrived = records[at]
    assert isinstance(arrived, e.CallArrived)
    longer = arrived._replace(request=arrived.request._replace(prompt_tokens=arrived.request.prompt_tokens + 1))
    return [*records[:at], longer, *records[at + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: [*records, *records], "a second one"),
        (lambda records: [*records[1:], records[0]], "no RunStarted before all else: got AppStarted"),
        (replaced(e.RunStarted, block_tokens=0), "block_tokens: expected 1 or more"),
        (twice(e.AppStarted), "has started before"),
        (soonest(e.AppFinished), "AppFinished: application 'a[0-9]' is not under way"),
        (twice(e.AppFinished), "AppFinished: application 'a[0-9]' is not under way"),
        (twice(e.CallArrived), "CallArrived: .* has arrived before"),
        (without(e.CallArrived), "which has not arrived"),
        (of_another_length, "prompt_tokens: expected [0-9]+ of the trace, got"),
        (twice(e.ToolStarted), "have started before"),
        (without(e.ToolStarted), "no tool of call .* is under way"),
        (twice(e.ToolReturned), "no tool of call .* is under way"),
        (replaced(e.ToolStarted, agent="nobody"), "agent: expected .*, got 'nobody'"),
        (computing_nothing, "computed nothing"),
        (steps_out_of_order, "from_s: expected .* or later"),
    ],
)
def test_a_record_of_what_cannot_be_is_refused(
    change: Mutation, message: str, tmp_path: Path, writers: tuple[Application, ...], recorded: list[Record]
) -> None:
    setup = began("tokencake:rules=published,gate=off", 0, CROWDED.beliefs())
    path = written(tmp_path / "e.jsonl", [setup, *change(list(recorded))])
    with pytest.raises(TraceError, match=f"^{path}: .*{message}"):
        play_recorded(path, iter(writers), CROWDED)


def test_that_steps_are_not_recorded_is_found_at_the_first_of_them(
    writers: tuple[Application, ...], recorded: list[Record]
) -> None:
    """Memory does not grow with such a record either."""
    taken = []

    def stepless() -> Iterator[Record]:
        for record in recorded:
            if not isinstance(record, e.Stepped):
                taken.append(record)
                yield record

    with pytest.raises(TraceError, match="no Stepped"):
        play_records(stepless(), PREDICTIVE(), CROWDED.beliefs(), writers, CROWDED)
    assert len(taken) < 50 < len(recorded)


def test_limits_of_an_engine_replace_those_of_a_machine() -> None:
    limits = MachineLimits(
        gpu_blocks=7, block_tokens=32, block_bytes=640, host_blocks=1234567, max_context_tokens=99,
        step_budget_tokens=50, max_running=3, asynchronous=False, long_prefill_token_threshold=9,
    )  # fmt: skip
    machine = with_limits(PUBLISHED, limits)
    assert (machine.gpu_blocks, machine.block_tokens, machine.block_bytes, machine.host_blocks) == (7, 32, 640, 1234567)
    assert (machine.step_budget_tokens, machine.max_running, machine.max_context_tokens) == (50, 3, 99)
    assert machine.long_prefill_token_threshold == 9
    assert (machine.asynchronous, machine.client_s, machine.step_s) == (False, 0.0, PUBLISHED.step_s)
