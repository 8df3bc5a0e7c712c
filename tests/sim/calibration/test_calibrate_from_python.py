"""A calibration from Python, on a simulated engine whose constants are known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_engine import SimulatedEngine

import tokencake
from tokencake.sim.calibration.calibrate import calibrate, calibration_of
from tokencake.sim.calibration.engine_info import MachineLimits
from tokencake.sim.calibration.probes import effort
from tokencake.sim.calibration.probes.effort import Effort
from tokencake.sim.calibration.samples_file import read_samples
from tokencake.sim.machine.files import load_machine
from tokencake.traces.apps import Application
from tokencake.traces.errors import EngineError, MachineError
from tokencake.traces.generate.workloads import code_writer

MACHINE = replace(
    load_machine("a800-qwen2.5-14b"), gpu_blocks=600, host_gib=0.5, kv_bytes_per_token=20_000, max_context_tokens=8_000,
    max_running=16, asynchronous=False, client_s=0.0,
)  # fmt: skip
LITTLE = Effort(
    repeats=2,
    prefill_tokens=(8, 128, 512),
    context_tokens=(64, 256),
    cached_tokens=1_024,
    largest_batch=4,
    decode_steps=4,
    copy_bytes=(1 << 20, 1 << 22, 1 << 24),
)


def test_the_machine_is_the_one_that_was_played_on() -> None:
    shown: list[tuple[str, int, int]] = []
    found = calibrate(SimulatedEngine(MACHINE), LITTLE, progress=lambda *told: shown.append(told))
    machine = found.machine()
    assert (machine.name, machine.gpu_blocks, machine.host_blocks) == ("model", 600, MACHINE.host_blocks)
    assert machine.step_s == pytest.approx(MACHINE.step_s, rel=0.05)
    assert machine.link_gbps == pytest.approx(MACHINE.link_gbps, rel=0.05)
    assert found.machine("mine").name == "mine"
    assert found.engine["host_load"] == found.fit.host_load
    assert [label for label, done, total in shown if done == total] == ["warming up", "steps", "copies"]


def test_what_will_be_played_is_measured_too() -> None:
    asked: list[MachineLimits] = []

    def applications(limits: MachineLimits) -> Iterable[Application]:
        asked.append(limits)
        return code_writer(apps=1, qps=1.0)

    machine = replace(MACHINE, gpu_blocks=4_000, max_context_tokens=32_000)
    engine = SimulatedEngine(machine)
    found = calibrate(engine, LITTLE, applications=applications)
    assert [settings.steps for settings in engine.played] == [False, True, True, False]
    assert {limits.gpu_blocks for limits in asked} == {4_000}
    assert found.fit.played is not None


def test_what_ends_it_early_leaves_the_samples(tmp_path: Path) -> None:
    """The copies are the third run. What was measured before makes a machine without them."""
    samples = tmp_path / "samples.jsonl"
    with pytest.raises(KeyboardInterrupt):
        calibrate(SimulatedEngine(MACHINE, {3: KeyboardInterrupt()}), LITTLE, samples=samples)
    found = calibration_of(*read_samples(samples))
    assert found.machine().step_s == pytest.approx(MACHINE.step_s, rel=0.05)
    assert found.fit.copies.copy_s.why == "no copies were measured"
    with pytest.raises(KeyboardInterrupt):
        calibrate(SimulatedEngine(MACHINE, {2: KeyboardInterrupt()}), LITTLE, samples=samples)
    with pytest.raises(MachineError, match="cannot fit a machine: expected at least 20 steps"):
        calibration_of(*read_samples(samples))


def test_an_engine_whose_copies_cannot_be_measured_is_refused() -> None:
    engine = SimulatedEngine(MACHINE)
    engine.errors = ["policy CopyProbe: plan() raised"]
    with pytest.raises(EngineError, match="copies cannot be measured: policy CopyProbe"):
        calibrate(engine, LITTLE)


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "calibrate.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokencake, "InProcess", lambda options: SimulatedEngine(MACHINE))
    monkeypatch.setattr(effort, "QUICK", LITTLE)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["machine"].gpu_blocks == MACHINE.gpu_blocks
    assert calibration_of(*read_samples(tmp_path / "samples.jsonl")).machine() == names["machine"]
