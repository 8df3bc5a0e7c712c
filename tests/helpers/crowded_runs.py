"""Applications that arrive at once where memory is short, and what happens to them under one policy."""

from __future__ import annotations

from collections.abc import Sequence

from runs import MakePolicy

from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application
from tokencake.traces.events import Fact
from tokencake.traces.generate.workloads import code_writer, deep_research

TIGHT_BLOCKS = 1500  # the largest call of these workloads takes 1,416


def crowded() -> list[tuple[Application, ...]]:
    """A few applications of each kind that arrive at once."""
    return [tuple(code_writer(apps=4, qps=1.0)), tuple(deep_research(apps=3, qps=1.0))]


def facts_of(make: MakePolicy, apps: Sequence[Application], **settings: float) -> list[Fact]:
    """What a fresh policy brings about on a machine with these settings, and few blocks unless they say otherwise."""
    facts: list[Fact] = []
    machine = load_machine(
        "a800-qwen2.5-14b", [f"{key}={value}" for key, value in {"gpu_blocks": TIGHT_BLOCKS, **settings}.items()]
    )
    simulate(iter(apps), make(), machine, [facts.append])
    return facts


def count(facts: Sequence[Fact], kind: type) -> int:
    return sum(isinstance(fact, kind) for fact in facts)


def check_all_ended(facts: Sequence[Fact], apps: Sequence[Application]) -> None:
    """Every application ended, and each of its calls once."""
    ended = [fact.app for fact in facts if isinstance(fact, e.AppFinished)]
    answered = [fact.call for fact in facts if isinstance(fact, e.CallFinished)]
    assert sorted(ended) == sorted(app.id for app in apps)
    assert sorted(answered) == sorted(call.id for app in apps for call in app.calls)
