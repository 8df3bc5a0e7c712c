"""`tokencake check` as a user runs it: what it says of a policy that changed, and of all else that may have."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gate_suites import BACKWARDS, ONE_AT_A_TIME, POLICY, SUITE, make_suite

from tokencake.cli import run
from tokencake.sim.gate import baseline as baselines

VARIED = SUITE.replace('policy = "mine', 'repeats = 8\nvary = "arrivals,tools"\npolicy = "mine')


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def check(*arguments: str) -> int:
    return run(["check", "--workers", "1", *arguments])


def accepted(folder: Path, suite: str = SUITE) -> None:
    """A suite whose baselines are written."""
    make_suite(folder, suite)
    assert check("--update") == 0


def case(*arguments: str) -> dict[str, Any]:
    """What a check says of its only case."""
    check("--format", "json", "-o", "report.json", *arguments)
    (case,) = json.loads(Path("report.json").read_text())["cases"]
    return dict(case)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a check that cannot be done."""
    capsys.readouterr()
    assert check(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.strip()


# -- behaviour


def test_what_did_not_change_is_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(folder)
    assert check("--strict") == 0
    assert "good      one  mine.py:Mine on h100-llama-3.1-8b\n\n1 case: 1 good" in capsys.readouterr().out


def test_a_policy_that_became_worse_fails_and_the_first_decision_that_differs_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One call at a time: the second application's first call, a second later, is the first that it holds back."""
    accepted(folder)
    (folder / "mine.py").write_text(ONE_AT_A_TIME)
    capsys.readouterr()
    assert check() == 1
    said = capsys.readouterr().out
    assert said.startswith("regressed one  mine.py:Mine")
    assert "first decision that differs: number 3, at 1.054 s, agent a1/main, call a1/architect_1\n" in said
    assert "    admit: old plan a1/architect_1\n           new plan nothing\n" in said
    assert "app_latency_s.mean  69.91 s  101.4 s  +45.0%      +2%  regressed" in said
    assert "if that is meant: tokencake check --update" in said
    found = case()
    assert (found["state"], found["behaviour"], found["same_decisions"]) == ("regressed", "changed", False)
    assert found["first_difference"]["agent"] == "a1/main"
    assert found["first_difference"]["old"] == {"admit": ["a1/architect_1"]}
    assert found["first_difference"]["new"] == {"admit": []}


def test_an_improvement_is_told_and_fails_only_if_strict(folder: Path) -> None:
    accepted(folder)
    (folder / "mine.py").write_text(BACKWARDS)
    assert check() == 0
    assert case()["state"] == "improved"
    assert check("--strict") == 1


def test_other_behaviour_within_tolerance_is_told_and_fails_only_if_strict(folder: Path) -> None:
    accepted(folder, SUITE.replace("0.02", "0.2"))
    (folder / "mine.py").write_text(BACKWARDS)
    assert check() == 0
    assert case()["state"] == "changed"
    assert check("--strict") == 1


def test_a_policy_that_says_the_same_in_other_words_behaves_alike(folder: Path) -> None:
    """Asked after every token's fact too, it says what it said."""
    same = POLICY.replace("return Plan(admit=tuple(call.request.id for call in waiting))", "return Plan(skip=True)")
    make_suite(folder, policy=same)
    assert check("--update") == 0
    often = same.replace("CallFinished})", "CallFinished, FirstToken})").replace(
        "import CallA", "import FirstToken, CallA"
    )
    (folder / "mine.py").write_text(often)
    assert check("--strict") == 0
    found = case()
    assert (found["behaviour"], found["same_decisions"]) == ("same", True)
    assert found["causes"] == ["the policy's file was edited"]


def test_wishes_that_nothing_comes_of_are_no_other_behaviour(folder: Path) -> None:
    """Nobody is ever preempted here, so who would be first does not matter."""
    accepted(folder, SUITE.replace("gpu_blocks = 850", "gpu_blocks = 20000"))
    (folder / "mine.py").write_text(POLICY.replace("return Plan(", "return Plan(preempt=tuple(view.running), "))
    assert check("--strict") == 0
    found = case()
    assert (found["behaviour"], found["same_decisions"]) == ("same", False)
    assert found["first_difference"]["new"].keys() == {"preempt"}


def test_a_policy_that_fails_fails_the_check_and_not_its_input(folder: Path) -> None:
    accepted(folder)
    (folder / "mine.py").write_text(POLICY.replace("waiting = ", "waiting = nothing + "))
    assert check() == 1
    found = case()
    assert found["state"] == "failed"
    assert (
        found["error"]
        == "policy Mine: at 0.000000 s: plan() raised NameError: name 'nothing' is not defined (mine.py:11)"
    )


# -- causes


def test_another_version_is_named_before_a_metric_is_blamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted(folder)
    (folder / "mine.py").write_text(ONE_AT_A_TIME)
    monkeypatch.setattr(baselines, "__version__", "9.9")
    capsys.readouterr()
    assert check() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  cause: tokencake is 9.9, the baseline was written by ")
    assert lines.index("  cause: the policy's file was edited") == 2


def test_a_trace_that_changed_is_the_cause(folder: Path) -> None:
    accepted(folder)
    assert run(["trace", "generate", "code-writer", "--apps", "3", "-o", "t.jsonl"]) == 0
    assert run(["check", "--workers", "2"]) == 1
    (cause,) = case()["causes"]
    assert cause.startswith("the trace is another one (sha256 ")


def test_a_machine_that_changed_is_the_cause_and_what_of_it_did(folder: Path) -> None:
    (folder / "m.toml").write_text('base = "h100-llama-3.1-8b"\nlink_gbps = 20\n')
    accepted(folder, SUITE.replace('"h100-llama-3.1-8b"', '"./m.toml"'))
    (folder / "m.toml").write_text('base = "h100-llama-3.1-8b"\nlink_gbps = 30\nstep_s = 0.004\n')
    assert check() == 1
    found = case()
    assert found["causes"] == ["the machine is another one: link_gbps 20.0 -> 30.0, step_s 0.001808 -> 0.004"]
    assert found["behaviour"] == "changed"


def test_a_setting_that_is_newer_than_the_baseline_is_no_cause(folder: Path) -> None:
    accepted(folder)
    (file,) = folder.glob("baselines/*.json")
    written = json.loads(file.read_text())
    del written["inputs"]["machine"]["long_prefill_token_threshold"]
    file.write_text(json.dumps(written))
    assert check() == 0
    assert case()["causes"] == []


def test_slower_and_nothing_else_is_told_from_other_behaviour(folder: Path) -> None:
    """One application of vLLM, twice as slow in each step: the same happens in the same order, later."""
    suite = SUITE.replace("mine.py:Mine", "vllm").replace('"h100-llama-3.1-8b"', '"./m.toml"').replace("850", "20000")
    machine = 'base = "h100-llama-3.1-8b"\nclient_s = 0\nasynchronous = false\nstep_s = '
    make_suite(folder, suite)
    (folder / "m.toml").write_text(f"{machine} 0.003\n")
    assert run(["trace", "generate", "code-writer", "--apps", "1", "-o", "t.jsonl"]) == 0
    assert check("--update") == 0
    (folder / "m.toml").write_text(f"{machine} 0.0031\n")
    found = case()
    assert (found["state"], found["behaviour"], found["same_decisions"]) == ("good", "times", True) or found[
        "behaviour"
    ]


# -- baselines


def test_a_baseline_is_a_small_sorted_file_for_people(folder: Path) -> None:
    accepted(folder)
    text = (folder / "baselines" / "one.json").read_text()
    record = json.loads(text)
    assert list(record) == sorted(record) == ["case", "decisions_sha256", "digests", "inputs", "metrics", "schema"]
    assert record["case"]["policy"] == "mine.py:Mine"
    assert record["metrics"]["calls"] == 54
    assert '    "makespan_s": 71.5' in text
    assert len(text) < 5000
    assert text.count("\n") < 110
    assert (folder / "baselines" / "one.decisions.gz").stat().st_size < 5000


def test_of_repeats_the_gated_metrics_are_kept_each_in_one_line(folder: Path) -> None:
    accepted(folder, VARIED)
    record = json.loads((folder / "baselines" / "one.json").read_text())
    assert set(record["metrics"]) == {"app_latency_s.mean", "makespan_s"}
    assert len(set(record["metrics"]["makespan_s"])) == 8
    assert len(record["digests"]) == 8


def test_updating_what_did_not_change_leaves_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(folder)
    before = {file.name: file.read_bytes() for file in (folder / "baselines").iterdir()}
    capsys.readouterr()
    assert check("--update") == 0
    assert capsys.readouterr().out == "one: as it was\n"
    assert {file.name: file.read_bytes() for file in (folder / "baselines").iterdir()} == before


def test_updating_says_what_changed_and_then_the_check_is_good(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted(folder)
    (folder / "mine.py").write_text(ONE_AT_A_TIME)
    capsys.readouterr()
    assert check("--update") == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "one: changed\n  the policy's file was edited\n  behaviour changed\n  makespan_s: 71.55 s -> "
    )
    assert "metrics that are not gated" in said
    assert check("--strict") == 0


def damage_json(folder: Path) -> None:
    (folder / "baselines" / "one.json").write_text("{")


def another_schema(folder: Path) -> None:
    (folder / "baselines" / "one.json").write_text('{"schema": "tokencake.report/1"}')


def a_field_is_missing(folder: Path) -> None:
    file = folder / "baselines" / "one.json"
    record = json.loads(file.read_text())
    del record["inputs"]["machine"]
    file.write_text(json.dumps(record))


def a_value_is_text(folder: Path) -> None:
    file = folder / "baselines" / "one.json"
    file.write_text(file.read_text().replace('"calls": 54', '"calls": "54"'))


def a_value_is_below_zero(folder: Path) -> None:
    replace_metrics(folder, lambda metrics: {**metrics, "makespan_s": -1.0})


def a_metric_is_unknown(folder: Path) -> None:
    replace_metrics(folder, lambda metrics: {**metrics, "latency_s": 1.0})


def one_repeat_too_many(folder: Path) -> None:
    replace_metrics(folder, lambda metrics: {**metrics, "calls": [54, 54]})


def replace_metrics(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = folder / "baselines" / "one.json"
    record = json.loads(file.read_text())
    record["metrics"] = change(record["metrics"])
    file.write_text(json.dumps(record) + "\n")


def nested_without_end(folder: Path) -> None:
    (folder / "baselines" / "one.json").write_text("[" * 100_000)


def no_baseline(folder: Path) -> None:
    (folder / "baselines" / "one.json").unlink()


def another_policy(folder: Path) -> None:
    (folder / "tokencake.toml").write_text(SUITE.replace("mine.py:Mine", "vllm"))


def one_more_metric_of_repeats(folder: Path) -> None:
    file = folder / "tokencake.toml"
    file.write_text(file.read_text().replace("[metrics]", "[metrics]\npreemptions = {}"))


def other_decisions(folder: Path) -> None:
    make_suite(folder, SUITE.replace("850", "900").replace("one", "two"))
    assert check("--update") == 0
    (folder / "baselines" / "two.decisions.gz").replace(folder / "baselines" / "one.decisions.gz")
    (folder / "tokencake.toml").write_text(SUITE)


def damaged_decisions(folder: Path) -> None:
    file = folder / "baselines" / "one.decisions.gz"
    file.write_bytes(file.read_bytes()[:50])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage_json, "one.json: expected JSON: Expecting property name"),
        (another_schema, "one.json: expected a baseline of schema tokencake.baseline/1"),
        (a_field_is_missing, "one.json: inputs.machine: is missing: `tokencake check --update` writes it anew"),
        (a_value_is_text, 'one.json: metrics.calls: expected 0 or a number from 1e-30 to 9.22337e+18, got "54": '),
        (a_value_is_below_zero, "one.json: metrics.makespan_s: expected 0 or a number from 1e-30"),
        (a_metric_is_unknown, "one.json: metrics.latency_s: there is no such metric: "),
        (one_repeat_too_many, "one.json: metrics.calls: expected a value for each of 1 repeats, got 2: "),
        (nested_without_end, "one.json: expected at most a few levels of lists and objects"),
        (no_baseline, "one.json: there is no baseline yet: `tokencake check --update` writes it"),
        (another_policy, 'one.json: stale: policy was "mine.py:Mine" and is "vllm" in the suite: '),
        (other_decisions, "one.decisions.gz: is not the one that one.json was written with: "),
        (damaged_decisions, "one.decisions.gz: expected a whole gzip file, got one that is cut off or damaged"),
    ],
)
def test_a_baseline_that_is_damaged_missing_or_stale_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    accepted(folder)
    change(folder)
    assert refused(capsys).startswith(f"error: baselines/{said}")
    assert check("--update") == 0  # mends it
    assert check() == 0


def test_a_metric_that_the_baseline_of_repeats_lacks_makes_it_stale(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted(folder, VARIED)
    one_more_metric_of_repeats(folder)
    assert refused(capsys).startswith("error: baselines/one.json: stale: it has no preemptions")


MISSING = "baselines/one.decisions.gz is missing: the old plans cannot be shown until `tokencake check --update`"


def test_without_the_decisions_the_check_still_works_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted(folder)
    (folder / "baselines" / "one.decisions.gz").unlink()
    capsys.readouterr()
    for form in ("text", "github", "markdown", "junit", "json"):
        assert check("--strict", "--format", form) == 0
        said = capsys.readouterr().out
        assert (MISSING if form != "json" else '"missing_file": "baselines/one.decisions.gz"') in said.replace("\\", "")
    (folder / "mine.py").write_text(ONE_AT_A_TIME)
    assert check() == 1
    said = capsys.readouterr().out
    assert MISSING in said
    assert "the policy decided otherwise" in said
    assert "as they were" not in said
    assert case()["first_difference"] is None
    (folder / "mine.py").write_text(POLICY)
    capsys.readouterr()
    assert check("--update") == 0
    assert capsys.readouterr().out == "one: changed\n  baselines/one.decisions.gz was missing\n"
    assert case("--strict")["missing_file"] is None


def test_a_baseline_whose_value_was_edited_away_is_never_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(folder)
    replace_metrics(folder, lambda metrics: {**metrics, "makespan_s": None})
    capsys.readouterr()
    assert check() == 1
    said = capsys.readouterr().out
    assert "makespan_s: the baseline has no value: `tokencake check --update` writes it" in said
    assert "what changed is the engine" not in said
    assert check("--update") == 0
    assert "  makespan_s: no value -> 71.55 s" in capsys.readouterr().out
    assert check("--strict") == 0


def test_a_value_that_one_repeat_of_the_baseline_lacks_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted(folder, VARIED)
    replace_metrics(folder, lambda metrics: {**metrics, "makespan_s": [*metrics["makespan_s"][:-1], None]})
    capsys.readouterr()
    assert check() == 1
    assert "makespan_s: the baseline has no value in some repeats that have one now" in capsys.readouterr().out
    assert check("--update") == 0
    assert "  makespan_s: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("gpu_blocks", "850", 'gpu_blocks: expected a whole number from 1 to 1000000000, got "850"'),
        ("gpu_blocks", 850.0, "gpu_blocks: expected a whole number"),
        ("asynchronous", 1, "asynchronous: expected true or false, got 1"),
        ("step_s", None, "step_s: expected 0 or a number from 1e-12 to 1000, got null"),
        ("name", ["a"], "name: expected a name"),
        ("beliefs", {"link_gbps": "fast"}, "beliefs.link_gbps: expected a number"),
        ("beliefs", {"gpu_blocks": 3}, "beliefs: unknown field"),
        ("of_old", {"deep": [1]}, "of_old: expected true, false, a number or a name, got an object"),
    ],
)
def test_the_settings_of_a_baselines_machine_are_of_their_types(
    folder: Path, capsys: pytest.CaptureFixture[str], setting: str, value: object, said: str
) -> None:
    accepted(folder)
    file = folder / "baselines" / "one.json"
    record = json.loads(file.read_text())
    record["inputs"]["machine"][setting] = value
    file.write_text(json.dumps(record))
    assert refused(capsys).startswith(f"error: baselines/one.json: inputs.machine.{said}")


def test_a_baseline_of_another_version_may_have_other_settings(folder: Path) -> None:
    accepted(folder)
    file = folder / "baselines" / "one.json"
    record = json.loads(file.read_text())
    del record["inputs"]["machine"]["long_prefill_token_threshold"]
    record["inputs"]["machine"]["max_prefills"] = 3
    file.write_text(json.dumps(record))
    assert check() == 0
    assert case()["causes"] == ["the machine is another one: max_prefills 3 -> null"]


PIPES = ("baselines/one.json", "baselines/one.decisions.gz", "tokencake.toml", "t.jsonl", "m.toml", "mine.py")


@pytest.mark.parametrize(
    ("name", "arguments"), [*((name, ()) for name in PIPES), *((name, ("--update",)) for name in PIPES[:2])]
)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: tuple[str, ...]
) -> None:
    (folder / "m.toml").write_text('base = "h100-llama-3.1-8b"\n')
    accepted(folder, SUITE.replace('"h100-llama-3.1-8b"', '"m.toml"'))
    before = {file.name: file.read_bytes() for file in (folder / "baselines").iterdir() if file.name not in name}
    (folder / name).unlink()
    os.mkfifo(folder / name)
    said = refused(capsys, "--suite", "tokencake.toml", *arguments)
    assert f"{name}: expected a file, got a pipe" in said
    (folder / name).unlink()
    assert {file.name: file.read_bytes() for file in (folder / "baselines").iterdir()} == before


def test_a_suite_takes_nothing_from_standard_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_suite(folder, SUITE.replace('"t.jsonl"', '"-"'))
    assert refused(capsys) == "error: tokencake.toml: cases.one: -: expected a file, got standard input"


def test_an_update_of_a_stale_baseline_does_not_advise_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(folder)
    another_policy(folder)
    capsys.readouterr()
    assert check("--update") == 0
    said = capsys.readouterr().out
    assert said == ('one: replaced (baselines/one.json: stale: policy was "mine.py:Mine" and is "vllm" in the suite)\n')


def test_ctrl_c_in_a_terminal_leaves_all_baselines_and_says_so(folder: Path) -> None:
    suite = SUITE.replace('"mine.py:Mine"', '"vllm"') + '[cases.two]\npolicy = "mine.py:Mine"\n'
    accepted(folder, suite)
    before = {file.name: file.read_bytes() for file in (folder / "baselines").iterdir()}
    sleeping = "import time; open('asleep', 'w').close(); time.sleep(60); waiting = "
    (folder / "mine.py").write_text(POLICY.replace("waiting = ", sleeping, 1))
    (folder / "tokencake.toml").write_text(suite.replace("850", "900"))  # all baselines would be others
    command = [sys.executable, "-m", "tokencake.cli", "check", "--update", "--workers", "1"]
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", heeding, *command], start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as running:
        while not (folder / "asleep").exists():
            assert running.poll() is None
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert said.splitlines()[-1] == "interrupted: no baseline was written"
    assert {file.name: file.read_bytes() for file in (folder / "baselines").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("t.jsonl", "none.jsonl"), "tokencake.toml: cases.one: none.jsonl: cannot be read: No such file or directory"),
        (("h100-llama", "h100-lama"), 'tokencake.toml: cases.one: unknown machine "h100-lama-3.1-8b": did you mean '),
        (("gpu_blocks", "gpu_block"), 'tokencake.toml: defaults.settings: unknown setting "gpu_block": did you mean '),
        (("gpu_blocks = 850", "gpu_blocks = 9"), "tokencake.toml: cases.one: call 'a0/architect_1': 4748 tokens need "),
        (("mine.py:Mine", "mine.py:Yours"), "tokencake.toml: cases.one: policy mine.py:Yours: no class 'Yours' in "),
        (("{ relative", '{ not_worse_than = "vlm", relative'), "tokencake.toml: cases.one: unknown policy 'vlm'"),
    ],
)
def test_a_case_that_cannot_be_run_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: str
) -> None:
    make_suite(folder, SUITE.replace(*change))
    assert refused(capsys, "--update").startswith(f"error: {said}")
    assert not (folder / "baselines").exists()


def test_ctrl_c_while_it_runs_leaves_the_old_baselines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(folder)
    before = {file.name: file.read_bytes() for file in (folder / "baselines").iterdir()}
    pressed = POLICY.replace("waiting = ", "import os, signal; os.kill(os.getppid(), signal.SIGINT); waiting = ")
    (folder / "mine.py").write_text(pressed)
    capsys.readouterr()
    assert check("--update") == 130
    assert capsys.readouterr().err.endswith("interrupted: no baseline was written\n")
    assert {file.name: file.read_bytes() for file in (folder / "baselines").iterdir()} == before


def test_ctrl_c_while_files_take_their_places_waits_until_all_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted(folder)
    (folder / "mine.py").write_text(ONE_AT_A_TIME)
    placed: list[str] = []

    def pressed(source: Any, target: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.rename(source, target)
        placed.append(Path(target).name)

    monkeypatch.setattr("tokencake.traces.files.whole_file.os.replace", pressed)
    assert check("--update") == 130
    assert capsys.readouterr().err.endswith("interrupted: all baselines were written\n")
    assert sorted(placed) == ["one.decisions.gz", "one.json"]
    monkeypatch.undo()
    os.chdir(folder)
    assert check("--strict") == 0


# -- the whole


def test_not_worse_than_another_policy_needs_no_better_baseline(folder: Path) -> None:
    rule = 'app_latency_s.mean = { not_worse_than = "vllm", relative = 0.1 }'
    accepted(folder, SUITE.replace("app_latency_s.mean = { relative = 0.02 }", rule))
    assert check() == 0
    (folder / "mine.py").write_text(ONE_AT_A_TIME)
    assert check("--update") == 0  # to write it down does not help
    found = case()
    assert found["state"] == "regressed"
    latency = found["metrics"][0]
    assert (latency["against"], latency["verdict"]) == ("vllm", "regressed")


def test_repeated_cases_are_judged_by_all_of_their_repeats(folder: Path) -> None:
    accepted(folder, VARIED)
    assert check("--strict") == 0
    (folder / "mine.py").write_text(ONE_AT_A_TIME)
    found = case()
    assert (found["state"], found["repeats_changed"]) == ("regressed", 8)
    low, high = found["metrics"][0]["interval"]
    assert 1.4 < low < 1 + found["metrics"][0]["change"] < high


def test_processes_come_to_the_same(folder: Path) -> None:
    accepted(folder, VARIED)
    before = (folder / "baselines" / "one.json").read_bytes()
    assert run(["check", "--update", "--workers", "2"]) == 0
    assert (folder / "baselines" / "one.json").read_bytes() == before


def test_a_check_over_its_budget_fails_whatever_it_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(folder, "budget_s = 0.0001\n" + SUITE)
    capsys.readouterr()
    assert check() == 1
    said = capsys.readouterr().out
    assert "1 case: 1 good" in said
    assert "s, over its budget of 0.000 s" in said


def test_the_first_suite_of_a_project_is_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys).startswith("error: tokencake.toml: not here, nor in a folder above")
    assert run(["check", "--init"]) == 0
    assert capsys.readouterr().out.startswith("wrote tokencake.toml and traces/code-writer.jsonl\nnext: ")
    assert check("--update") == 0
    assert check("--strict") == 0
    assert run(["check", "--init"]) == 2
    assert capsys.readouterr().err == "error: tokencake.toml: is there already: --init overwrites nothing\n"
