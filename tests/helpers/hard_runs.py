"""Every policy on random workloads that leave no room to spare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial

import pytest
from adversary import hard_workload
from differential.workloads import Workload
from digests import SPECS
from runs import MakePolicy

from tokencake.policies.registry import is_bound, load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application
from tokencake.traces.events import Fact

HONEST = [spec for spec in SPECS if not is_bound(spec)]


def making(spec: str, applications: Sequence[Application]) -> MakePolicy:
    return partial(load_policy, spec, applications=applications)


def largest_blocks(applications: Iterable[Application], block_tokens: int) -> int:
    """The smallest cache that can serve all calls, one after another."""
    calls = [call for application in applications for call in application.calls]
    return max(-(-(call.prompt_tokens + call.output_tokens - 1) // block_tokens) for call in calls)


@cache
def hard(seed: int) -> Workload:
    """Its own machine has a cache of anything from the largest call to four times that."""
    return hard_workload(seed)


def smallest(seed: int) -> Workload:
    applications, machine = hard(seed)
    return Workload(applications, replace(machine, gpu_blocks=largest_blocks(applications, machine.block_tokens)))


def chunks(quick: int, most: int, size: int) -> pytest.MarkDecorator:
    """Seeds up to `most`: the first `quick` ones, then slow ranges of `size`."""
    ranges = [range(quick), *(range(first, min(first + size, most)) for first in range(quick, most, size))]
    return pytest.mark.parametrize(
        "seeds",
        [pytest.param(some, marks=[pytest.mark.slow] if some.start else []) for some in ranges],
        ids=[f"{some.start}-{some.stop - 1}" for some in ranges],
    )


def facts_on(spec: str, applications: Sequence[Application], machine: Machine) -> list[Fact]:
    facts: list[Fact] = []
    simulate(applications, making(spec, applications)(), machine, [facts.append])
    return facts
