"""Runs of the simulator for tests: all facts of a run, by the fast structures or by slow ones; and an engine at rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import simpy
from oracle.blocks import BlockPool
from tokencake.policies.controller import Controller
from tokencake.policies.interface import Policy
from tokencake.sim.content import ContextTree
from tokencake.sim.engine import Engine
from tokencake.sim.kv import KvPool
from tokencake.sim.machine import Machine
from tokencake.sim.simulate import simulate
from tokencake.sim.workload import Workload
from tokencake.traces.apps import Application

Record = Any  # a fact, or what was planned
MakePolicy = Callable[[], Policy]
BLOCK_BY_BLOCK: Any = BlockPool  # it has the interface of the pool on runs, not its type


def play(
    applications: Iterable[Application],
    make: MakePolicy,
    machine: Machine,
    *,
    one_by_one: bool = False,
    pool: type[KvPool] = KvPool,
) -> list[Record]:
    """Everything that happens in a run under a new policy, its plans included."""
    records: list[Record] = []
    simulate(applications, make(), machine, journal=records.append, one_by_one=one_by_one, pool=pool)
    return records


def assert_the_same_by_all_structures(applications: tuple[Application, ...], make: MakePolicy, machine: Machine) -> list[Record]:
    """Stretches, single iterations and single blocks: the same records. Which ones."""
    fast = play(applications, make, machine)
    assert_equal(fast, play(applications, make, machine, one_by_one=True))
    assert_equal(fast, play(applications, make, machine, one_by_one=True, pool=BLOCK_BY_BLOCK))
    return fast


def assert_equal(records: list[Record], others: list[Record]) -> None:
    """Fails at the first difference, and shows what came before it."""
    for at, (one, other) in enumerate(zip(records, others, strict=False)):
        assert one == other, f"record {at}, after {records[max(0, at - 3) : at]}"
    assert len(records) == len(others)


class Rest(NamedTuple):
    """An engine after its run, when nothing is on its way any more."""

    engine: Engine
    tree: ContextTree
    records: list[Record]


def play_to_rest(applications: Iterable[Application], policy: Policy, machine: Machine, pool: type[KvPool] = KvPool) -> Rest:
    """As `simulate`, then on until no event is left. The policy must not want to be woken when there are no agents."""
    records: list[Record] = []
    env: Any = simpy.Environment(0)
    tree = ContextTree(machine.block_tokens)
    workload = Workload(env, applications, tree, machine.timing().client_ps)
    engine = Engine(env, machine, tree, workload.finished, pool=pool)
    engine.start(Controller(policy, machine.beliefs(), engine, (), records.append))
    workload.start(engine)
    env.run(until=workload.done)
    env.run()
    engine.stop()
    return Rest(engine, tree, records)
