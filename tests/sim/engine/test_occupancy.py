"""What the GPU's blocks are used for is a share of them: 0 ≤ effective ≤ used ≤ 1, whoever holds what at once."""

from __future__ import annotations

import pytest
from adversary import Adversary, hard_workload
from digests import SPECS
from hard_runs import chunks, facts_on, hard, smallest
from runs import play
from shares import check_shares

from tokencake.policies.interface import EVERYTHING, Plan, View
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool

SIZE, SHARED_BLOCKS = 4, 6
MACHINE = Machine(
    name="small",
    gpu_blocks=60,
    block_tokens=SIZE,
    kv_bytes_per_token=2**20,
    host_gib=1.0,
    max_context_tokens=1000,
    step_budget_tokens=256,
    max_running=8,
    asynchronous=False,
    step_s=0.01,
    link_gbps=1.0,
)


class PinsEverything:
    """Pins every stalled agent's context for a long time."""

    listens_to = EVERYTHING

    def plan(self, view: View) -> Plan:
        return Plan(pin=dict.fromkeys(view.stalled, 1e6))


def stalls(name: str) -> Call:
    """A call of an agent whose full blocks are what all have, and whose tool then runs for ten seconds."""
    segments = (Segment("shared", 0, SHARED_BLOCKS * SIZE), Segment(name, 0, 1))
    prompt = Prompt(segments, tokens=SHARED_BLOCKS * SIZE + 1)
    return Call(f"a/{name}", "a", f"a/{name}.agent", "agent", prompt, 1, 1, tools=(Tool("tool", 10.0),))


def test_blocks_that_three_agents_pin_are_held_once() -> None:
    """Three agents with the same six blocks pin them while their tools run, ten seconds: 6 are held, not 18."""
    records = play((Application("a", 0.0, (stalls("one"), stalls("two"), stalls("three"))),), PinsEverything, MACHINE)
    occupied = check_shares(records)
    began = min(fact.at_s for fact in records if isinstance(fact, e.ToolStarted))
    ended = max(fact.at_s for fact in records if isinstance(fact, e.ToolReturned))
    assert ended - began == pytest.approx(10.0, abs=0.05)
    assert occupied.held_block_s == pytest.approx(SHARED_BLOCKS * (ended - began))
    assert occupied.stalled_block_s == pytest.approx(SHARED_BLOCKS * (ended - began))


@pytest.mark.parametrize("spec", SPECS)
@chunks(quick=10, most=200, size=10)
def test_effective_is_never_less_than_nothing(spec: str, seeds: range) -> None:
    for seed in seeds:
        for made in (hard(seed), smallest(seed)):
            check_shares(facts_on(spec, *made))


@chunks(quick=40, most=400, size=40)
def test_nor_under_policies_that_want_nonsense(seeds: range) -> None:
    for seed in seeds:
        applications, machine = hard_workload(seed)
        check_shares(play(applications, lambda seed=seed: Adversary(seed), machine))  # type: ignore[misc]
