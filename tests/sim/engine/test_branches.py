"""Contexts that share a beginning and then part: what is copied of one branch says nothing of the other."""

from __future__ import annotations

from runs import play

from tokencake.policies.interface import EVERYTHING, Move, Plan, View
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool

SHARED_BLOCKS, OWN_BLOCKS, SIZE = 6, 3, 4
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
    link_gbps=0.05,  # a second for a dozen blocks
)


class SavesEverything:
    """Offloads every stalled agent's context at once."""

    listens_to = EVERYTHING

    def plan(self, view: View) -> Plan:
        return Plan(offload=tuple(Move(agent, 100) for agent in view.stalled))


def branch(name: str) -> Call:
    """The call of an agent: what all begin with, then its own; a tool runs behind it."""
    shared = Segment("a/shared", 0, SHARED_BLOCKS * SIZE)
    own = Segment(f"a/{name}.own", 0, OWN_BLOCKS * SIZE)
    prompt = Prompt((shared, own), tokens=(SHARED_BLOCKS + OWN_BLOCKS) * SIZE)
    return Call(f"a/{name}", "a", f"a/{name}.agent", "agent", prompt, 1, 1, tools=(Tool("tool", 30.0),))


def test_a_branch_is_saved_while_its_sibling_is_being_saved() -> None:
    """The second copies the blocks that are its own; those that both begin with are on their way already."""
    application = Application("a", 0.0, (branch("one"), branch("two")))
    records = play((application,), SavesEverything, MACHINE)
    started = [fact for fact in records if isinstance(fact, e.OffloadStarted)]
    assert [(fact.agent, fact.blocks) for fact in started] == [
        ("a/one.agent", SHARED_BLOCKS + OWN_BLOCKS),
        ("a/two.agent", OWN_BLOCKS),
    ]
    finished = {fact.agent: fact.upto_blocks for fact in records if isinstance(fact, e.OffloadFinished)}
    assert finished == dict.fromkeys(("a/one.agent", "a/two.agent"), SHARED_BLOCKS + OWN_BLOCKS)
