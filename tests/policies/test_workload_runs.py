"""Runs of one workload on one engine: their order, what a report makes of them, and what is doubtful."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from simulated_engine import SimulatedEngine
from trace_files import one_app, one_call, written

from tokencake.policies.run_settings import RunSettings
from tokencake.policies.runs.doubts import doubts
from tokencake.policies.runs.workload_runs import RunTurn, WorkloadRuns, turns
from tokencake.sim.machine.files import load_machine
from tokencake.traces.errors import RunError
from tokencake.traces.results.reports.report import Run
from tokencake.traces.variants.workload import Workload, WorkloadOptions

MACHINE = replace(load_machine("a800-qwen2.5-14b"), asynchronous=False, client_s=0.0)


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    calls = [one_call(id="x"), one_call(id="y", after=["x"]), one_call(id="z", after=["y"])]
    return WorkloadOptions().of(written(tmp_path, one_app(*calls)))


def test_policies_play_in_turns() -> None:
    assert [*turns(["a", "b"], 2)] == [
        RunTurn(0, "a", 1),
        RunTurn(1, "b", 1),
        RunTurn(2, "a", 2),
        RunTurn(3, "b", 2),
    ]


def test_a_report_has_every_run(workload: Workload, tmp_path: Path) -> None:
    runs = WorkloadRuns(SimulatedEngine(MACHINE), workload)
    runs.play_in_turns(["vllm", "autellix"], RunSettings(), 2, events=lambda index, policy: tmp_path / f"{index}.jsonl")
    report = runs.report()
    assert (report["engine"], report["engine_version"]) == ("vllm", "0.32.0")
    assert (report["machine"]["name"], report["machine"]["gpu_blocks"]) == ("some/model", MACHINE.gpu_blocks)
    assert (report["trace"]["applications"], report["trace"]["calls"]) == (1, 3)
    found = [(run["policy"], run["repeat"], run["metrics"]["calls"]) for run in report["runs"]]
    assert found == [("vllm", 1, 3), ("autellix", 1, 3), ("vllm", 2, 3), ("autellix", 2, 3)]
    assert "partial" not in report
    assert sorted(path.name for path in tmp_path.glob("?.jsonl") if path.name != "t.jsonl") == [
        "0.jsonl",
        "1.jsonl",
        "2.jsonl",
        "3.jsonl",
    ]


def test_how_far_a_run_came_that_something_ended(workload: Workload) -> None:
    runs = WorkloadRuns(SimulatedEngine(MACHINE, {2: RunError("call 'a0/z' waits")}), workload)
    with pytest.raises(RunError, match="call 'a0/z' waits"):
        runs.play_in_turns(["vllm", "autellix"], RunSettings())
    report = runs.report()
    assert [run["policy"] for run in report["runs"]] == ["vllm"]
    (partial,) = report["partial"]
    assert (partial["policy"], partial["partial"], partial["metrics"]["calls"]) == ("autellix", "call 'a0/z' waits", 2)
    assert "repeat" not in partial  # each policy plays once


def test_of_what_is_doubtful_there_is_a_line_each() -> None:
    more = {
        "lateness_s": {"mean": 0.5},
        "call_latency_s": {"mean": 1.0},
        "disagreements": ["preemptions: 3, facts 2"],
        "errors": ["at 1.2 s: not today"],
        "asked_again": 4,
        "failed_calls": 2,
        "failures": ["call 'x' is too long"],
    }
    late, counted, raised, again, failed = doubts(Run("mine", {}, 0, 1.0, 0.0, {"calls": 1}, more))
    assert late.startswith("warning: mine: calls came to the engine 500.0 ms after they were due (mean), 50.0 % of")
    assert counted == "warning: mine: vLLM counts differently: preemptions: 3, facts 2"
    assert raised == "error: at 1.2 s: not today; the rest of its run was played without it"
    assert again == "warning: mine: the server had to be asked again 4 times"
    assert failed == "error: mine: 2 calls failed, and what came behind: call 'x' is too long"
