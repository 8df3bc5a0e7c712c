"""Runs of one policy in the simulator, and what must hold of each: what tests of published policies have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from adversary import hard_workload
from runs import play

from tokencake.policies.interface import Policy
from tokencake.policies.replay import replay
from tokencake.sim.machine_file import load_machine
from tokencake.sim.simulate import simulate
from tokencake.traces import events as e
from tokencake.traces.apps import Application
from tokencake.traces.generate import code_writer, deep_research

Make = Callable[[], Policy]

SEEDS = range(10)
TIGHT_BLOCKS = 1500  # the largest call of these workloads takes 1,416


def crowded() -> list[list[Application]]:
    """A few applications of each kind that arrive at once."""
    return [list(code_writer(apps=4, qps=1.0)), list(deep_research(apps=3, qps=1.0))]


def facts_of(make: Make, apps: Sequence[Application], **settings: float) -> list[object]:
    """What a fresh policy brings about on a machine with these settings, and few blocks unless they say otherwise."""
    facts: list[object] = []
    machine = load_machine(
        "a800-qwen2.5-14b", [f"{key}={value}" for key, value in {"gpu_blocks": TIGHT_BLOCKS, **settings}.items()]
    )
    simulate(iter(apps), make(), machine, [facts.append])
    return facts


def count(facts: Sequence[object], kind: type) -> int:
    return sum(isinstance(fact, kind) for fact in facts)


def check_everything_ends(make: Make, **settings: float) -> None:
    for apps in crowded():
        facts = facts_of(make, apps, **settings)
        assert count(facts, e.AppFinished) == len(apps)
        assert count(facts, e.CallFinished) == sum(len(app.calls) for app in apps)

    for seed in SEEDS:
        applications, machine = hard_workload(seed)
        assert count(play(applications, make, machine), e.AppFinished) == len(applications)


def check_it_repeats(make: Make) -> None:
    """The same run twice, and the record of a run told to a fresh policy."""
    for apps in crowded():
        assert facts_of(make, apps) == facts_of(make, apps)
    for seed in SEEDS:
        applications, machine = hard_workload(seed)
        journal: list[Any] = []
        simulate(applications, make(), machine, journal=journal.append)
        parity = replay(journal, make(), machine.beliefs())
        assert parity.plans
        assert parity.equal, parity.first


def check_the_future_is_unknown(make: Make) -> None:
    """Tools that take longer change nothing before the first of them would have returned."""
    for apps in crowded():
        facts, other = facts_of(make, apps), facts_of(make, [_with_longer_tools(app) for app in apps])
        first = next(i for i, fact in enumerate(facts) if isinstance(fact, e.ToolReturned))
        assert first > 10
        assert facts[:first] == other[:first]


def _with_longer_tools(app: Application) -> Application:
    calls = (
        replace(call, tools=tuple(replace(tool, duration_s=tool.duration_s + 100) for tool in call.tools))
        for call in app.calls
    )
    return replace(app, calls=tuple(calls))
