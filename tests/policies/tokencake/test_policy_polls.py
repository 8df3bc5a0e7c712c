"""Tokencake is asked only when another plan may come of it: asked more often it does the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from adversary import hard_workload
from runs import Record, play

from tokencake.policies.interface import Plan, View
from tokencake.policies.tokencake.policy import Tokencake, tokencake, tokencake_space, tokencake_time
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces import events as e
from tokencake.traces.generate.workloads import code_writer

OF_THE_POLICY = (e.Polled, e.Asked, e.AskedShared, e.Planned)
MAKES: dict[str, Callable[[], Tokencake]] = {
    "default": tokencake,
    "commit": partial(tokencake, commit=True),
    "skip": partial(tokencake, skip=True),
    "no pins": partial(tokencake, keep_weight=0.0),
    "stalls": partial(tokencake, save="stalls"),
    "space": tokencake_space,
    "time": tokencake_time,
}


class AskedAlways:
    """Tokencake, asked after all facts that may matter to it at one time or another."""

    def __init__(self, policy: Tokencake) -> None:
        self._policy = policy

    @property
    def listens_to(self) -> frozenset[type]:
        return self._policy.facts

    def plan(self, view: View) -> Plan:
        return self._policy.plan(view)


def happened(records: list[Record]) -> list[Record]:
    return [record for record in records if not isinstance(record, OF_THE_POLICY)]


def polls(records: list[Record]) -> int:
    return sum(isinstance(record, e.Polled) for record in records)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("seed", range(10))
def test_what_happens_is_the_same(seed: int, make: Callable[[], Tokencake]) -> None:
    applications, machine = hard_workload(seed)
    asked = play(applications, make, machine)
    always = play(applications, lambda: AskedAlways(make()), machine)
    assert happened(asked) == happened(always)
    assert polls(asked) <= polls(always)


def test_a_quarter_of_the_questions_is_saved_where_nobody_is_held_back() -> None:
    applications = tuple(code_writer(apps=8, qps=0.03, seed=1))
    asked = play(applications, tokencake, PUBLISHED)
    always = play(applications, lambda: AskedAlways(tokencake()), PUBLISHED)
    assert happened(asked) == happened(always)
    assert polls(asked) < 0.8 * polls(always)
