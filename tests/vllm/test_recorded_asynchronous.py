"""Runs of vLLM's asynchronous scheduler, recorded and played again: the simulator's engine decides what vLLM did.

vLLM's own `AsyncScheduler` with our adapter, connector and copies, in virtual time. While one step runs, the next is
scheduled; the record has to tell in which of the two something was decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import hard_workload
from differential.workloads import Workload, capped
from runs import Record
from untied import POLICIES, untied
from virtual_engine import Virtual

from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.fidelity.agreement import Agreement
from tokencake.sim.fidelity.rerun import play_records
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application


def recorded(policy: str, applications: Sequence[Application], machine: Machine) -> list[Record]:
    """A run's records, its steps among them."""
    records: list[Record] = []
    settings = RunSettings(policy=policy, costs=machine.beliefs(), steps=True)
    Virtual(machine).play(applications, settings, [], records.append)
    size = machine.block_bytes  # that engine's blocks hold contents for a test, of other sizes
    return [record._replace(block_bytes=size) if isinstance(record, e.RunStarted) else record for record in records]


def assert_plays_again(policy: str, workload: Workload) -> list[Record]:
    applications, machine = workload
    machine = replace(machine, asynchronous=True)
    records = recorded(policy, applications, machine)
    agreement = again(records, policy, applications, machine)
    assert agreement.ended is None
    for kind, tally in agreement.tallies.items():
        assert tally.equal, f"{kind}: {tally}"
    return records


def again(records: Sequence[Record], policy: str, applications: Sequence[Application], machine: Machine) -> Agreement:
    return play_records(records, load_policy(policy), machine.beliefs(), applications, machine)


@pytest.mark.parametrize("seed", [0, 2, 5, 10, 19])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_asynchronous_run_plays_again(policy: str, seed: int) -> None:
    assert_plays_again(policy, untied(hard_workload(seed), seed))


@pytest.mark.parametrize("policy", POLICIES)
def test_an_asynchronous_run_in_which_long_prompts_are_cut_plays_again(policy: str) -> None:
    assert_plays_again(policy, untied(hard_workload(1, capped), 1))


def test_these_runs_are_about_something() -> None:
    """Two steps are open at a time, calls lose their blocks and come back, and contexts go to the host and return."""
    records = [
        record
        for policy, seed in (("tokencake", 10), ("native-offload", 10), ("kvflow", 19))
        for record in assert_plays_again(policy, untied(hard_workload(seed), seed))
    ]
    kinds = Counter(type(record).__name__ for record in records)
    for kind in ("CallPreempted", "LoadFinished", "OffloadFinished", "StoreFinished", "UploadFinished"):
        assert kinds[kind], f"{kind}: {kinds}"
    steps = [record for record in records if isinstance(record, e.Stepped)]
    assert any(after.from_s < before.at_s for before, after in pairwise(steps))
    assert any(not step.prefill_tokens and not step.decode_calls for step in steps)  # with which copies ended


def test_what_was_decided_in_the_other_open_step_is_found() -> None:
    """The same admissions, told of the schedule after the one in which they were made."""
    applications, machine = untied(hard_workload(2), 2)
    machine = replace(machine, asynchronous=True)
    records = recorded("vllm", applications, machine)
    starts = sorted({record.from_s for record in records if isinstance(record, e.Stepped)})
    later = dict(pairwise(starts))
    agreement = again([_moved(record, later) for record in records], "vllm", applications, machine)
    assert not agreement.equal


def _moved(record: Record, later: dict[float, float]) -> Record:
    return record._replace(from_s=later.get(record.from_s, record.from_s)) if isinstance(record, e.Stepped) else record
