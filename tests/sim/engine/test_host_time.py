"""The engine's own work on the host: in series with the device, or hidden behind it, and what a server can bear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tokencake.policies.field.vllm import Vllm
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.experiments.lower_bound import latency_bound_s
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment

# A step takes the device 10 ms, and 1 ms for each token of the decoding calls' contexts.
MACHINE = Machine(
    name="by hand",
    gpu_blocks=100_000,
    kv_bytes_per_token=1024,
    host_gib=0,
    max_context_tokens=4096,
    max_running=256,
    step_s=0.010,
    context_token_s=0.001,
    link_gbps=1.0,
    asynchronous=False,
)


def one_call(name: str, at_s: float, prompt_tokens: int, output_tokens: int) -> Application:
    prompt = Prompt((Segment(f"{name}/x", 0, prompt_tokens),), tokens=prompt_tokens)
    return Application(name, at_s, (Call(f"{name}/1", name, f"{name}/a", "a", prompt, output_tokens, output_tokens),))


def ends_s(applications: Sequence[Application], machine: Machine) -> list[float]:
    ended: list[float] = []

    def add(fact: object) -> None:
        if isinstance(fact, e.CallFinished):
            ended.append(fact.at_s)

    simulate(applications, Vllm(), machine, [add])
    return ended


def test_a_step_pays_for_the_calls_that_it_admits_and_the_tokens_that_it_samples() -> None:
    timing = replace(MACHINE, host_call_s=0.5, host_token_s=0.1).timing()
    assert timing.of_step([(8, 0)], [5, 6]) == 221_000_000_000  # 10 ms + 11 ms, and two tokens
    assert timing.of_step([(8, 0)], [5, 6], admitted=1) == 721_000_000_000
    assert timing.of_step([(8, 0)], [5, 6], admitted=1, completed=1) == 821_000_000_000
    beside = replace(MACHINE, host_call_s=0.5, host_token_s=0.1, asynchronous=True).timing()
    assert beside.of_step([(8, 0)], [5, 6]) == 200_000_000_000  # the device has been done for long
    assert beside.of_step([(8, 0)], [5, 600]) == 615_000_000_000  # the host has


def test_synchronous_scheduling_pays_device_and_host_one_after_the_other() -> None:
    """10 ms for the prompt of 5, then contexts of 5, 6 and 7 tokens; and the host: 1 call, 4 tokens."""
    machine = replace(MACHINE, host_call_s=0.020, host_token_s=0.016)
    call = one_call("a", 0.0, 5, 4)
    device_s = 0.010 + 0.015 + 0.016 + 0.017
    assert ends_s([call], machine) == pytest.approx([device_s + 0.020 + 4 * 0.016])
    assert latency_bound_s(call, machine) == pytest.approx(device_s + 0.020 + 4 * 0.016)


def test_asynchronous_scheduling_hides_the_shorter_of_both() -> None:
    machine = replace(MACHINE, host_call_s=0.020, host_token_s=0.016, asynchronous=True)
    call = one_call("a", 0.0, 5, 4)
    steps_s = 0.036 + 0.016 + 0.016 + 0.017
    assert ends_s([call], machine) == pytest.approx([steps_s])
    assert latency_bound_s(call, machine) == pytest.approx(steps_s)
    little = replace(machine, host_call_s=0.001, host_token_s=0.001)
    assert ends_s([call], little) == pytest.approx([0.010 + 0.015 + 0.016 + 0.017])


def test_a_call_that_is_admitted_again_is_paid_again() -> None:
    """Memory for 8 tokens: the second call gives way, and comes back when the first has ended."""
    machine = replace(MACHINE, gpu_blocks=8, block_tokens=1, context_token_s=0.0, host_call_s=1.0)
    crowd = [one_call("a", 0.0, 3, 3), one_call("b", 0.0, 3, 3)]
    alone_s, crowded_s = ends_s(crowd[:1], machine)[-1], ends_s(crowd, machine)[-1]
    assert alone_s == pytest.approx(1.0 + 3 * 0.010)
    assert crowded_s == pytest.approx(3.0 + 4 * 0.010)


def test_a_prompt_of_several_chunks_is_one_call_and_one_token() -> None:
    machine = replace(MACHINE, step_budget_tokens=256, host_call_s=1.0, host_token_s=0.1)
    assert ends_s([one_call("a", 0.0, 1000, 1)], machine) == pytest.approx([4 * 0.010 + 1.0 + 0.1])


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_server_of_short_calls_bears_no_more_than_its_host(asynchronous: bool) -> None:
    """204 tokens in and 64 out, as fast as they go. A call costs the host 3.5 ms, and a token 0.1 ms: 101 a second.

    The device alone could do half as many again.
    """
    device = replace(
        MACHINE,
        step_s=0.002,
        floor_s=0.004,
        token_s=2e-5,
        context_token_s=4e-8,
        asynchronous=asynchronous,
    )
    machine = replace(device, host_call_s=3.5e-3, host_token_s=1e-4)
    most = 1 / (3.5e-3 + 64 * 1e-4)
    assert round(most) == 101
    calls = 1000
    hurried = [one_call(f"a{n}", n / 400, 204, 64) for n in range(calls)]
    rate, of_device = calls / ends_s(hurried, machine)[-1], calls / ends_s(hurried, device)[-1]
    assert of_device > 1.5 * most
    if asynchronous:
        assert 0.97 * most < rate <= most
    else:
        assert rate == pytest.approx(1 / (1 / most + 1 / of_device), rel=0.1)
    leisurely = [one_call(f"a{n}", n / (0.5 * most), 204, 64) for n in range(calls)]
    assert calls / ends_s(leisurely, machine)[-1] == pytest.approx(0.5 * most, rel=0.05)
