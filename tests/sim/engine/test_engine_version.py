"""The rules of vLLM's scheduler that not all versions have, in small numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokencake.policies.field.vllm import Vllm
from tokencake.policies.interface import Plan, View
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.engine_versions import ENGINE_VERSIONS
from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.errors import MachineError

UP_TO_0_30 = ENGINE_VERSIONS[:5]
SINCE_0_31 = ENGINE_VERSIONS[5:]

MACHINE = Machine(
    name="small",
    gpu_blocks=30,
    block_tokens=4,
    kv_bytes_per_token=1,
    host_gib=0.0,
    max_context_tokens=1000,
    step_budget_tokens=100,
    max_running=8,
    asynchronous=False,
    step_s=1.0,
    link_gbps=1.0,
)


def one_call(name: str, arrival_s: float, prompt_tokens: int, answer_tokens: int) -> Application:
    prompt = Prompt((Segment(name, 0, prompt_tokens),), tokens=prompt_tokens)
    return Application(name, arrival_s, (Call(name, name, name, "agent", prompt, answer_tokens, answer_tokens),))


class LetsOthersGoFirst:
    """Whoever does not fit is passed over."""

    listens_to = frozenset({e.CallArrived})

    def plan(self, view: View) -> Plan:
        return Plan(skip=True)


def admitted_after_the_first_preemption(version: str) -> str:
    """Two calls of 10 blocks each that grow by 5 until the 30 are full, and one of 15 that has not fitted so far."""
    growing = [one_call(name, at_s, 40, 30) for name, at_s in (("first", 0.0), ("second", 0.1))]
    large = one_call("large", 1.5, 60, 5)
    facts: list[Any] = []
    simulate([*growing, large], LetsOthersGoFirst(), replace(MACHINE, engine_version=version), [facts.append])
    preempted = next(n for n, fact in enumerate(facts) if isinstance(fact, e.CallPreempted))
    assert facts[preempted].call == "second"
    return next(str(fact.call) for fact in facts[preempted:] if isinstance(fact, e.CallAdmitted))


@pytest.mark.parametrize("version", UP_TO_0_30)
def test_who_was_passed_over_went_before_a_preempted_call(version: str) -> None:
    assert admitted_after_the_first_preemption(version) == "large"


@pytest.mark.parametrize("version", SINCE_0_31)
def test_a_preempted_call_goes_before_who_was_passed_over(version: str) -> None:
    assert admitted_after_the_first_preemption(version) == "second"


def first_token_s(version: str) -> float:
    """Of a prompt of 90 tokens, 30 of them a step, beside which nobody waits."""
    facts: list[object] = []
    machine = replace(MACHINE, long_prefill_token_threshold=30, engine_version=version)
    simulate([one_call("long", 0.0, 90, 2)], Vllm(), machine, [facts.append])
    return next(fact.at_s for fact in facts if isinstance(fact, e.FirstToken))


@pytest.mark.parametrize("version", UP_TO_0_30)
def test_a_lone_long_prompt_was_cut(version: str) -> None:
    assert first_token_s(version) == 3.0


@pytest.mark.parametrize("version", SINCE_0_31)
def test_a_lone_long_prompt_is_not_cut(version: str) -> None:
    assert first_token_s(version) == 1.0


def admissions(version: str, prompt_tokens: int, second_s: float) -> list[e.CallAdmitted]:
    """Of a prompt, and the same again, on a machine that keeps states beside full attention."""
    machine = replace(MACHINE, kv_groups=(KvGroup("full"), KvGroup("mamba")), engine_version=version)
    shared = Prompt((Segment("/shared", 0, prompt_tokens),), tokens=prompt_tokens)
    twice = [
        Application(name, at_s, (Call(name, name, name, "agent", shared, 20, 20),))
        for name, at_s in (("first", 0.0), ("second", second_s))
    ]
    facts: list[Any] = []
    simulate(twice, Vllm(), machine, [facts.append])
    return [fact for fact in facts if isinstance(fact, e.CallAdmitted)]


@pytest.mark.parametrize(("version", "hit_tokens"), [("0.30", 0), ("0.31", 0), ("0.32", 4), ("0.33", 4)])
def test_a_prompt_of_whole_blocks_finds_a_state_when_it_comes_again(version: str, hit_tokens: int) -> None:
    """Its last token is computed again, so a hit ends a block before."""
    _, second = admissions(version, prompt_tokens=8, second_s=50.0)
    assert second.gpu_hit_tokens == hit_tokens


@pytest.mark.parametrize(("version", "at_s"), [("0.31", 1.0), ("0.32", 2.0), ("0.33", 1.0)])
def test_a_state_that_is_made_known_again_is_waited_for(version: str, at_s: float) -> None:
    """That of the first 8 tokens, which the first step computes; the second step, of the ninth, copies it."""
    _, second = admissions(version, prompt_tokens=9, second_s=0.5)
    assert (second.at_s, second.gpu_hit_tokens) == (at_s, 8)


def test_states_are_simulated_where_they_are_given_back() -> None:
    with pytest.raises(MachineError, match=r"kv_groups: expected no mamba groups with engine_version 0\.29: they are"):
        admissions("0.29", 8, 0.0)
