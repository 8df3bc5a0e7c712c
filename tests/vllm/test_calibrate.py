"""A real engine is measured: its steps say what they computed, its copies are seen, and a machine comes out."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm", reason="needs vLLM")

from tokencake.cli import run
from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.sim.calibration.calibrate import measure
from tokencake.sim.calibration.engine_info import host_load_of, limits_of
from tokencake.sim.calibration.fit import fit_for
from tokencake.sim.calibration.probes import effort
from tokencake.sim.calibration.probes.applications import step_probes
from tokencake.sim.calibration.probes.effort import Effort
from tokencake.sim.calibration.samples_file import read_samples
from tokencake.sim.machine.files import load_machine
from tokencake.traces import events as e

LITTLE = Effort(
    repeats=2,
    prefill_tokens=(8, 128, 512),
    context_tokens=(64, 256),
    cached_tokens=1_024,
    largest_batch=4,
    decode_steps=4,
    copy_bytes=(1 << 17, 1 << 19, 1 << 21),
)
OPTIONS = EngineOptions(model="tiny", gpu_blocks=150, host_gib=0.03, max_context_tokens=2_048)


@pytest.fixture(scope="module")
def measured():
    """What the engine tells of itself, its limits, and the facts of its probes."""
    facts: list[object] = []
    with InProcess(OPTIONS) as engine:
        limits = limits_of(engine.info())
        measure(engine, limits, LITTLE, facts.append)
    return limits, facts


def test_steps_say_what_was_computed(measured):
    limits, facts = measured
    calls = {call.id: call for call in step_probes(limits, LITTLE).calls}
    steps = [fact for fact in facts if isinstance(fact, e.Stepped) and (fact.prefill_tokens or fact.decode_calls)]
    admitted = [fact for fact in facts if isinstance(fact, e.CallAdmitted) and fact.call in calls]
    hit_tokens = sum(fact.gpu_hit_tokens for fact in admitted)

    assert hit_tokens > 0
    assert sum(step.prefill_tokens for step in steps) == sum(c.prompt_tokens for c in calls.values()) - hit_tokens
    assert sum(step.decode_calls for step in steps) == sum(call.output_tokens - 1 for call in calls.values())
    assert all(step.from_s < step.at_s for step in steps)
    workers_s = [step.worker_s for step in steps if step.worker_s is not None]
    assert len(workers_s) == len(steps)  # one at a time: scheduling is synchronous
    assert all(0 < took_s < step.at_s - step.from_s for took_s, step in zip(workers_s, steps, strict=True))


def test_copies_of_every_size_are_made_both_ways(measured):
    limits, facts = measured
    asked = {size // limits.block_bytes for size in LITTLE.copy_bytes}
    sizes = {kind: {f.blocks for f in facts if isinstance(f, kind)} for kind in (e.OffloadFinished, e.UploadFinished)}

    assert len(asked) == 3
    assert sizes[e.OffloadFinished] == sizes[e.UploadFinished] == asked
    assert {fact.blocks for fact in facts if isinstance(fact, e.LoadFinished)} == asked


def test_workers_say_how_long_each_copy_took_itself(measured):
    """Which is no longer than the engine took to see its end."""
    _, facts = measured
    ends = (e.OffloadFinished, e.UploadFinished, e.LoadFinished)
    seen = [(isinstance(f, e.OffloadFinished), f.blocks) for f in facts if isinstance(f, ends)]
    copied = [fact for fact in facts if isinstance(fact, e.Copied)]

    assert [(fact.to_host, fact.blocks) for fact in copied] == seen
    begun = [fact.at_s for fact in facts if isinstance(fact, (e.OffloadStarted, e.UploadStarted, e.LoadStarted))]
    assert all(0 < fact.seconds <= fact.at_s - at_s for fact, at_s in zip(copied, begun, strict=True))


def test_a_machine_comes_out(measured):
    limits, facts = measured
    machine = fit_for(facts, limits).machine("tiny")

    assert (machine.gpu_blocks, machine.block_tokens, machine.asynchronous) == (150, 32, False)
    assert machine.step_s > 0
    assert machine.prefill_token_s + machine.token_s > 0
    assert machine.host_call_s > 0


def test_the_command_measures_and_keeps_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(effort, "QUICK", LITTLE)
    machine, samples, report = tmp_path / "tiny.toml", tmp_path / "samples.jsonl", tmp_path / "fit.json"
    files = ["-o", str(machine), "--samples", str(samples), "--json", str(report)]
    size = ["--gpu-blocks", "150", "--host-gib", "0.03", "--max-context", "2048"]
    trace = tmp_path / "t.jsonl"
    assert run(["trace", "generate", "code-writer", "--apps", "1", "-o", str(trace)]) == 0
    played = ["--for", str(trace), "--shrink", "16", "--time-scale", "0.1"]
    assert run(["calibrate", "--model", "tiny", "--quick", *size, *files, *played]) == 0

    assert load_machine(str(machine)).gpu_blocks == 150
    assert json.loads(report.read_text())["engine"]["vllm"].startswith("0.")
    assert "a decoding call, on top" in capsys.readouterr().out
    probed = json.loads(report.read_text())["probed"]
    assert probed["context_tokens"] > 600  # the trace's; the probes of LITTLE end at 256 and a few more
    again = tmp_path / "again.toml"
    assert run(["calibrate", "--from", str(samples), *played, "-o", str(again)]) == 0
    assert load_machine(str(again)) == load_machine(str(machine))
    engine, _ = read_samples(samples)
    assert host_load_of(engine).keys() == {"waited_share", "stolen_share"}
