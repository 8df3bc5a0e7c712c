"""The simulator's engine under the policy `vllm`, one iteration at a time, in the terms of the oracle's steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from oracle.play import Step

from tokencake.policies.field.vllm import Vllm
from tokencake.sim.engine.scheduling.step import Scheduled
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, CallId
from tokencake.traces.events import Fact


class Seen(NamedTuple):
    """All that two schedulers can be compared by."""

    steps: list[Scheduled]  # those that compute something
    admitted: list[tuple[CallId, int]]  # in order, with the blocks that they hit
    preempted: list[CallId]
    finished: list[CallId]


def by_the_simulator(applications: Sequence[Application], machine: Machine) -> Seen:
    """What the simulator does."""
    steps: list[Scheduled] = []
    facts: list[Fact] = []
    simulate(applications, Vllm(), machine, [facts.append], one_by_one=True, step_log=steps.append)
    return Seen(
        steps,
        [
            (fact.call, fact.gpu_hit_tokens // machine.block_tokens)
            for fact in facts
            if isinstance(fact, e.CallAdmitted)
        ],
        [fact.call for fact in facts if isinstance(fact, e.CallPreempted)],
        [fact.call for fact in facts if isinstance(fact, e.CallFinished)],
    )


def by(steps: Iterable[Step]) -> Seen:
    """The same of the oracle's steps, or of vLLM's."""
    steps = list(steps)
    return Seen(
        [
            Scheduled(step.scheduled_ps, step.tokens, step.free_blocks, step.evicted_blocks)
            for step in steps
            if step.tokens
        ],
        [admission for step in steps for admission in step.admitted],
        [call for step in steps for call in step.preempted],
        [call for step in steps for call in step.finished],
    )
