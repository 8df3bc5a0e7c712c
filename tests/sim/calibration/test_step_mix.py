"""What the steps of a workload are: how much time each kind takes, which to measure, what lies beyond probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokencake.policies.field.vllm import Vllm
from tokencake.sim.calibration.samples import StepSample
from tokencake.sim.calibration.step_mix import Beyond, Shape, StepMix, farthest, mix_of
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment

MACHINE = Machine(
    name="m",
    gpu_blocks=1_000,
    kv_bytes_per_token=1_000,
    host_gib=0.01,
    max_context_tokens=4_000,
    step_budget_tokens=512,
    max_running=128,
    asynchronous=False,
    step_s=1e-3,
    prefill_token_s=1e-5,
    decode_call_s=1e-4,
    context_token_s=1e-7,
    link_gbps=10.0,
)


def alone(app: str, prompt_tokens: int, output_tokens: int) -> Application:
    """An application of one call."""
    prompt = Prompt((Segment(app, 0, prompt_tokens),), None, 0, prompt_tokens)
    return Application(app, 0.0, (Call(f"{app}/0", app, f"{app}/a", "a", prompt, output_tokens, output_tokens),))


def test_one_call_is_a_prefill_and_steps_that_decode() -> None:
    """100 tokens are computed in 1 ms + 1 ms; four steps of 1.11 ms follow on them."""
    mix = mix_of([alone("x", 100, 5)], MACHINE)
    assert mix.seconds == pytest.approx(2e-3 + 4 * 1.1e-3 + 406e-7)
    assert mix.weights() == {"prefill of 65–256, cold": 0.5, "decode, 1 call of 65–256 tokens": 0.5}
    assert Shape(100 // 8 * 8 + 8, 0, 0, 0, 1) in mix.shapes()  # rounded to a sixteenth
    assert {shape.decode_calls for shape in mix.shapes()} == {0, 1}


@pytest.mark.parametrize("host_s", [0.0, 2e-3])
@pytest.mark.parametrize("gpu_blocks", [1_000, 60])
def test_the_steps_of_a_busy_engine_take_its_whole_time_preempted_or_not(gpu_blocks: int, host_s: float) -> None:
    machine = replace(
        MACHINE, gpu_blocks=gpu_blocks, max_context_tokens=900, host_call_s=20 * host_s, host_token_s=host_s
    )
    crowd = [alone(f"a{index}", 150 + index, 120) for index in range(12)]
    facts: list[Any] = []
    simulate(crowd, Vllm(), machine, [facts.append])
    assert any(isinstance(fact, e.CallPreempted) for fact in facts) is (gpu_blocks == 60)
    assert mix_of(crowd, machine).seconds == pytest.approx(facts[-1].at_s, rel=0.01)


@pytest.mark.parametrize(("shared_tokens", "contexts"), [(0, 4), (800, 1), (480, 2)])
def test_calls_that_attend_to_the_same_tokens_have_fewer_contexts_between_them(
    shared_tokens: int, contexts: int
) -> None:
    """Four calls of 800 tokens, of which the first so many are the same; the first call has computed them before."""
    first = alone("a0", 800, 200)

    def like(name: str) -> Application:
        segments = [Segment("a0", 0, shared_tokens)] if shared_tokens else []
        prompt = Prompt((*segments, Segment(name, 0, 816 - shared_tokens)), None, 0, 816)
        return Application(name, 0.01, (Call(f"{name}/0", name, f"{name}/a", "a", prompt, 60, 60),))

    mix = mix_of([first, like("a1"), like("a2"), like("a3")], MACHINE)
    together = [shape for shape in mix.shapes() if shape.decode_calls == 4 and not shape.prefill_tokens]
    assert {shape.contexts for shape in together} == {contexts}


def test_steps_that_only_decode_are_half_of_it_however_long_they_take() -> None:
    mix = StepMix()
    for seconds, calls in ((6.0, 1), (3.0, 100)):
        mix.add(StepSample(seconds, 0, 0, calls, 50 * calls))
    mix.add(StepSample(0.1, 10, 55, 0, 0))
    assert mix.weights() == pytest.approx(
        {
            "decode, 1 call of 17–64 tokens": 1 / 3,
            "decode, 65–256 calls of 17–64 tokens": 1 / 6,
            "prefill of 5–16, cold": 0.5,
        }
    )


def test_of_each_kind_a_light_a_middle_and_the_heaviest_step_are_measured() -> None:
    mix = StepMix()
    for context in range(5_000, 16_000, 16):
        mix.add(StepSample(0.01, 0, 0, 2, 2 * context))
    mix.add(StepSample(1e-6, 7, 28, 0, 0))  # takes next to no time
    light, middle, heaviest = mix.shapes()
    assert light == pytest.approx((0, 0, 2, 6_100, 2), rel=0.07)
    assert middle == pytest.approx((0, 0, 2, 10_500, 2), rel=0.07)
    assert heaviest == pytest.approx((0, 0, 2, 16_000, 2), rel=0.07)


def test_what_reaches_farther_than_the_probes_is_told_with_its_share_of_the_time() -> None:
    mix = StepMix()
    mix.add(StepSample(1.0, 0, 0, 8, 8 * 9_000))
    mix.add(StepSample(3.0, 0, 0, 2, 2 * 1_000))
    probed = farthest([Shape(2_000, 4_000, 0, 0, 1), Shape(0, 0, 32, 64, 32), Shape(0, 0, 2, 8_500, 2)])
    assert probed == {
        "prefill_tokens": 2_000,
        "before_tokens": 4_000,
        "decode_calls": 32,
        "context_tokens": 8_500,
        "all_context_tokens": 17_000,
    }
    assert mix.beyond(probed) == [
        Beyond("all_context_tokens", 17_000, 72_000, 0.25)
    ]  # 9,000 is within a tenth of 8,500
    assert mix.beyond(farthest([Shape(1, 1, 8, 9_000, 8)])) == []
