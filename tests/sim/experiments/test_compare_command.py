"""`tokencake compare`: many repeats of a trace, and repeated live reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trace_files import one_app, one_call, written

from tokencake.cli import run
from tokencake.policies.registry import is_bound
from tokencake.sim.experiments import compare as comparing
from tokencake.sim.experiments.lower_bound import attempt_with_bound, lower_bounds_of
from tokencake.sim.experiments.run import Outcome, RunSpec
from tokencake.sim.machine.files import load_machine
from tokencake.traces.results.metrics import Metrics
from tokencake.traces.variants.vary import EVERYTHING

SEARCH = {"kind": "search", "duration_s": 1.5, "declared_s": 1.0}
EXAMPLE = Path(__file__).parents[3] / "examples" / "code-writer.jsonl"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Six applications of two calls with a tool between them, one every second."""
    calls = (
        one_call(id="ask", agent="x", tools=[SEARCH]),
        one_call(id="tell", agent="x", after=["ask"], extends="ask", prompt=[["found", 90]]),
    )
    return written(tmp_path, *(one_app(*calls, id=f"a{n}", arrival_s=n) for n in range(6)))


def compared(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    file = tmp_path / "comparison.json"
    workers = () if "--live" in arguments else ("--workers", "1")
    assert run(["compare", *map(str, arguments), *workers, "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_policies_are_compared_over_repeats(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(tmp_path, trace, "--policy", "vllm", "--policy", "tokencake", "--repeat", "3")
    assert found["schema"] == "tokencake.comparison/1"
    assert found["repeats"] == 3
    assert found["variation"] == "arrivals,tools,declared,order"
    assert {row["policy"] for row in found["policies"]} == {"vllm", "tokencake"}
    assert found["lower_bound"]["mean"] <= found["policies"][0]["mean"]
    assert found["trace"]["applications"] == 6
    told = capsys.readouterr()
    assert "lower bound (bound)" in told.out
    assert "3 repeats, which vary arrivals,tools,declared,order; 95% confidence" in told.out
    assert told.err == ""


def test_the_same_is_found_again_and_something_else_with_another_seed(tmp_path: Path, trace: Path) -> None:
    options = (trace, "--policy", "vllm", "--policy", "tokencake", "--repeat", "2")
    first = compared(tmp_path, *options)
    assert compared(tmp_path, *options) == first
    assert compared(tmp_path, *options, "--seed", "1")["policies"] != first["policies"]


def test_processes_find_what_one_finds(tmp_path: Path, trace: Path) -> None:
    options = ["compare", str(trace), "--policy", "vllm", "--policy", "tokencake", "--repeat", "2", "--quiet"]
    for workers in ("1", "2"):
        assert run([*options, "--workers", workers, "--json", str(tmp_path / f"{workers}.json")]) == 0
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_a_metric_of_ones_own_is_what_is_ranked_by(tmp_path: Path, trace: Path) -> None:
    found = compared(tmp_path, trace, "--policy", "vllm", "--repeat", "2", "--metric", "tpot_s.p90", "--vary", "order")
    assert found["metric"] == "tpot_s.p90"
    assert found["variation"] == "order"
    assert len(found["also"]) == 6


def test_results_go_to_standard_output_alone(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(trace), "--policy", "vllm", "--repeat", "1", "--workers", "1", "--csv", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("metric,policy,bound,repeats,mean")
    assert len(lines) == 7


def test_without_a_policy_all_that_have_a_name_are_compared() -> None:
    policies = comparing.default_policies()
    assert policies[0] == "vllm"
    assert "tokencake" in policies
    bounds = [is_bound(policy) for policy in policies]
    assert bounds == sorted(bounds), "what sees the future comes last"


def test_lower_bounds_come_with_the_runs_of_one_policy(trace: Path) -> None:
    spec = RunSpec(trace, load_machine("h200-llama-3.1-8b", ()), "vllm", EVERYTHING, repeat=1)
    assert attempt_with_bound("vllm", spec).lower == lower_bounds_of(spec)
    assert attempt_with_bound("tokencake", spec).lower is None


BROKEN = """
class Broken:
    listens_to = frozenset()

    def plan(self, view):
        raise ValueError("not today")
"""


def test_a_policy_that_fails_is_reported_and_the_others_are_compared(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    broken = f"{tmp_path / 'broken.py'}:Broken"
    options = ["--policy", "vllm", "--policy", broken, "--policy", "tokencake", "--repeat", "2", "--workers", "1"]
    assert run(["compare", str(trace), *options, "--json", str(tmp_path / "c.json")]) == 1
    found = json.loads((tmp_path / "c.json").read_text())
    assert {row["policy"] for row in found["policies"]} == {"vllm", "tokencake"}
    assert found["repeats"] == 2
    assert found["failed"][0]["policy"] == broken
    assert "not today" in found["failed"][0]["error"]
    assert f"{broken} failed and is left out" in capsys.readouterr().out


def test_an_interrupt_reports_what_every_policy_has_finished(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokencake.sim.experiments.run import attempt

    def interrupted(specs: Iterator[RunSpec], *how: object) -> Iterator[Outcome]:
        for index, outcome in enumerate(map(attempt, specs)):
            if index == 5:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(comparing, "run_on_workers", interrupted)
    options = ["--policy", "vllm", "--policy", "tokencake", "--repeat", "9", "--json", str(tmp_path / "c.json")]
    assert run(["compare", str(trace), *options]) == 130
    assert json.loads((tmp_path / "c.json").read_text())["repeats"] == 2
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "vlm"], "unknown policy 'vlm' (near: vllm)"),
        (["--metric", "app_latency"], "unknown metric 'app_latency'"),
        (["--metric", "steps"], "metric steps: neither more nor less of it is better"),
        (["--vary", "tolls"], "vary: unknown 'tolls' (near: tools)"),
        (["--vary", "tools=x"], "vary: tools: expected a number from 0 to 10"),
        (["--machine", "h2000"], "h2000"),
        (["--set", "gpu_blocks=none"], "gpu_blocks"),
        (["--repeat", "0"], "--repeat"),
        (["--confidence", "1.5"], "--confidence"),
        (["--rate", "-1"], "rate: expected a number of applications a second"),
        (["--json", "x", "--csv", "x"], "expected two files"),
        (["another.jsonl"], "expected one TRACE"),
        (["--set", "gpu_blocks=1"], "110 tokens need 7 blocks, but the GPU has 1"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    trace: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(trace), "--repeat", "1", "--workers", "1", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert len(told.splitlines()) == 1


def test_without_a_trace_there_is_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare"]) == 2
    assert "expected one TRACE" in capsys.readouterr().err
    assert run(["compare", str(tmp_path / "missing.jsonl")]) == 2
    assert "missing.jsonl" in capsys.readouterr().err


# -- live


TRACE = {
    "path": "t.jsonl",
    "sha256": "00" * 32,
    "applications": 2,
    "calls": 4,
    "oversized": 0,
    "rate": None,
    "arrivals": None,
}


def live_report(folder: Path, name: str, latencies_s: dict[str, list[float]], **more: Any) -> Path:
    """A report as `tokencake live --repeat` writes it, of runs with these mean latencies."""
    runs = [
        {
            "policy": policy,
            "options": {},
            "seed": 0,
            "repeat": repeat + 1,
            "errors": [],
            "wall_s": 1.5,
            "calls_per_s": 2.0,
            "policy_s": 0.5,
            "metrics": metrics(latency_s),
            "counters": {"vllm": {"preemptions": 0}},
        }
        for policy, found in latencies_s.items()
        for repeat, latency_s in enumerate(found)
    ]
    report = {
        "schema": "tokencake.report/1",
        "version": "1",
        "engine": "vllm",
        "engine_version": "0.32.0",
        "trace": TRACE,
        "machine": {"name": "tiny"},
        "runs": runs,
        **more,
    }
    file = folder / name
    file.write_text(json.dumps(report))
    return file


def metrics(latency_s: float) -> dict[str, Any]:
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    distribution = dict.fromkeys(names, latency_s)
    played = {"applications": 2, "calls": 4, "makespan_s": 2 * latency_s}
    return Metrics().result() | {"app_latency_s": distribution, "ttft_s": distribution} | played


def test_live_runs_of_several_reports_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = live_report(tmp_path, "one.json", {"vllm": [100.0, 102.0], "tokencake": [70.0, 71.0]})
    two = live_report(tmp_path, "two.json", {"vllm": [101.0], "tokencake": [69.0]})
    found = compared(tmp_path, "--live", one, two)
    assert found["repeats"] == 3
    assert found["engine"] == "vllm"
    assert [row["policy"] for row in found["policies"]] == ["tokencake", "vllm"]
    assert found["policies"][0]["against_first"]["ratio"] == pytest.approx(70 / 101)
    assert found["policies"][0]["against_first"]["verdict"] == "wins"
    assert found["noise_floor"] == pytest.approx(0.0123, abs=1e-4)
    assert "3 live runs of each policy or more" in capsys.readouterr().out


def test_live_runs_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = live_report(tmp_path, "one.json", {"vllm": [100.0, 102.0], "tokencake": [70.0, 71.0]})
    copy = tmp_path / "copy.json"
    copy.write_bytes(one.read_bytes())
    for again in (one, copy):
        assert run(["compare", "--live", str(one), str(again)]) == 2
        assert capsys.readouterr().err == f"error: {again}: expected other runs, got those of {one} once more\n"


def test_of_live_runs_some_policies_can_be_chosen_and_the_first_is_the_base(tmp_path: Path) -> None:
    file = live_report(tmp_path, "one.json", {"vllm": [3.0, 3.1], "a": [2.0, 2.1], "b": [1.0, 1.1]})
    found = compared(tmp_path, "--live", file, "--policy", "a", "--policy", "b")
    assert found["first"] == "a"
    assert {row["policy"] for row in found["policies"]} == {"a", "b"}


def test_live_runs_that_lie_apart_by_chance_are_not_told_apart(tmp_path: Path) -> None:
    file = live_report(tmp_path, "one.json", {"vllm": [100.0, 104.0, 96.0], "tokencake": [97.0, 101.0, 93.0]})
    assert compared(tmp_path, "--live", file)["policies"][0]["against_first"]["verdict"] == "undecided"


def test_a_live_policy_that_did_not_last_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = live_report(tmp_path, "one.json", {"vllm": [1.0, 1.1], "tokencake": [0.9, 0.9]})
    report = json.loads(file.read_text())
    for more in ({"errors": ["it broke"]}, {"failed": "it broke; the rest"}, {"failed_calls": 3}):
        broken = [{**one, **more} if index == 2 else one for index, one in enumerate(report["runs"])]
        file.write_text(json.dumps({**report, "runs": broken}))
        assert run(["compare", "--live", str(file)]) == 1
        assert "tokencake failed and is left out" in capsys.readouterr().out


def test_where_every_live_policy_failed_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = live_report(tmp_path, "one.json", {"vllm": [1.0, 1.1], "mine": [0.9, 0.9]})
    report = json.loads(file.read_text())
    broken = [{**one, "failed": "it broke"} for one in report["runs"]]
    file.write_text(json.dumps({**report, "runs": broken}))
    assert run(["compare", "--live", str(file)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: nothing to compare: {file}: it broke\n")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"schema": "tokencake.comparison/1"}, "schema: expected 'tokencake.report/1'"),
        ({"runs": []}, "runs: expected a list of 1 to"),
        ({"engine_version": "0.33"}, "engine_version: expected that of"),
        ({"trace": TRACE | {"sha256": "11" * 32}}, "trace.sha256: expected that of"),
        ({"trace": TRACE | {"calls": 3}}, "runs[0].metrics.calls: expected at most the 3 of the trace, got 4"),
        (
            {"trace": TRACE | {"calls": "4"}},
            "trace.calls: expected a whole number from 0 to 9",
        ),
        ({"trace": []}, "trace: expected an object, got a list"),
        ({"machine": {}}, "machine.name: expected 1 to 4096 printable characters, got null"),
        ({"runs": [{}]}, "runs[0].policy: is missing"),
        ({"machine": {"name": "other"}}, "machine.name: expected that of"),
    ],
)
def test_a_report_that_cannot_be_compared_is_named(
    tmp_path: Path, more: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = live_report(tmp_path, "one.json", {"vllm": [1.0]})
    two = live_report(tmp_path, "two.json", {"vllm": [1.0]}, **more)
    assert run(["compare", "--live", str(one), str(two)]) == 2
    told = capsys.readouterr().err
    assert f"two.json: {said}" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"makespan_s": None, "calls": None}, "runs[0].metrics.calls: expected at most the 4 of the trace, got null"),
        ({"makespan_s": -1}, "runs[0].metrics.makespan_s: expected 0 or a number from 1e-30 to 9.22337e+18, got -1"),
        ({"makespan_s": 1e200}, "runs[0].metrics.makespan_s: expected 0 or a number from 1e-30 to 9.22337e+18, got 1e"),
        ({"app_latency_s": None}, "runs[0].metrics.app_latency_s: expected an object, got null"),
    ],
)
def test_a_live_figure_that_cannot_be_is_named(
    tmp_path: Path, change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = live_report(tmp_path, "one.json", {"vllm": [1.0]})
    report = json.loads(file.read_text())
    report["runs"][0]["metrics"] |= change
    file.write_text(json.dumps(report))
    assert run(["compare", "--live", str(file)]) == 2
    assert f"one.json: {said}" in capsys.readouterr().err


def test_what_is_no_live_report_is_named(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--live", str(trace)]) == 2
    assert "expected JSON: Extra data" in capsys.readouterr().err
    simulated = tmp_path / "simulated.json"
    assert run(["simulate", str(trace), "--json", str(simulated)]) == 0
    capsys.readouterr()
    assert run(["compare", "--live", str(simulated)]) == 2
    assert "this is a simulation" in capsys.readouterr().err
    live = live_report(tmp_path, "one.json", {"vllm": [1.0]})
    assert run(["compare", "--live", str(live), "--policy", "other"]) == 2
    assert "policy other: is not in" in capsys.readouterr().err


def test_the_shipped_trace_can_be_compared(tmp_path: Path) -> None:
    options = (EXAMPLE, "--policy", "vllm", "--policy", "tokencake", "--repeat", "2", "--set", "gpu_blocks=1500")
    found = compared(tmp_path, *options)
    tokencake = next(row for row in found["policies"] if row["policy"] == "tokencake")
    assert tokencake["against_first"]["ratio"] < 0.8


def commands_of_the_guide() -> list[list[str]]:
    lines = (Path(__file__).parents[3] / "docs" / "compare.md").read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith("    tokencake compare examples/")]


@pytest.mark.parametrize("command", commands_of_the_guide(), ids=" ".join)
def test_the_commands_of_the_guide_run(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, trace, *options = command
    assert run([name, str(EXAMPLE.parent.parent / trace), *options, "--repeat", "2", "--workers", "1"]) == 0
    assert "2 repeats" in capsys.readouterr().out


def test_the_guide_names_all_that_a_report_has(tmp_path: Path, trace: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "compare.md").read_text()
    found = compared(tmp_path, trace, "--policy", "vllm", "--policy", "tokencake", "--repeat", "2")
    names = [*found, *found["policies"][0], *found["policies"][0]["against_first"]]
    assert [name for name in names if f'"{name}"' not in guide] == []


def test_there_are_commands_in_the_guide() -> None:
    assert len(commands_of_the_guide()) == 3
