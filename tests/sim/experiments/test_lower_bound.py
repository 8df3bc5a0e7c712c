"""How fast an application could be at best, worked by hand, and never beaten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from adversary import Adversary, hard_workload
from differential.workloads import Workload, hosted, windowed, workload

from tokencake.policies.interface import Policy
from tokencake.policies.registry import ROWS, load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.experiments.lower_bound import has_bound, latency_bound_s, lower_bounds
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool
from tokencake.traces.results.metrics import Metrics

# A step takes 1 s, and 0.01 s for each token that it computes; a decoding call 0.001 s for each token of its context.
MACHINE = Machine(
    name="by hand",
    gpu_blocks=1000,
    block_tokens=16,
    kv_bytes_per_token=1024,
    host_gib=1,
    max_context_tokens=4096,
    step_budget_tokens=2048,
    step_s=1.0,
    token_s=0.01,
    context_token_s=0.001,
    link_gbps=1.0,
    client_s=0.5,
)


def call(
    name: str, prompt_tokens: int, output_tokens: int, *after: str, pause_s: float = 0.0, tool_s: float = 0.0
) -> Call:
    prompt = Prompt((Segment(f"a/{name}.task", 0, prompt_tokens),), tokens=prompt_tokens)
    waited = tuple(f"a/{each}" for each in after)
    started = (Tool("test", tool_s), Tool("look", tool_s / 2)) if tool_s else ()
    return Call(f"a/{name}", "a", f"a/{name}", "x", prompt, output_tokens, output_tokens, waited, pause_s, started)


def test_a_call_computes_what_no_cache_can_hold_and_then_a_token_a_step() -> None:
    """Of 40 tokens the last 8 are computed: 1.08 s. Two more of the answer: 1.01 + 0.040 and 1.01 + 0.041 s."""
    application = Application("a", 3.0, (call("one", 40, 3),))
    assert latency_bound_s(application, MACHINE) == pytest.approx(0.5 + 1.08 + 1.05 + 1.051)


def test_of_a_prompt_of_whole_blocks_the_last_block_is_computed() -> None:
    application = Application("a", 0.0, (call("one", 32, 1),))
    assert latency_bound_s(application, MACHINE) == pytest.approx(0.5 + 1.16)


def test_an_application_takes_as_long_as_its_longest_path() -> None:
    """Each call 0.5 + 1.01 s. Left: a tool of 7 s and a shorter one. Right: a pause of 8 s. The join follows right."""
    calls = (
        call("start", 1, 1),
        call("left", 1, 1, "start", tool_s=7.0),
        call("right", 1, 1, "start", pause_s=8.0),
        call("join", 1, 1, "left", "right"),
    )
    application = Application("a", 0.0, calls)
    assert latency_bound_s(application, MACHINE) == pytest.approx(3 * 1.51 + 8.0)


def test_a_run_cannot_end_before_its_last_application() -> None:
    applications = [Application("a", 10.0, (call("one", 1, 1),)), Application("b", 13.0, (call("one", 1, 11),))]
    bounds = lower_bounds(applications, MACHINE)
    slow_s = 0.5 + 1.01 + sum(1.01 + 0.001 * context for context in range(1, 11))
    assert bounds["app_latency_s"]["mean"] == pytest.approx((1.51 + slow_s) / 2)
    assert bounds["makespan_s"] == pytest.approx(3.0 + slow_s)
    assert has_bound("app_latency_s.p99")
    assert has_bound("makespan_s")
    assert not has_bound("ttft_s.mean")


def test_alone_with_a_warm_cache_an_engine_comes_to_the_bound() -> None:
    """The second of two equal prompts is cached up to its last block. Steps that are not overlapped end at once."""
    first, second = (
        Application(
            name,
            at_s,
            (Call(f"{name}/one", name, f"{name}/x", "x", Prompt((Segment("/shared", 0, 40),), tokens=40), 3, 3),),
        )
        for name, at_s in (("a", 0.0), ("b", 100.0))
    )
    facts: list[object] = []
    machine = replace(MACHINE, asynchronous=False)
    simulate([first, second], load_policy("vllm"), machine, [facts.append])
    ended = {fact.app: fact.at_s for fact in facts if isinstance(fact, e.AppFinished)}
    assert ended["b"] - 100.0 == pytest.approx(latency_bound_s(second, machine))
    assert ended["a"] > latency_bound_s(first, machine) + 0.3


def assert_never_beaten(
    seed: int, make: Callable[[tuple[Application, ...]], Policy], kind: Callable[[int], Workload] = workload
) -> None:
    applications, machine = hard_workload(seed, kind)
    facts: list[object] = []
    metrics = Metrics()
    simulate(applications, make(applications), machine, [facts.append, metrics.add])
    began = {fact.app: fact.at_s for fact in facts if isinstance(fact, e.AppStarted)}
    ended = {fact.app: fact.at_s for fact in facts if isinstance(fact, e.AppFinished)}
    for application in applications:
        bound_s = latency_bound_s(application, machine)
        assert ended[application.id] - began[application.id] >= bound_s - 1e-9, application.id
    bounds, result = lower_bounds(applications, machine), metrics.result()
    assert result["makespan_s"] >= bounds["makespan_s"] - 1e-9
    for name, bound_s in bounds["app_latency_s"].items():
        assert result["app_latency_s"][name] >= bound_s - 1e-9, name


@pytest.mark.parametrize("name", sorted(ROWS))
def test_no_policy_beats_the_bound(name: str) -> None:
    for seed in range(8):
        assert_never_beaten(seed, lambda applications: load_policy(name, applications=applications))


@pytest.mark.parametrize("seed", range(15))
def test_the_host_does_not_beat_the_bound(seed: int) -> None:
    assert_never_beaten(seed, lambda _: partial(Adversary, seed)(), hosted)


def test_a_window_s_share_of_a_step_grows_until_it_is_full() -> None:
    """Contexts of 40 to 43 tokens, of which windowed layers see 40, 41, 42 and 42."""
    narrow = replace(MACHINE, window_tokens=42, window_context_token_s=0.002)
    application = Application("a", 0.0, (call("one", 40, 5),))
    more_s = latency_bound_s(application, narrow) - latency_bound_s(application, MACHINE)
    assert more_s == pytest.approx(0.002 * (40 + 41 + 42 + 42))


@pytest.mark.parametrize("seed", range(20))
def test_no_mixture_of_experts_with_windows_beats_the_bound(seed: int) -> None:
    assert_never_beaten(seed, lambda _: partial(Adversary, seed)(), windowed)


@pytest.mark.parametrize("seed", range(15))
def test_no_plan_beats_the_bound(seed: int) -> None:
    assert_never_beaten(seed, lambda _: partial(Adversary, seed)())
