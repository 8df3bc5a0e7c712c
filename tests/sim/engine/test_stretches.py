"""Stretches in closed form against iterations one by one: the same facts at the same picosecond, in fewer steps."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
from adversary import Adversary, hard_workload
from differential.workloads import capped, hosted, windowed, workload
from runs import MakePolicy, assert_equal, assert_the_same_by_all_structures, play
from seeds import seeds

from tokencake.policies.field.vllm import Vllm
from tokencake.policies.tokencake.policy import tokencake
from tokencake.sim.engine.scheduling.step import Scheduled
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.generate.workloads import code_writer, deep_research


@seeds(80, 200)
def test_forks_joins_and_little_memory(seed: int) -> None:
    applications, machine = workload(seed)
    assert_the_same_by_all_structures(applications, Vllm, machine)


@pytest.mark.parametrize("seed", range(60))
def test_long_prompts_that_are_cut(seed: int) -> None:
    """Also under policies that hold calls back and preempt: who waits, and who is alone, changes all the time."""
    applications, machine = hard_workload(seed, capped)
    make = Vllm if seed % 3 == 0 else partial(Adversary, seed)
    assert_the_same_by_all_structures(applications, make, machine)


@seeds(40, 200)
def test_a_host_that_works_as_long_as_the_device(seed: int) -> None:
    applications, machine = hard_workload(seed, hosted)
    make = Vllm if seed % 3 == 0 else partial(Adversary, seed)
    assert_the_same_by_all_structures(applications, make, machine)


@seeds(60, 300)
def test_a_mixture_of_experts_with_windows(seed: int) -> None:
    applications, machine = hard_workload(seed, windowed)
    make = Vllm if seed % 3 == 0 else partial(Adversary, seed)
    assert_the_same_by_all_structures(applications, make, machine)


@pytest.mark.parametrize("make", [Vllm, tokencake], ids=["vllm", "tokencake"])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 16))])
def test_whole_applications(seed: int, make: MakePolicy) -> None:
    """Code writers and researchers on the published machine, with too little memory most of the time."""
    rng = random.Random(seed)
    applications: tuple[Application, ...]
    if seed % 2:
        applications = tuple(
            code_writer(apps=3, qps=rng.choice((0.05, 0.5, 3.0)), arrivals="poisson", seed=seed, spread=0.3)
        )
    else:
        applications = tuple(deep_research(apps=2, qps=rng.choice((0.05, 0.5)), arrivals="poisson", seed=seed))
    machine = _crowded(applications, rng)
    assert_equal(play(applications, make, machine), play(applications, make, machine, one_by_one=True))


def _crowded(applications: tuple[Application, ...], rng: random.Random) -> Machine:
    block_tokens = rng.choice((16, 64))
    calls = [call for application in applications for call in application.calls]
    largest_blocks = max(-(-(call.prompt_tokens + call.max_output_tokens) // block_tokens) for call in calls)
    return replace(
        PUBLISHED,
        block_tokens=block_tokens,
        gpu_blocks=round(largest_blocks * rng.choice((1.0, 1.5, 2.5, 4.0))),
        host_gib=rng.choice((0.5, 3.0, 100.0)),
        asynchronous=rng.random() < 0.5,
        client_s=rng.choice((0.0, 0.075)),
        step_budget_tokens=rng.choice((512, 8192)),
        max_running=256,
    )


def scheduled(applications: tuple[Application, ...], machine: Machine, one_by_one: bool) -> list[Scheduled]:
    """What each schedule looks like; in stretches, the first one of each."""
    steps: list[Scheduled] = []
    simulate(applications, Vllm(), machine, one_by_one=one_by_one, step_log=steps.append)
    return steps


def _one_call(name: str, arrival_s: float, tokens: int, output_tokens: int) -> Application:
    prompt = Prompt((Segment(f"{name}/prompt", 0, tokens),), tokens=tokens)
    call = Call(f"{name}/1", name, f"{name}/agent", "agent", prompt, output_tokens, output_tokens)
    return Application(name, arrival_s, (call,))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_long_answer_is_a_handful_of_stretches(asynchronous: bool) -> None:
    machine = replace(PUBLISHED, asynchronous=asynchronous)
    applications = (_one_call("a", 0.0, 100, 1_001),)
    assert len(scheduled(applications, machine, one_by_one=True)) == 1_001
    assert len(scheduled(applications, machine, one_by_one=False)) <= 5


def test_a_window_that_fills_ends_a_stretch_once() -> None:
    machine = replace(PUBLISHED, window_tokens=600, window_context_token_s=1e-7)
    applications = (_one_call("a", 0.0, 100, 1_001),)
    assert len(scheduled(applications, machine, one_by_one=False)) <= 6


def test_an_arrival_cuts_a_stretch_only_where_it_can_be_admitted() -> None:
    """The first arrival finds room and joins at once; those behind it find none, and the stretches go on."""
    machine = replace(PUBLISHED, asynchronous=False, gpu_blocks=150)
    room = (_one_call("a", 0.0, 100, 1_000), _one_call("b", 5.0, 100, 1_000))
    crowd = tuple(_one_call(f"c{n}", 6.0 + 0.1 * n, 1_000, 5) for n in range(50))
    admitted = [fact for fact in play(room, Vllm, machine) if type(fact) is e.CallAdmitted]
    assert admitted[1].at_s < 5.0 + machine.client_s + 0.05
    few = len(scheduled(room, machine, one_by_one=False))
    # each of the crowd needs a schedule of its own in the end, for its prompt and its four other tokens
    assert len(scheduled((*room, *crowd), machine, one_by_one=False)) < few + 4 * len(crowd)


def _first_tokens_s(applications: tuple[Application, ...], machine: Machine) -> dict[str, float]:
    """From a call's arrival to its first token, by application."""
    arrived: dict[str, float] = {}
    waits: dict[str, float] = {}
    for fact in play(applications, Vllm, machine):
        if type(fact) is e.CallArrived:
            arrived[fact.request.id] = fact.at_s
        elif type(fact) is e.FirstToken:
            waits[fact.call] = fact.at_s - arrived[fact.call]
    return {call.split("/")[0]: wait_s for call, wait_s in waits.items()}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_short_prompts_do_not_wait_for_a_long_one_that_is_cut(asynchronous: bool) -> None:
    """A prompt of 24,000 tokens takes three whole steps of 8,192, and a short one behind it waits for them."""
    machine = replace(PUBLISHED, asynchronous=asynchronous)
    applications = (_one_call("long", 0.0, 24_000, 10), _one_call("short", 0.1, 50, 10))
    whole = _first_tokens_s(applications, machine)
    cut = _first_tokens_s(applications, replace(machine, long_prefill_token_threshold=512))
    assert whole["short"] > 2.5
    assert cut["short"] < (2.2 if asynchronous else 1.2)  # what was scheduled while the long one was alone
    assert cut["long"] > whole["long"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_long_prompt_that_is_cut_is_a_handful_of_stretches(asynchronous: bool) -> None:
    """A call that decodes is beside it: it is cut all the time. Alone it would take whole steps."""
    machine = replace(PUBLISHED, asynchronous=asynchronous, long_prefill_token_threshold=100)
    applications = (_one_call("short", 0.0, 50, 400), _one_call("long", 1.0, 20_050, 2))
    assert len(scheduled(applications, machine, one_by_one=True)) == 400
    assert len(scheduled(applications, machine, one_by_one=False)) < 20
    alone = scheduled((_one_call("long", 0.0, 20_050, 2),), machine, one_by_one=True)
    assert [sum(step.tokens.values()) for step in alone] == [8_192, 8_192, 3_666, 1]
