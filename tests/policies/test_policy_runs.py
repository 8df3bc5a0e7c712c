"""Policies in the simulator: whatever is switched off, every application ends; equal facts give equal plans."""

from dataclasses import fields
from typing import Any

import pytest

from tokencake.policies.controller import as_record
from tokencake.policies.interface import Hits
from tokencake.policies.ledger import Ledger
from tokencake.policies.registry import load_policy
from tokencake.policies.tokencake.options import Options
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application
from tokencake.traces.generate.workloads import code_writer

SWITCHES = [field.name for field in fields(Options) if field.type == "bool" and field.name not in ("space", "time")]


def facts_of(spec: str, apps: list[Application], blocks: int = 1500) -> list[object]:
    facts: list[object] = []
    machine = load_machine("a800-qwen2.5-14b", [f"gpu_blocks={blocks}"])
    simulate(iter(apps), load_policy(spec), machine, [facts.append])
    return facts


@pytest.fixture(scope="module")
def apps() -> list[Application]:
    return list(code_writer(apps=4, qps=1.0))


def count(facts: list[object], kind: type) -> int:
    return sum(isinstance(fact, kind) for fact in facts)


@pytest.mark.parametrize(
    "spec",
    ["vllm", "tokencake", "tokencake-space", "tokencake-time"]
    + [f"tokencake:rules=published,{switch}=off" for switch in SWITCHES]
    + [f"tokencake:{switch}=on" for switch in ("skip", "commit", "gate")]
    + [
        f"tokencake{half}:rules={rules},upload={upload}"
        for half in ("", "-time")
        for rules in ("published", "default")
        for upload in ("predictive", "pause", "demand")
    ],
)
def test_every_application_ends(spec, apps):
    facts = facts_of(spec, apps)
    assert count(facts, e.AppFinished) == len(apps)
    assert count(facts, e.CallFinished) == 27 * len(apps)


def test_commitment_means_that_nobody_is_preempted(apps):
    assert count(facts_of("tokencake-space:rules=published", apps), e.CallPreempted) == 0
    assert count(facts_of("tokencake-space:rules=published,commit=off,reserve=off", apps), e.CallPreempted) > 0


def test_offload_turns_computed_tokens_into_copied_ones(apps):
    facts = facts_of("tokencake:rules=published,upload=demand", apps)
    assert count(facts, e.OffloadFinished) > 0
    assert count(facts, e.LoadFinished) > 0
    assert count(facts, e.UploadStarted) == 0


def test_predictive_uploads_are_taken_by_the_calls_that_they_were_made_for(apps):
    assert count(facts_of("tokencake:rules=published", apps, blocks=1100), e.UploadTaken) > 0


def test_a_run_repeats_exactly(apps):
    assert facts_of("tokencake", apps) == facts_of("tokencake", apps)


def test_the_past_decides_a_plan_not_the_future(apps):
    """Longer tools change nothing before the first of them would have returned."""
    longer = [
        app._replace(
            calls=tuple(
                call._replace(tools=tuple(tool._replace(duration_s=tool.duration_s + 100) for tool in call.tools))
                for call in app.calls
            ),
        )
        for app in apps
    ]
    facts, other = facts_of("tokencake", apps), facts_of("tokencake", longer)
    first = next(i for i, fact in enumerate(facts) if isinstance(fact, e.ToolReturned))
    assert first > 10
    assert facts[:first] == other[:first]


class Recorded:
    """The cache's answers of a recorded run, in the order in which they were asked for, where they changed."""

    def __init__(self) -> None:
        self.answers: list[e.Asked] = []
        self.last: dict[str, Hits] = {}

    def hits(self, call: str):
        if self.answers and self.answers[0].call == call:
            asked = self.answers.pop(0)
            self.last[call] = Hits(asked.gpu_blocks, asked.idle_blocks, asked.host_blocks)
        return self.last[call]

    def shared_blocks(self, call: str) -> int:
        raise NotImplementedError


@pytest.mark.parametrize(
    "spec", ["tokencake:rules=published,prefix_affinity=off", "tokencake", "tokencake-time", "tokencake-space"]
)
def test_recorded_facts_give_the_recorded_plans(spec, apps):
    journal: list[Any] = []
    machine = load_machine("a800-qwen2.5-14b", ["gpu_blocks=1500"])
    simulate(iter(apps), load_policy(spec), machine, [], journal=journal.append)
    policy, cache = load_policy(spec), Recorded()
    ledger = Ledger(machine.beliefs(), cache)
    news: list[e.Fact] = []
    plans = 0
    for i, fact in enumerate(journal):
        if isinstance(fact, e.Asked):
            continue
        if isinstance(fact, e.Planned):
            plans += 1
            assert as_record(policy.plan(ledger.view)) == fact.plan
            assert cache.answers == []
            continue
        ledger.fold(fact)
        if isinstance(fact, e.Polled):
            ledger.tell(news)
            news.clear()
            for later in journal[i + 1 :]:
                if not isinstance(later, e.Asked):
                    break
                cache.answers.append(later)
        else:
            news.append(fact)
    assert plans > 100
