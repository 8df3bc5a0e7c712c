"""Constants of a machine, from measurements of engines whose constants are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import limits_of, noisy, steps_of

from tokencake.sim.calibration.costs.copy_costs import fit_copies
from tokencake.sim.calibration.costs.step_costs import FIELDS, fit_steps, kind
from tokencake.sim.calibration.engine_info import host_load_of
from tokencake.sim.calibration.engine_info import limits_of as limits_told
from tokencake.sim.calibration.fit import Fit, fit
from tokencake.sim.calibration.probes.applications import step_probes
from tokencake.sim.calibration.probes.effort import FULL, QUICK
from tokencake.sim.calibration.samples import CopySample, StepSample
from tokencake.sim.calibration.step_mix import StepMix
from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.machine import Machine
from tokencake.traces.errors import MachineError

CPU = Machine(
    name="cpu",
    gpu_blocks=1_000,
    block_tokens=32,
    kv_bytes_per_token=8_192,
    host_gib=0.5,
    max_context_tokens=16_384,
    step_budget_tokens=4_096,
    max_running=128,
    asynchronous=False,
    step_s=2e-3,
    prefill_token_s=1.2e-4,
    attention_s=2e-8,
    decode_call_s=2e-4,
    context_token_s=3e-7,
    link_gbps=2.0,
    copy_s=1e-3,
)
GPU = replace(load_machine("a800-qwen2.5-14b"), step_s=4e-3, floor_s=14e-3, token_s=1.2e-4, prefill_token_s=0.0)
BUSY = replace(CPU, host_call_s=1.5e-3, host_token_s=3e-4)
MACHINES = {"cpu": (CPU, QUICK), "gpu": (GPU, FULL), "busy": (BUSY, QUICK)}
HOST_FIELDS = ("host_call_s", "host_token_s")


@cache
def true_steps(name: str) -> tuple[StepSample, ...]:
    machine, effort = MACHINES[name]
    return tuple(steps_of(step_probes(limits_of(machine), effort), machine))


@pytest.mark.parametrize("name", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_the_probes_tell_the_constants_exactly_where_nothing_disturbs(name):
    machine, _ = MACHINES[name]
    fitted = fit_steps(true_steps(name))

    for field in FIELDS:
        assert fitted.constants[field].value == pytest.approx(getattr(machine, field), rel=0.02, abs=1e-12), field
    assert abs(fitted.total) < 0.001
    assert fitted.overall.p95 < 0.01


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """95 % of them should. These seeds are fixed, so this is no test of chance, but of this very code."""
    held = asked = 0
    for seed in range(20):
        constants = fit_steps(noisy(true_steps("cpu"), seed), seed).constants
        for field in FIELDS:
            estimate = constants[field]
            if estimate.low is not None and estimate.high is not None:
                asked += 1
                held += estimate.low <= getattr(CPU, field) <= estimate.high
    assert asked == 100
    assert 88 <= held <= 100


@pytest.mark.slow
def test_a_floor_is_found_in_spite_of_noise_and_only_where_there_is_one():
    found = fit_steps(noisy(true_steps("gpu"), 1)).constants
    assert found["floor_s"].low is not None
    assert found["floor_s"].value + found["step_s"].value == pytest.approx(18e-3, rel=0.03)
    assert found["token_s"].value + found["prefill_token_s"].value == pytest.approx(1.2e-4, rel=0.05)

    none = fit_steps(noisy(true_steps("cpu"), 1)).constants
    assert none["floor_s"].value == none["token_s"].value == 0
    assert none["floor_s"].why == "no floor was found: without one it is part of the other costs"


def test_outliers_do_not_lead_it_astray():
    disturbed = fit_steps(noisy(true_steps("cpu"), 3, outliers=0.03)).constants

    for field in ("step_s", "prefill_token_s", "decode_call_s", "context_token_s"):
        assert disturbed[field].value == pytest.approx(getattr(CPU, field), rel=0.05), field


def test_equal_seeds_give_equal_intervals():
    steps = noisy(true_steps("cpu"), 4)
    assert fit_steps(steps, 7) == fit_steps(steps, 7)
    assert fit_steps(steps, 7).constants["step_s"].low != fit_steps(steps, 8).constants["step_s"].low


def test_the_errors_of_a_kind_are_those_of_its_steps():
    """Steps of 256 tokens that take half as long again as the machine says."""
    steps = [
        step._replace(seconds=1.5 * step.seconds) if step.prefill_tokens == 256 and not step.decode_calls else step
        for step in true_steps("cpu")
    ]
    fitted = fit(steps, [], limits_of(CPU))

    off = {error.kind for error in fitted.steps.kinds if error.median < -0.1}
    assert any(name.startswith("prefill of 65–256, ") for name in off)
    assert all(name.startswith("prefill of 65–256, ") for name in off)
    assert any(warning.startswith("prefill of 65–256, ") for warning in fitted.warnings())


def test_the_kinds_that_will_be_played_matter_most():
    """Steps that decode behind long contexts take twice as long as the formula has it: no line goes through all."""
    bent = [
        step._replace(seconds=2 * step.seconds)
        if step.decode_calls and step.context_tokens > 2_000 * step.decode_calls
        else step
        for step in true_steps("cpu")
    ]
    played = StepMix()
    for step in bent:
        if step.decode_calls and not step.prefill_tokens and step.context_tokens > 4_000 * step.decode_calls:
            played.add(step)

    def worst(fitted: Fit) -> float:
        return max(abs(error.median) for error in fitted.steps.kinds if error.kind in played.weights())

    assert worst(fit(bent, [], limits_of(CPU))) > 0.1
    fitted = fit(bent, [], limits_of(CPU), mix=played)
    assert worst(fitted) < 0.03
    off = {error.kind for error in fitted.steps.kinds if abs(error.median) > 0.1}
    assert off  # elsewhere, which nobody who plays this has to know
    assert not any(warning.startswith(tuple(off)) for warning in fitted.warnings())


def test_a_loaded_host_is_said_with_its_figure():
    quiet = fit(true_steps("cpu"), [], limits_of(CPU), host_load={"waited_share": 0.01, "stolen_share": None})
    assert quiet.warnings() == []
    assert quiet.spread == 0.0
    loaded = fit(
        noisy(true_steps("cpu"), 5, share=0.3),
        [],
        limits_of(CPU),
        host_load={"waited_share": 0.34, "stolen_share": 0.12},
    ).warnings()
    assert loaded[0].startswith("the host was loaded: for 34% of the time in which the engine had something to do")
    assert loaded[1] == "the host was loaded: other virtual machines took 12% of its CPUs' time"
    assert loaded[2].startswith("equal steps did not take equally long: their times vary by 2")


@pytest.mark.parametrize("told", [3, {"waited_share": 2.0}, {"stolen_share": "much"}])
def test_a_host_s_load_is_checked(told):
    with pytest.raises(MachineError, match=r"^what the engine tells of itself: host_load: "):
        host_load_of({"host_load": told})


def test_prefills_alone_say_nothing_of_decoding():
    prefills = [step for step in true_steps("cpu") if not step.decode_calls]
    constants = fit_steps(prefills).constants

    for field in ("decode_call_s", "context_token_s"):
        assert constants[field] == (0.0, None, None, "these steps cannot tell it from the other costs")
    assert constants["prefill_token_s"].value == pytest.approx(CPU.prefill_token_s, rel=0.02)


@pytest.mark.parametrize("steps", [(), true_steps("cpu")[:10], true_steps("cpu")[-1:] * 100])
def test_too_little_is_refused_in_one_line(steps):
    with pytest.raises(MachineError, match=r"^cannot fit a machine: expected at least 20 steps of 3 kinds.*got \d+ of"):
        fit_steps(steps)


counts = st.integers(0, 5_000)
some_steps = st.lists(
    st.builds(
        StepSample, st.floats(1e-6, 10.0), counts, st.integers(0, 10**7), st.integers(0, 300), st.integers(0, 10**6)
    ).filter(lambda step: step.prefill_tokens + step.decode_calls > 0),
    min_size=1,
    max_size=60,
)


def fitted_or_said(steps):
    try:
        return fit(steps, [], limits_of(CPU))
    except MachineError as error:
        return str(error)


@settings(max_examples=25, deadline=None)
@given(some_steps)
def test_whatever_is_measured_is_a_machine_or_one_line(steps):
    fitted = fitted_or_said(steps)
    if isinstance(fitted, str):
        assert len(fitted.splitlines()) == 1
    else:
        assert all(estimate.value >= 0 for estimate in fitted.constants.values())
        assert fitted.machine("any").gpu_blocks == CPU.gpu_blocks


def test_kinds_are_named_by_what_is_in_a_step():
    assert kind(StepSample(1.0, 0, 0, 1, 200)) == "decode, 1 call of 65–256 tokens"
    assert kind(StepSample(1.0, 100, 5_050, 0, 0)) == "prefill of 65–256, cold"
    assert kind(StepSample(1.0, 100, 100 * 2_000 + 5_050, 0, 0)) == "prefill of 65–256, behind 1,025–4,096"
    assert kind(StepSample(1.0, 100, 5_050, 3, 600)) == "prefill of 65–256 beside decoding"


# -- the host


def test_a_host_that_was_timed_is_told_from_the_device():
    """Its half millisecond that every step takes is no call's and no token's: it stays with `step_s`."""
    fitted = fit(true_steps("busy"), [], limits_of(BUSY))

    for field in (*FIELDS, *HOST_FIELDS):
        assert fitted.constants[field].value == pytest.approx(getattr(BUSY, field), rel=0.02, abs=1e-12), field
    assert abs(fitted.steps.total) < 0.001
    assert fitted.steps.overall.p95 < 0.01
    made = fitted.machine("any")
    assert made.host_call_s == pytest.approx(1.5e-3, rel=0.02)


def test_a_noisy_host_is_told_within_its_interval():
    steps = noisy(true_steps("busy"), 5)
    jittered = [
        step._replace(host=step.host and step.host._replace(seconds=step.host.seconds * step.seconds / true.seconds))
        for step, true in zip(steps, true_steps("busy"), strict=True)
    ]
    constants = fit(jittered, [], limits_of(BUSY)).constants
    for field in HOST_FIELDS:
        low, high = constants[field].low, constants[field].high
        assert low is not None
        assert high is not None
        assert low <= getattr(BUSY, field) <= high
        assert constants[field].value == pytest.approx(getattr(BUSY, field), rel=0.05)


def test_a_host_that_was_not_timed_stays_in_the_other_costs():
    """Of engines that schedule asynchronously, and in files of earlier versions."""
    untimed = [step._replace(host=None) for step in true_steps("busy")]
    fitted = fit(untimed, [], limits_of(BUSY))
    for field in HOST_FIELDS:
        assert fitted.constants[field] == (0.0, None, None, "the host's time was not told apart from the device's")
    assert fitted.constants["decode_call_s"].value > CPU.decode_call_s + 0.9 * BUSY.host_token_s


def test_calls_that_come_with_every_step_cannot_be_told_from_it():
    """Each step is a prompt of its own: one call, one token."""
    alike = [step for step in true_steps("busy") if step.host and step.host[1:] == (1, 1) and not step.decode_calls]
    constants = fit(alike, [], limits_of(BUSY)).constants
    for field in HOST_FIELDS:
        assert constants[field] == (0.0, None, None, "these steps cannot tell it from the host's other work")


# -- copies


def copies(copy_s: float, gbps: dict[bool, float], sizes=(1, 4, 16, 64, 256), repeats: int = 4) -> list[CopySample]:
    """Copies of blocks of 1 MB; every second one is seen late, by half."""
    return [
        CopySample(way, blocks, (copy_s + blocks * 1e6 / (gbps[way] * 1e9)) * (1.5 if repeat % 2 else 1.0))
        for repeat in range(repeats)
        for blocks in sizes
        for way in gbps
    ]


def test_copies_that_are_seen_late_do_not_slow_the_link():
    fitted = fit_copies(copies(1e-3, {True: 10.0, False: 10.0}), 1_000_000)

    assert fitted.link_gbps.value == pytest.approx(10.0, rel=0.01)
    assert fitted.copy_s.value == pytest.approx(1e-3, rel=0.01)
    assert fitted.to_host_gbps == pytest.approx(10.0, rel=0.01)


def test_the_ways_of_a_link_are_told_apart_and_warned_about():
    fitted = fit(true_steps("cpu"), copies(1e-3, {True: 20.0, False: 10.0}), replace(limits_of(CPU)))
    ways = fit_copies(copies(1e-3, {True: 20.0, False: 10.0}), 1_000_000)

    assert ways.to_host_gbps == pytest.approx(20.0, rel=0.01)
    assert ways.to_gpu_gbps == pytest.approx(10.0, rel=0.01)
    assert 10.0 < ways.link_gbps.value < 20.0
    assert any(warning.startswith("the link's two ways differ") for warning in fitted.warnings())


def test_copies_of_one_size_or_none():
    alike = fit_copies(copies(0.0, {True: 10.0, False: 10.0}, sizes=(64,)), 1_000_000)
    assert alike.copy_s == (0.0, None, None, "the copies are of one size")
    assert alike.link_gbps.value == pytest.approx(10.0, rel=0.01)

    none = fit_copies([], 1_000_000)
    assert none.link_gbps.why == none.copy_s.why == "no copies were measured"
    assert none.copies == 0


# -- the machine


def test_a_fitted_machine_has_the_limits_of_its_engine():
    made = fit(true_steps("cpu"), copies(1e-3, {True: 2.0, False: 2.0}), limits_of(CPU)).machine("mine")

    for field in ("gpu_blocks", "block_tokens", "host_blocks", "block_bytes", "max_context_tokens", "max_running"):
        assert getattr(made, field) == getattr(CPU, field), field
    assert (made.name, made.asynchronous, made.client_s) == ("mine", False, 0.0)


def test_what_an_engine_tells_is_checked():
    told = {name: getattr(limits_of(CPU), name) for name in type(limits_of(CPU)).__slots__}
    assert limits_told({**told, "vllm": "0.32.0"}) == limits_of(CPU)

    with pytest.raises(
        MachineError, match=r"tells of itself: max_running: expected a whole number from 1 to .*, got null"
    ):
        limits_told({**told, "max_running": None})
    del told["long_prefill_token_threshold"]  # engines of earlier versions do not tell: it was vLLM's default
    assert limits_told(told) == limits_of(CPU)
    with pytest.raises(
        MachineError, match=r"long_prefill_token_threshold: expected a whole number from 0 to .*, got -1"
    ):
        limits_told({**told, "long_prefill_token_threshold": -1})
    with pytest.raises(MachineError, match="asynchronous: expected true or false, got 1"):
        limits_told({**told, "asynchronous": 1})


def test_an_engine_s_version_is_its_machine_s():
    told = {name: getattr(limits_of(CPU), name) for name in type(limits_of(CPU)).__slots__}
    of_0_26 = limits_told({**told, "vllm": "0.26.0+cpu"})

    assert of_0_26.settings()["engine_version"] == "0.26"
    assert fit(true_steps("cpu"), [], of_0_26).machine("mine").engine_version == "0.26"
    for version in ("0.25.1", "0.260.1", "1.26", "zero", None):
        with pytest.raises(MachineError, match=r"tells of itself: vllm: expected a version from 0\.26 to 0\.33, got "):
            limits_told({**told, "vllm": version})
