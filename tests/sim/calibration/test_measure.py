"""What is played to measure an engine: it fits the engine, it is the same each time, and it measures what it should."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import limits_of, steps_of
from simulated_engine import SimulatedEngine, step_facts
from trace_files import one_app, one_call, written

from tokencake.cli import run
from tokencake.policies.registry import load_policy
from tokencake.sim.calibration.calibrate import measure
from tokencake.sim.calibration.costs.copy_costs import fit_copies
from tokencake.sim.calibration.engine_info import MachineLimits
from tokencake.sim.calibration.probes.applications import COPY_POLICY, copy_probes, step_probes, trace_probes
from tokencake.sim.calibration.probes.effort import FULL, QUICK
from tokencake.sim.calibration.samples import Samples
from tokencake.sim.calibration.samples_file import samples_text
from tokencake.sim.calibration.step_mix import Shape, reach
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces import events as e
from tokencake.traces.errors import EngineError

SMALL = replace(
    load_machine("a800-qwen2.5-14b"),
    gpu_blocks=600,
    host_gib=0.5,
    kv_bytes_per_token=20_000,
    max_context_tokens=8_000,
    max_running=16,
    asynchronous=False,
    client_s=0.0,
)


@pytest.mark.parametrize("effort", [QUICK, FULL])
def test_each_probe_finds_its_context_in_the_cache_and_none_is_preempted(effort):
    application = step_probes(limits_of(SMALL), effort)
    kept = {call.id: call.prompt.keep_tokens // 16 * 16 for call in application.calls}
    facts: list[Any] = []
    simulate([application], load_policy("vllm"), SMALL, [facts.append])

    admitted = [fact for fact in facts if isinstance(fact, e.CallAdmitted)]
    assert len(admitted) == len(application.calls)
    hit = sum(fact.gpu_hit_tokens == kept[fact.call] for fact in admitted)
    assert hit > 0.5 * len(admitted)  # a small cache forgets some contexts, which are then computed again
    assert not any(isinstance(fact, e.CallPreempted) for fact in facts)


def test_equal_seeds_draw_equal_orders():
    assert step_probes(limits_of(SMALL), QUICK, 1) == step_probes(limits_of(SMALL), QUICK, 1)
    assert step_probes(limits_of(SMALL), QUICK, 1) != step_probes(limits_of(SMALL), QUICK, 2)


@pytest.mark.parametrize(
    "limits",
    [
        MachineLimits(
            gpu_blocks=blocks,
            block_tokens=block_tokens,
            block_bytes=1_000,
            host_blocks=host,
            max_context_tokens=context,
            step_budget_tokens=budget,
            max_running=running,
            asynchronous=False,
        )
        for blocks, block_tokens, host, context, budget, running in [
            (8, 16, 0, 64, 64, 1),
            (8, 16, 4, 128, 1, 1),
            (30, 128, 100, 4_000, 256, 256),
            (100_000, 1, 10, 300_000, 8_192, 1_024),
        ]
    ],
)
def test_any_engine_that_is_not_tiny_can_play_it(limits):
    machine = replace(
        SMALL,
        gpu_blocks=limits.gpu_blocks,
        block_tokens=limits.block_tokens,
        max_context_tokens=limits.max_context_tokens,
        step_budget_tokens=limits.step_budget_tokens,
        max_running=limits.max_running,
    )
    simulate([step_probes(limits, QUICK)], load_policy("vllm"), machine)
    copies = copy_probes(limits, QUICK)
    if copies is not None:
        simulate([copies], load_policy("vllm"), machine)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(0, 0, 5, 1_300, 5),  # decoding, beyond the contexts of QUICK
        Shape(1_100, 0, 0, 0, 1),  # a cold prompt
        Shape(300, 6_400, 0, 0, 1),  # behind a long context
        Shape(200, 2_000, 3, 900, 4),  # beside decoding
        Shape(0, 0, 12, 3_000, 2),  # twelve calls that have two contexts between them: 36,000 tokens, in 9,600
        Shape(150, 2_000, 3, 2_000, 2),
    ],
)
def test_a_step_of_the_trace_is_measured_as_it_is(shape):
    application = trace_probes(limits_of(SMALL), replace(QUICK, repeats=1), [shape])
    assert application is not None
    near = [
        step
        for step in map(Shape.of, steps_of(application, SMALL))  # which finds no call preempted
        if all(abs(step[at] - wanted) <= 16 + 0.01 * wanted for at, wanted in enumerate(shape[:4]))
    ]
    assert near
    assert sum(call.prompt.extends is None for call in application.calls) == (shape.contexts if max(shape[1:4]) else 1)


def test_of_a_step_that_the_engine_cannot_hold_it_measures_what_it_can():
    """600 blocks of 16 tokens, four fifths of which contexts may take: of 40 calls of 3,000 tokens there are two."""
    application = trace_probes(limits_of(SMALL), replace(QUICK, repeats=1), [Shape(0, 0, 40, 3_000, 40)])
    assert application is not None
    farthest = max((Shape.of(step) for step in steps_of(application, SMALL)), key=lambda shape: shape.decode_calls)
    assert farthest == pytest.approx((0, 0, 2, 3_000, 2), rel=0.02)
    assert reach(farthest)["all_context_tokens"] < 0.8 * 600 * 16


@given(
    st.lists(
        st.builds(
            Shape,
            st.integers(0, 9_000),
            st.integers(0, 200_000),
            st.integers(0, 2_000),
            st.integers(0, 200_000),
            st.integers(1, 2_000),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([(8, 16, 64, 64, 1), (30, 128, 4_000, 256, 256), (600, 16, 8_000, 2_048, 16)]),
)
@settings(max_examples=40, deadline=None)
def test_whatever_a_trace_has_is_played_without_preemption(shapes, sizes):
    names = ("gpu_blocks", "block_tokens", "max_context_tokens", "step_budget_tokens", "max_running")
    machine = replace(SMALL, **dict(zip(names, sizes, strict=True)))
    application = trace_probes(limits_of(machine), replace(QUICK, repeats=1), shapes)
    if application is None:
        assert not any(shape.decode_calls or shape.prefill_tokens for shape in shapes)
    else:
        steps_of(application, machine)


def test_what_a_trace_needs_is_asked_for_once_the_steps_are_known():
    engine = SimulatedEngine(SMALL)
    facts: list[Any] = []
    heard: list[int] = []

    def shapes():
        heard.append(len(facts))
        return [Shape(0, 0, 2, 2_000, 2)]

    measure(engine, limits_of(SMALL), QUICK, facts.append, shapes=shapes)
    assert 0 < heard[0] < len(facts)
    assert [settings.steps for settings in engine.played] == [False, True, True, False]


def test_an_engine_that_is_too_small_is_refused():
    limits = replace(limits_of(SMALL), gpu_blocks=7)
    with pytest.raises(EngineError, match="expected at least 8 GPU blocks and a context of 4 blocks, got 7 blocks"):
        step_probes(limits, QUICK)


def test_copies_are_made_in_several_sizes_both_ways_and_are_waited_for():
    application = copy_probes(limits_of(SMALL), QUICK)
    assert application is not None
    facts: list[Any] = []
    simulate([application], load_policy(COPY_POLICY), SMALL, [facts.append])

    def sizes(kind: Any) -> list[int]:
        return sorted(fact.blocks for fact in facts if isinstance(fact, kind))

    stalls = sum(bool(call.tools) for call in application.calls)
    assert len(sizes(e.OffloadFinished)) == stalls
    assert len(sizes(e.UploadFinished)) == len(sizes(e.LoadFinished)) == stalls / 2
    assert sizes(e.UploadFinished) == sizes(e.LoadFinished)
    assert len(set(sizes(e.LoadFinished))) > 3
    assert all(fact.late_s == 0 for fact in facts if isinstance(fact, e.UploadTaken))


def test_no_copies_without_host_memory():
    assert copy_probes(replace(limits_of(SMALL), host_blocks=0), QUICK) is None


def test_copies_give_back_the_link_of_the_machine():
    application = copy_probes(limits_of(SMALL), FULL)
    assert application is not None
    facts: list[Any] = []
    simulate([application], load_policy(COPY_POLICY), SMALL, [facts.append])
    samples = Samples()
    for fact in facts:
        samples.add(fact)
    found = fit_copies(samples.copies, SMALL.block_bytes)
    assert found.link_gbps.value == pytest.approx(SMALL.link_gbps, rel=0.02)
    assert found.copy_s.value == pytest.approx(SMALL.copy_s, rel=0.05)


def test_measuring_warms_up_first_and_shows_how_far_it_is():
    engine = SimulatedEngine(SMALL)
    facts: list[Any] = []
    shown: list[tuple[str, int, int]] = []
    measure(engine, limits_of(SMALL), QUICK, facts.append, progress=lambda *said: shown.append(said))

    assert [(settings.policy, settings.steps) for settings in engine.played] == [
        ("vllm", False),
        ("vllm", True),
        (COPY_POLICY, False),
    ]
    assert sum(isinstance(fact, e.RunStarted) for fact in facts) == 2
    assert [label for label, done, total in shown if done == total] == ["warming up", "steps", "copies"]


def test_a_policy_that_fails_is_said():
    engine = SimulatedEngine(SMALL)
    engine.errors = ["policy CopyProbe: plan() raised"]
    with pytest.raises(EngineError, match="copies cannot be measured: policy CopyProbe"):
        measure(engine, limits_of(SMALL), QUICK, lambda fact: None)


# -- the command, on what was recorded: an engine is needed to record it


@pytest.fixture
def recorded(tmp_path):
    """A file of samples of a simulated engine."""
    limits = limits_of(SMALL)
    facts: list[Any] = [*step_facts(step_probes(limits, QUICK), SMALL)]
    application = copy_probes(limits, QUICK)
    assert application is not None
    simulate([application], load_policy(COPY_POLICY), SMALL, [facts.append])
    path = tmp_path / "samples.jsonl"
    path.write_text(samples_text(SimulatedEngine(SMALL).info(), facts))
    return path


def test_a_recorded_engine_becomes_a_machine(recorded, tmp_path, capsys):
    output, report = tmp_path / "machine.toml", tmp_path / "fit.json"
    assert run(["calibrate", "--from", str(recorded), "-o", str(output), "--json", str(report)]) == 0

    machine = load_machine(str(output))
    assert machine.name == "model"
    assert (machine.gpu_blocks, machine.host_blocks, machine.block_bytes) == (600, SMALL.host_blocks, SMALL.block_bytes)
    for field in ("step_s", "prefill_token_s", "decode_call_s", "context_token_s", "link_gbps"):
        assert getattr(machine, field) == pytest.approx(getattr(SMALL, field), rel=0.05), field
    said = json.loads(report.read_text())
    assert said["schema"] == "tokencake.calibration/1"
    assert said["machine"] == machine.settings()
    assert said["constants"]["step_s"]["low"] <= machine.step_s <= said["constants"]["step_s"]["high"]
    assert {row["kind"] for row in said["steps"]["kinds"]} > {"decode, 1 call of 65–256 tokens"}
    shown = capsys.readouterr().out
    assert "a decoding call, on top" in shown
    assert "their time together" in shown
    assert "some/model on vLLM 0.32.0" in output.read_text()


def test_a_fit_for_a_trace_says_where_it_extrapolates(recorded, tmp_path, capsys):
    """QUICK measured contexts of up to 4,096 tokens; the trace has some of 6,800."""
    trace, report = written(tmp_path, one_app(one_call(prompt=[["task", 6800]], output=50))), tmp_path / "fit.json"
    assert run(["calibrate", "--from", str(recorded), "--for", str(trace), "--json", str(report)]) == 0

    said = json.loads(report.read_text())
    assert said["probed"]["context_tokens"] < 4_200
    (beyond,) = (row for row in said["beyond"] if row["name"] == "context_tokens")
    assert beyond["played"] == 6_848
    assert "extrapolated: 6,848 tokens of a decoding call's context will be played" in " ".join(said["warnings"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "beyond that it is extrapolated" in shown
    assert "warning: extrapolated: " in shown


def test_a_name_may_be_given_and_the_report_may_be_all_that_is_said(recorded, capsys):
    assert run(["calibrate", "--from", str(recorded), "--name", "mine", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["name"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing option '--model'"),
        (["--from", "nowhere.jsonl"], "nowhere.jsonl: cannot be read: No such file"),
        (["--from", "samples.jsonl", "-o", "samples.jsonl"], "cannot be written: it is the input"),
        (["--from", "samples.jsonl", "--name", ""], "--name: expected a name of 1 to 200 printable characters"),
        (["--from", "samples.jsonl", "--samples", "more.jsonl"], "--samples: --from measures nothing"),
        (["--from", "samples.jsonl", "-o", "nowhere/machine.toml"], "nowhere/machine.toml: cannot be written"),
        (["--from", "short.jsonl", "-o", "machine.toml"], "short.jsonl: cannot fit a machine: expected at least 20 st"),
        (["--from", "other.jsonl"], "other.jsonl: what the engine tells of itself: gpu_blocks: expected a whole numb"),
        (["--from", "large.jsonl", "--for", "t.jsonl"], "large.jsonl: what the engine tells of itself: machine "),
        (["--from", "samples.jsonl", "--for", "nowhere.jsonl"], "nowhere.jsonl: cannot be read: No such file"),
        (["--from", "samples.jsonl", "--for", "folder"], "folder: cannot be read: Is a directory"),
        (["--from", "samples.jsonl", "--for", "samples.jsonl"], "samples.jsonl:1: format: expected a header "),
        (["--from", "samples.jsonl", "--for", "cut.jsonl"], "cut.jsonl:2: expected JSON: "),
        (["--from", "samples.jsonl", "--for", "t.jsonl"], "call 'a0/c': 20000 tokens of prompt and answer, but "),
        (["--from", "samples.jsonl", "--for", "t.jsonl", "--skip-oversized"], "all 1 applications need more than the"),
        (["--from", "samples.jsonl", "--for", "t.jsonl", "-o", "t.jsonl"], "t.jsonl: cannot be written: it is the inp"),
    ],
)
def test_what_a_user_can_mend_is_one_line(recorded, arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(recorded.parent)
    lines = recorded.read_text().splitlines(keepends=True)
    (recorded.parent / "short.jsonl").write_text("".join(lines[:10]))
    (recorded.parent / "other.jsonl").write_text(lines[0].replace("gpu_blocks", "blocks") + "".join(lines[1:]))
    large = lines[0].replace('"gpu_blocks": 600', f'"gpu_blocks": {2**40}')
    (recorded.parent / "large.jsonl").write_text(large + "".join(lines[1:]))
    (recorded.parent / "folder").mkdir()
    trace = written(recorded.parent, one_app(one_call(prompt=[["task", 19_990]], output=10)))
    (recorded.parent / "cut.jsonl").write_text(trace.read_text()[:-10])

    assert run(["calibrate", *arguments, *([] if "-o" in arguments else ["--json", "fit.json"])]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (recorded.parent / "machine.toml").exists()
    assert not (recorded.parent / "fit.json").exists()


@pytest.mark.parametrize(("model", "name"), [(".", "engine"), ("some/" + 300 * "x", "engine"), ("a/folder/", "folder")])
def test_any_model_makes_a_name_for_its_machine(model, name, recorded, capsys):
    """`--model .` is the folder that one stands in: hours of measuring must not end in a name that is none."""
    recorded.write_text(recorded.read_text().replace("some/model", model))
    assert run(["calibrate", "--from", str(recorded), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["name"] == name
