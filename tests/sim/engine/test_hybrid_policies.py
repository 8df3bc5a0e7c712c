"""Policies where the KV cache has several groups: whatever one wants, every application ends, and no page is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from adversary import Adversary, Hoarder, hard_workload
from differential.workloads import hybrid
from hard_runs import HONEST, making
from runs import MakePolicy, Record, assert_equal, play
from seeds import seeds

from tokencake.policies.interface import EVERYTHING, Move, Plan, Status, View
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool


def checked(applications: tuple[Application, ...], make: MakePolicy, machine: Machine) -> list[Record]:
    """What happens, looking at each boundary whether all that the engine keeps agrees. Every call answers."""
    records: list[Record] = []
    simulate(applications, make(), machine, journal=records.append, check_every=1)
    count = Counter(type(record) for record in records)
    calls = sum(len(application.calls) for application in applications)
    assert count[e.AppFinished] == len(applications)
    assert count[e.CallArrived] == count[e.FirstToken] == count[e.CallFinished] == calls
    return records


@seeds(16, 64)
def test_under_any_policy_everything_ends_and_no_stretch_shows(seed: int) -> None:
    applications, machine = hard_workload(seed, hybrid)
    make = partial(Adversary, seed)
    assert_equal(checked(applications, make, machine), play(applications, make, machine, one_by_one=True))


@seeds(20, 60)
@pytest.mark.parametrize("spec", ["vllm", "tokencake"])
def test_pages_that_a_stretch_takes_and_gives_back_are_those_of_its_iterations(spec: str, seed: int) -> None:
    applications, machine = hard_workload(seed, hybrid)
    make = making(spec, applications)
    records = checked(applications, make, machine)
    assert any(isinstance(record, e.Occupied) for record in records)
    assert_equal(records, play(applications, make, machine, one_by_one=True))


@seeds(4, 24)
def test_a_hoarder_stops_nobody(seed: int) -> None:
    applications, machine = hard_workload(seed, hybrid)
    checked(applications, Hoarder, machine)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("spec", HONEST)
def test_every_policy_plays_to_the_end(spec: str, seed: int) -> None:
    applications, machine = hard_workload(seed, hybrid)
    checked(applications, making(spec, applications), machine)


# -- what moves

PAGES = Machine(
    name="small",
    gpu_blocks=100,
    block_tokens=4,
    kv_bytes_per_token=2**20,
    kv_groups=(KvGroup("full"), KvGroup("sliding_window", 9), KvGroup("mamba")),
    prefix_cache_retention_interval=-1,
    host_gib=1.0,
    max_context_tokens=1000,
    step_budget_tokens=64,
    max_running=8,
    asynchronous=False,
    step_s=0.01,
    link_gbps=1000.0,
)
PROMPT = Prompt((Segment("a/1.prompt", 0, 40),), tokens=40)
AGAIN = Prompt((Segment("a/2.result", 0, 4),), "a/1", 41, 45)
FIRST = Call("a/1", "a", "a/agent", "agent", PROMPT, 1, 1, tools=(Tool("tool", 1.0),))
SECOND = Call("a/2", "a", "a/agent", "agent", AGAIN, 1, 1, after=("a/1",))
AGENT = (Application("a", 0.0, (FIRST, SECOND)),)


class Swap:
    """Saves an agent's context when its tool starts, and lets the GPU forget it; brings it back if it is to."""

    listens_to = EVERYTHING

    def __init__(self, *, uploads: bool) -> None:
        self._uploads = uploads

    def plan(self, view: View) -> Plan:
        agent = view.agents.get("a/agent")
        if agent is None or agent.status is not Status.STALLED:
            return Plan()
        if not agent.host_blocks:
            return Plan(offload=(Move("a/agent", 10**6, keep=False),))
        return Plan(upload=(Move("a/agent", 10**6),) if self._uploads else ())


def test_a_context_moves_as_what_a_hit_at_its_end_needs() -> None:
    """Ten blocks: ten pages of full attention, two with the window of the next token, and the newest state."""
    (save,) = [r for r in checked(AGENT, partial(Swap, uploads=False), PAGES) if type(r) is e.OffloadStarted]
    assert (save.blocks, save.upto_blocks) == (10 + 2 + 1, 10)


@pytest.mark.parametrize("uploads", [False, True])
def test_what_was_saved_is_hit_again(uploads: bool) -> None:
    records = checked(AGENT, partial(Swap, uploads=uploads), PAGES)
    second = [record for record in records if type(record) is e.CallAdmitted][1]
    assert (second.gpu_hit_tokens, second.host_hit_tokens) == ((40, 0) if uploads else (0, 40))
    copied = [record.blocks for record in records if type(record) in (e.UploadStarted, e.LoadStarted)]
    assert copied == [13]


def test_a_context_whose_end_no_group_keeps_goes_back_to_its_prompt() -> None:
    """Without checkpoints in between, windows and states are kept at the prompt's last block alone."""
    sparse = replace(PAGES, prefix_cache_retention_interval=0)
    (save,) = [r for r in checked(AGENT, partial(Swap, uploads=False), sparse) if type(r) is e.OffloadStarted]
    assert (save.blocks, save.upto_blocks) == (9 + 2 + 1, 9)
