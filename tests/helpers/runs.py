"""Runs of the simulator for tests: all that happens, by fast structures or slow ones; and an engine at rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from oracle.blocks import PlainBlockPool

from tokencake.policies.interface import Policy
from tokencake.sim.engine.memory.block_pool import BlockPool, MakePool
from tokencake.sim.engine.memory.context_tree import ContextTree
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces import core_build
from tokencake.traces.apps import Application, Call, Prompt, Segment

Record = Any  # a fact, or what was planned
MakePolicy = Callable[[], Policy]
BLOCK_BY_BLOCK: Any = PlainBlockPool  # it has the interface of the pool on runs, not its type


def play(
    applications: Iterable[Application],
    make: MakePolicy,
    machine: Machine,
    *,
    one_by_one: bool = False,
    pool: MakePool = BlockPool,
) -> list[Record]:
    """Everything that happens in a run under a new policy, its plans included."""
    records: list[Record] = []
    simulate(applications, make(), machine, journal=records.append, one_by_one=one_by_one, pool=pool)
    return records


def assert_the_same_by_all_structures(
    applications: tuple[Application, ...], make: MakePolicy, machine: Machine
) -> list[Record]:
    """Stretches, single iterations and, by the sources, single blocks: the same records. Which ones."""
    fast = play(applications, make, machine)
    assert_equal(fast, play(applications, make, machine, one_by_one=True))
    if core_build.running != core_build.COMPILED:  # a compiled engine has compiled pools
        assert_equal(fast, play(applications, make, machine, one_by_one=True, pool=BLOCK_BY_BLOCK))
    return fast


def assert_equal(records: list[Record], others: list[Record]) -> None:
    """Fails at the first difference, and shows what came before it."""
    for at, (one, other) in enumerate(zip(records, others, strict=False)):
        assert one == other, f"record {at}, after {records[max(0, at - 3) : at]}"
    assert len(records) == len(others)


class Rest(NamedTuple):
    """What is left when the last application has ended and nothing is on its way any more."""

    gpu: BlockPool
    host: BlockPool
    records: list[Record]


def play_to_rest(applications: tuple[Application, ...], make: MakePolicy, machine: Machine, idle_s: float) -> Rest:
    """Play, then leave the engine idle for about so long, until a last call that leaves nothing new comes and goes."""
    pools: list[BlockPool] = []

    def kept(tree: ContextTree, blocks: int, side: int) -> BlockPool:
        pools.append(BlockPool(tree, blocks, side))
        return pools[-1]

    prompt = Prompt((Segment("last/x", 0, 1),), tokens=1)
    end_s = play(applications, make, machine)[-1].at_s
    last = [
        Application(app, end_s + times * idle_s, (Call(f"{app}/call", app, f"{app}/agent", "last", prompt, 1, 1),))
        for times, app in enumerate(("first", "last"), 1)
    ]
    records = play((*applications, *last), make, machine, pool=kept)
    gpu, host = pools
    return Rest(gpu, host, records)
