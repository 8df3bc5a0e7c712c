"""Play a trace against a simulated engine under a policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ...policies.boundary import suspect
from ...policies.controller import Controller, Sink
from ...policies.interface import Policy
from ...traces.apps import Application, Call
from ...traces.errors import EngineError, TokencakeError
from ...traces.limits import problem
from ..machine.machine import Machine
from ..machine.timing import seconds
from .checked_engine import CheckedEngine
from .clock import Clock
from .engine import Engine
from .memory.block_pool import BlockPool, MakePool
from .memory.context_tree import ContextTree
from .scheduling.step import StepLog
from .world import World

Progress = Callable[[int, float], None]
CALLS_BETWEEN_PROGRESS = 256


class RunStats(NamedTuple):
    """What a run took. Times are wall time: all else about a run is in its facts."""

    policy_s: float
    wall_s: float
    applications: int
    calls: int
    iterations: int


def simulate(
    applications: Iterable[Application],
    policy: Policy,
    machine: Machine,
    sinks: Sequence[Sink] = (),
    *,
    journal: Sink | None = None,
    progress: Progress | None = None,
    pool: MakePool = BlockPool,
    one_by_one: bool = False,
    step_log: StepLog | None = None,
    check_every: int = 0,
) -> RunStats:
    """Run all applications to their ends, and report the facts to the sinks as they happen.

    The `journal` gets what is needed to replay the run, too: the policy's questions and plans. `progress` is called now
    and then with the applications that ended and the simulated seconds. Raises `EngineError` for a call that the
    machine can never serve, and `PolicyError` for a plan that means nothing. A bug of ours names, in a note, a policy
    that may have caused it.

    For tests: `pool` and `one_by_one` exchange the engine's structures for slow ones, and with `check_every` the engine
    looks, at each so many of its boundaries, whether all that it keeps twice agrees; if not, that is a `CheckError`.
    """
    began = time.perf_counter()
    clock, timing = Clock(), machine.timing()
    tree = ContextTree(2 * len(machine.kv_groups))
    world = World(clock, _checked(applications, machine), tree, timing.client_ps)
    finished = world.finished if progress is None else _with_progress(world, clock, progress)
    make = CheckedEngine if check_every else Engine
    engine = make(clock, machine, timing, tree, finished, pool=pool, one_by_one=one_by_one, step_log=step_log)
    if isinstance(engine, CheckedEngine):
        engine.check_every = check_every
    controller = Controller(policy, machine.beliefs(), engine, sinks, journal)
    engine.start(controller)
    world.start(engine)
    try:
        clock.env.run(until=world.done)
        engine.stop()
    except TokencakeError:
        raise
    except Exception as error:
        suspect(error, policy)
        raise
    return RunStats(
        controller.policy_s, time.perf_counter() - began, world.applications, world.calls, engine.iterations
    )


def _checked(applications: Iterable[Application], machine: Machine) -> Iterable[Application]:
    for application in applications:
        if (text := problem(application, machine)) is not None:
            raise EngineError(text)
        yield application


def _with_progress(world: World, clock: Clock, progress: Progress) -> Callable[[Call], None]:
    def finished(call: Call) -> None:
        world.finished(call)
        if world.calls % CALLS_BETWEEN_PROGRESS == 0:
            progress(world.applications, seconds(clock.now_ps))

    return finished
