"""The engine's checks of itself: nothing is wrong in runs, and what is made wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from adversary import Adversary
from hard_runs import hard, smallest

from tokencake.policies.controller import Controller
from tokencake.policies.ledger import Ledger
from tokencake.sim.engine.checked_engine import CheckedEngine
from tokencake.sim.engine.memory.block_pool import BlockPool
from tokencake.sim.engine.memory.blocks import BlockHold, BlockRun, Owner
from tokencake.sim.engine.memory.context_tree import ContextTree, full_blocks
from tokencake.sim.engine.memory.copies import Copies
from tokencake.sim.engine.scheduling.running_calls import RunningCalls
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.apps import Segment
from tokencake.traces.errors import CheckError


@pytest.mark.parametrize("seed", range(20))
def test_all_agrees_whatever_a_policy_wants(seed: int) -> None:
    applications, machine = (smallest if seed % 2 else hard)(seed)
    simulate(applications, Adversary(seed), machine, check_every=1)


@pytest.mark.sources
def test_every_so_many_boundaries_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[CheckedEngine] = []
    monkeypatch.setattr(CheckedEngine, "check", lambda self: looked.append(self))
    counts = []
    for check_every in (0, 1, 5):
        looked.clear()
        simulate(*_with_policy(), check_every=check_every)
        counts.append(len(looked))
    assert counts[0] == 0
    assert counts[1] > 50
    assert counts[2] == counts[1] // 5


# -- a pool of 10 blocks of a token each: one context of 4 blocks is held, and cached


class Pool:
    def __init__(self) -> None:
        self.tree = ContextTree()
        self.pool = BlockPool(self.tree, 10)
        self.owner = Owner("a")
        self.path = full_blocks(self.tree.follow(self.tree.empty, [Segment("x", 0, 4)]), 1)
        self.hold = self.fill()

    def fill(self) -> BlockHold:
        hold = self.pool.touch(self.path, 0)
        self.pool.allocate(hold, 4)
        self.pool.cache(hold, self.path, 4)
        return hold

    def first_run(self, hold: BlockHold) -> BlockRun:
        return self.pool._cached.runs_of(hold.parts[0])[0]

    def check(self) -> None:
        self.tree.check()
        self.pool.check()
        self.pool.check_holds([(self.hold, 0)])


def one_block_too_many(it: Pool) -> None:
    it.pool._queue.num_free_blocks += 1


def somebody_unknown(it: Pool) -> None:
    it.pool.touch(it.path, 2)


def kept_and_not_counted(it: Pool) -> None:
    it.pool.keep(it.hold, it.owner)
    it.pool._queue.kept_blocks = 0


def wrong_owner(it: Pool) -> None:
    it.pool.free(it.hold, it.owner)
    it.owner.idle_blocks -= 1


def wrongly_stalled(it: Pool) -> None:
    it.pool.free(it.hold, it.owner)
    it.owner.stalled = True


def not_in_the_queue(it: Pool) -> None:
    it.first_run(it.hold).ref_cnt = 0


def a_copy_that_is_found(it: Pool) -> None:
    it.first_run(it.fill()).is_first_copy = True


def a_copy_without_a_first_one(it: Pool) -> None:
    run = it.first_run(it.hold)
    run.is_first_copy = False
    run.node.runs[0].remove(run)
    it.pool._cached.later_copies[run.node] = [run]


def a_node_too_many(it: Pool) -> None:
    it.tree.nodes += 1


@pytest.mark.parametrize(
    ("make_wrong", "message"),
    [
        (one_block_too_many, "the GPU's pool: free blocks: 7 as it is kept, 6 as it is counted"),
        (somebody_unknown, "the GPU's pool: references to blocks: 6 as it is kept, 4 as it is counted"),
        (kept_and_not_counted, "the GPU's pool: blocks that are kept: 0 as it is kept, 4 as it is counted"),
        (wrong_owner, "idle blocks of 'a': 3 as it is kept, 4 as it is counted"),
        (wrongly_stalled, "idle blocks of stalled agents: 0 as it is kept, 4 as it is counted"),
        (not_in_the_queue, "the GPU's pool: free runs"),
        (a_copy_that_is_found, "whether look-ups find a run"),
        (a_copy_without_a_first_one, "later copies without a first one"),
        (a_node_too_many, "nodes of the context tree: 3 as it is kept, 2 as it is counted"),
    ],
)
def test_a_pool_that_is_made_wrong_says_what_does_not_agree(make_wrong: Callable[[Pool], None], message: str) -> None:
    it = Pool()
    it.check()
    make_wrong(it)
    with pytest.raises(CheckError, match=message):
        it.check()


# -- bugs that a run does not notice by itself


def _with_policy() -> tuple[Any, Any, Any]:
    applications, machine = hard(3)
    return applications, Adversary(3), machine


def a_pin_is_left_behind(self: Copies, agent: Any) -> None:
    if agent.pin is not None:
        agent.pin = None
        del self.pinned[agent.name]


def growth_is_not_given_back(self: RunningCalls, *arguments: Any) -> None:
    growth_blocks = self.growth_blocks
    _free(self, *arguments)
    self.growth_blocks = growth_blocks


def a_stall_has_no_end(self: Ledger, fact: Any) -> None:
    _tool_returned(self, fact)
    self._stalled[fact.agent] = self._agents[fact.agent]


def a_preemption_is_not_heard(self: Controller, fact: Any) -> None:
    if type(fact).__name__ != "CallPreempted":
        _hear(self, fact)


_free, _tool_returned, _hear = RunningCalls.free, Ledger._tool_returned, Controller.hear


@pytest.mark.sources
@pytest.mark.parametrize(
    ("owner", "name", "bug", "message"),
    [
        (Copies, "unpin", a_pin_is_left_behind, "the GPU's pool: references to blocks"),
        (RunningCalls, "free", growth_is_not_given_back, "blocks that running and loading calls will yet take"),
        (Ledger, "_tool_returned", a_stall_has_no_end, "stalled agents"),
        (Controller, "hear", a_preemption_is_not_heard, "calls"),
    ],
)
def test_a_bug_is_noticed_at_the_next_boundary(
    owner: type, name: str, bug: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(CheckError, match=message):
        _play_twenty()


def _play_twenty() -> None:
    for seed in range(20):
        applications, machine = smallest(seed)
        simulate(applications, Adversary(seed), machine, check_every=1)
