"""A validation from Python, on an engine that is simulated, too: both sides are the same machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_engine import SimulatedEngine
from trace_files import one_app, one_call, written

import tokencake
from tokencake.sim.calibration.host_load import HostLoad
from tokencake.sim.fidelity.validate import same_decisions, validate
from tokencake.sim.machine.files import load_machine
from tokencake.traces.errors import EngineError, RunError, TraceError
from tokencake.traces.variants.workload import Workload, WorkloadOptions

MACHINE = replace(
    load_machine("a800-qwen2.5-14b"), gpu_blocks=600, host_gib=0.5, kv_bytes_per_token=20_000, max_context_tokens=8_000,
    max_running=16, asynchronous=False, client_s=0.0,
)  # fmt: skip
ROOT = Path(__file__).parents[3]
POLICIES = ["vllm", "tokencake"]


@pytest.fixture(autouse=True)
def quiet_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of what else runs beside the tests."""
    monkeypatch.setattr(HostLoad, "until", lambda *_: {})


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    """Three calls, one after another, with 2 s of a tool behind the first."""
    tool = {"kind": "test", "duration_s": 2.0, "result": 10}
    calls = [
        one_call(id="x", tools=[tool]),
        one_call(id="y", after=["x"], extends="x", prompt=[["x.result", 10]]),
        one_call(id="z", after=["y"]),
    ]
    return WorkloadOptions().of(written(tmp_path, one_app(*calls)))


def test_an_engine_that_is_its_own_simulation_is_told_without_an_error(workload: Workload) -> None:
    published: list[dict[str, Any]] = []
    report = validate(SimulatedEngine(MACHINE), workload, POLICIES, machine=MACHINE, publish=published.append)
    assert published == [report]
    assert report["schema"] == "tokencake.validation/1"
    assert [(run["policy"], len(run["repeats"]), run["failed"]) for run in report["runs"]] == [
        ("vllm", 3, None),
        ("tokencake", 3, None),
    ]
    for run in report["runs"]:
        assert run["live"]["calls"] == 3
        assert run["error"]["makespan_s"] == pytest.approx(0.0, abs=1e-9)
        assert same_decisions(run)
        assert run["parity"]["admissions"] == 9  # three calls in each of three runs
    assert "partial" not in report


def test_runs_are_kept_in_a_folder_and_play_in_turns(workload: Workload, tmp_path: Path) -> None:
    engine, folder = SimulatedEngine(MACHINE), tmp_path / "runs"
    validate(engine, workload, POLICIES, machine=MACHINE, repeats=2, events=folder)
    assert [settings.policy for settings in engine.played] == POLICIES * 2
    assert all(settings.steps and settings.costs == MACHINE.beliefs() for settings in engine.played)
    names = ["1-vllm.jsonl", "2-tokencake.jsonl", "3-vllm.jsonl", "4-tokencake.jsonl"]
    assert sorted(file.name for file in folder.iterdir()) == names


def test_a_run_that_ends_early_is_in_the_report_that_is_published_before_the_error_goes_on(workload: Workload) -> None:
    """The fourth of six, the second of tokencake."""
    published: list[dict[str, Any]] = []
    engine = SimulatedEngine(MACHINE, {4: RunError("vLLM failed in a step")})
    with pytest.raises(RunError, match="vLLM failed in a step"):
        validate(engine, workload, POLICIES, machine=MACHINE, publish=published.append)
    (report,) = published
    assert [(run["policy"], len(run["repeats"])) for run in report["runs"]] == [("vllm", 2), ("tokencake", 1)]
    (partial,) = report["partial"]
    assert (partial["policy"], partial["repeat"], partial["partial"]) == ("tokencake", 2, "vLLM failed in a step")
    assert partial["metrics"]["calls"] == 2


def test_of_what_cannot_be_played_nothing_is_published(workload: Workload, tmp_path: Path) -> None:
    published: list[dict[str, Any]] = []
    small = SimulatedEngine(replace(MACHINE, max_context_tokens=5))
    with pytest.raises(EngineError, match="but the model's context is 5"):
        validate(small, workload, POLICIES, machine=MACHINE, publish=published.append)
    nothing = WorkloadOptions(skip_oversized=True).of(workload.trace.path)
    with pytest.raises(TraceError, match="all 1 applications need more than the machine has"):
        validate(small, nothing, POLICIES, machine=MACHINE, publish=published.append)
    assert not published
    assert not small.played


def test_without_a_machine_the_engine_is_measured_first(workload: Workload, capsys: pytest.CaptureFixture[str]) -> None:
    engine = SimulatedEngine(MACHINE)
    report = validate(engine, workload, ["vllm"], repeats=1)
    assert len(engine.played) > 3  # probes, then one run
    assert report["machine"]["name"] == "model"
    assert report["machine"]["step_s"] == pytest.approx(MACHINE.step_s, rel=0.1)
    (run,) = report["runs"]
    assert abs(run["error"]["makespan_s"]) < 0.05
    assert same_decisions(run)


@pytest.mark.slow
def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "validate.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tokencake, "InProcess", lambda options: SimulatedEngine(MACHINE))
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["report"]["verdict"]["agree"] is not False
    assert [run["policy"] for run in names["report"]["runs"]] == POLICIES
    assert names["reports"] == [names["report"]]
