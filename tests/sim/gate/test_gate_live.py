"""`tokencake check --live`: the same cases on an engine, here one that is simulated with another clock."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gate_suites import ONE_AT_A_TIME, SUITE, make_suite
from made_up_engine import Engine

from tokencake.cli import run
from tokencake.live.client import engine_source
from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.engine.control import versions
from tokencake.sim.gate.both_sides import play_both_sides
from tokencake.sim.gate.live_verdict import EngineRuns, compare_sides, fails, live_gates, live_policies, words
from tokencake.sim.gate.suite.suite import Case, Gate
from tokencake.sim.gate.suite.suite_file import load_suite
from tokencake.traces.errors import RunError
from tokencake.traces.results.reports.report import Run

LIVE = 'live = { model = "tiny", gpu_blocks = 850, machine = "h100-llama-3.1-8b", repeats = 2 }\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite with a live case, whose policy runs one call at a time."""
    monkeypatch.chdir(tmp_path)
    make_suite(tmp_path, SUITE + LIVE, ONE_AT_A_TIME)
    monkeypatch.setattr(engine_source, "InProcess", Engine)
    monkeypatch.setattr(versions, "check_vllm", lambda: "made up")
    return tmp_path


def test_verdicts_that_agree_are_good(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["check", "--live"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("one: mine.py:Mine against vllm, app_latency_s.mean: simulated loses (+4")
    assert ", live loses (+" in first
    assert first.endswith(": the same")
    assert ", makespan_s: simulated loses (+" in second


def test_an_engine_that_says_the_opposite_fails_the_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "step_s", staticmethod(lambda policy: 0.4 if policy == "vllm" else 0.004))
    capsys.readouterr()
    assert run(["check", "--live", "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (latency, _) = report["cases"]["one"]
    assert (latency["simulated_word"], latency["live_word"]) == ("loses", "wins")
    assert latency["agreement"] == "contradict"
    assert report["engine"]["one"]["model"] == "tiny"


@pytest.mark.parametrize(("failing", "named"), [("mine.py:Mine", "mine.py:Mine"), ("vllm", "vllm")])
def test_a_policy_that_fails_on_the_engine_has_no_verdict_and_neither_has_who_is_held_against_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str, named: str
) -> None:
    """What the engine did without it would be taken for its doing: here both sides would say the same."""
    monkeypatch.setattr(
        Engine, "errors", staticmethod(lambda policy: ["at 1.2 s: not today"] if policy.endswith(failing) else [])
    )
    capsys.readouterr()
    assert run(["check", "--live", "--format", "json"]) == 1
    for one in json.loads(capsys.readouterr().out)["cases"]["one"]:
        assert one.keys() == {"metric", "rival", "failed", "agreement"}
        assert one["agreement"] == "failed"
        why = "at 1.2 s: not today; the rest of the run was played without it"
        assert one["failed"] == f"{named} failed: {why}"
    assert run(["check", "--live"]) == 1
    first, _ = capsys.readouterr().out.splitlines()
    assert first == f"one: mine.py:Mine against vllm, app_latency_s.mean: no verdict: {named} failed: {why}"


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [(RunError("call 'a/c' waits"), 1, "call 'a/c' waits"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_a_run_that_is_cut_off_is_told_and_nothing_is_compared_with_it(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    why: str,
) -> None:
    """The third of four, the second of the rival: of each policy there is a whole run."""
    monkeypatch.setattr(Engine, "ends", error)
    capsys.readouterr()
    assert run(["check", "--live", "--format", "json", "-o", "found.json", "--format", "text"]) == code
    out, err = capsys.readouterr()
    assert out.startswith("one: no verdict: vllm, repeat 2, ended after ")
    assert out.endswith(f"when 2 calls and 0 applications had finished, and is left out: {why}\n")
    assert out.count("\n") == 1
    assert err.strip() == ("interrupted" if code == 130 else f"error: {why}")
    found = json.loads((folder / "found.json").read_text())
    assert found["cases"] == {}
    assert (found["partial"]["one"]["policy"], found["partial"]["one"]["partial"]) == ("vllm", why)


def test_a_case_is_played_on_both_sides_from_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite(folder / "tokencake.toml")
    (one,) = suite.cases
    simulated, live = play_both_sides(suite, one, Engine(EngineOptions(gpu_blocks=850)))
    assert [*simulated] == [*live] == ["vllm", one.policy]
    assert {name: len(runs.metrics) for name, runs in live.items()} == {"vllm": 2, one.policy: 2}
    compared = compare_sides(one, simulated, live, suite.confidence)
    assert [verdict.agreement for verdict in compared] == ["agree", "agree"]

    monkeypatch.setattr(Engine, "ends", RunError("call 'a/c' waits"))
    ended: list[Run] = []
    with pytest.raises(RunError, match="call 'a/c' waits"):
        play_both_sides(suite, one, Engine(EngineOptions(gpu_blocks=850)), cut_off=ended.append)
    assert [(run.policy, run.more["repeat"], run.metrics["calls"]) for run in ended] == [("vllm", 2, 2)]


def test_without_vllm_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(versions, "installed_vllm", lambda: None)
    capsys.readouterr()
    assert run(["check", "--live", "--suite", str(Path(__file__).parent / "none.toml")]) == 2
    assert "none.toml: cannot be read" in capsys.readouterr().err


def test_a_suite_without_live_cases_and_a_format_without_a_live_report_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tokencake.toml").write_text(SUITE)
    capsys.readouterr()
    assert run(["check", "--live"]) == 2
    assert capsys.readouterr().err.startswith("error: tokencake.toml: no case has a live engine: expected live = ")
    assert run(["check", "--live", "--format", "junit"]) == 2
    assert capsys.readouterr().err == "error: --live: expected --format text or json\n"


def test_an_engine_without_vllm_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(versions, "installed_vllm", lambda: None)
    capsys.readouterr()
    assert run(["check", "--live"]) == 2
    assert capsys.readouterr().err.startswith("error: vLLM is not installed: expected vllm>=")


# -- by hand


def metrics(makespan_s: float) -> dict[str, float]:
    return {"makespan_s": makespan_s}


def case(*gates: Gate) -> Case:
    return Case("c", "t", "mine", gates, "m")


MAKESPAN = Gate("makespan_s", False, relative=0.02)


def test_a_case_without_rivals_is_held_against_vllm() -> None:
    assert live_policies(case(MAKESPAN)) == ("vllm", "mine")
    assert live_gates(case(MAKESPAN)) == [replace(MAKESPAN, than="vllm")]
    against = replace(MAKESPAN, than="theirs")
    assert live_policies(case(MAKESPAN, against)) == ("theirs", "mine")
    assert live_gates(case(MAKESPAN, against)) == [against]


@pytest.mark.parametrize(
    ("simulated", "live", "agreement", "said"),
    [
        (90.0, (90.0, 91.0, 89.0), "agree", "the same"),
        (110.0, (90.0, 91.0, 89.0), "contradict", "CONTRADICTION"),
        (60.0, (90.0, 110.0, 99.0), "open", "open on one side"),
        (99.9, (90.0, 110.0, 99.0), "agree", "neither side can tell"),
    ],
)
def test_both_sides_are_held_to_the_noise_of_the_live_one(
    simulated: float, live: tuple[float, ...], agreement: str, said: str
) -> None:
    """90 against 100 is 10 %; three live runs within 1 % of each other show it, three that differ by 20 % do not."""
    sides = {"vllm": metrics(100.0), "mine": metrics(simulated)}
    runs = {"vllm": EngineRuns([metrics(100.0)] * 3), "mine": EngineRuns([metrics(value) for value in live])}
    compared = compare_sides(case(MAKESPAN), sides, runs, 0.95)
    assert [one.agreement for one in compared] == [agreement]
    assert fails(compared, strict=False) == (agreement == "contradict")
    assert fails(compared, strict=True) == (agreement != "agree")
    (line,) = words("one", "mine", compared)
    assert line.endswith(f": {said}")
