"""The presets, held against the measurements of real engines that the project carries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import measured
import pytest
from exits import exit_code
from measurements import AS_THEY_ARE, Factors, read

RUNS = read([measured.HERE])


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_preset_is_near_what_a_real_engine_took(run):
    found = measured.errors(measured.play(run, run.machine()), run.measured)

    assert found
    assert all(abs(error) < 0.08 for figures in found.values() for error in figures.values())


def test_a_machine_that_costs_twice_as_much_is_seen_as_that():
    run = next(run for run in RUNS if run.name == "h100-qwen2.5-7b-6rps")
    slow = run.machine((2.0, 0.5, 0.5, 0.5))

    assert measured.errors(measured.play(run, slow), run.measured)["tpot"]["mean"] > 0.9


@pytest.mark.slow
def test_a_fit_brings_a_run_of_known_constants_back():
    run = next(run for run in RUNS if run.name == "rtx4090-llama-3.1-8b")
    known = (1.0, 0.9, 0.95, 0.8)
    simulated = measured.play(run, run.machine(known))
    made = replace(run, measured={name: simulated[name] for name in run.measured})

    def worst(factors: Factors) -> float:
        played = measured.errors(measured.play(made, made.machine(factors)), made.measured)
        return max(abs(error) for figures in played.values() for error in figures.values())

    fitted = measured.fit(made)
    assert worst(AS_THEY_ARE) > 0.1
    assert worst(fitted) < 0.02
    assert fitted[3] < 0.95, "contexts have moved, too, from where the preset has them"


TRACE = {"format": "tokencake.trace", "version": 1, "name": "one", "applications": 1}
APP = {"id": "a", "arrival_s": 0, "calls": [{"id": "c", "output": 3, "prompt": [["/question", 100]]}]}
REQUEST = {"arrival_time": 5.0, "queued_ts": 1.0, "first_token_ts": 1.04, "last_token_ts": 1.06, "output_toks": 3}
OF_ENGINE = {"gpu": "h100", "model": "llama-3.1-8b", "gpus": 1, "step_budget_tokens": 2048, "max_running": 128}
ENGINE = {**OF_ENGINE, "engine": "vLLM", "source": "here", "seen": False}
MINE = {"name": "mine", **ENGINE, "trace": "one.jsonl", "requests": "requests.jsonl"}
LOAD = {"rate": 1, "calls": 2, "shared_tokens": 10, "prompt_tokens": 100, "output_tokens": 5}
STEADY = {"name": "steady", **ENGINE, **LOAD, "measured": {"ttft": {"mean": 0.05}}}


@pytest.fixture
def folder(tmp_path):
    """A measurement of one's own: a call of 100 tokens in and 3 out, and one whose figures alone are known."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "one.jsonl", TRACE, APP)
    write(folder / "requests.jsonl", REQUEST)
    write(folder / "runs.json", {"runs": [MINE, STEADY]})
    return folder


def write(path: Path, *lines: object) -> None:
    """Values as JSON; text as it is."""
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["measured.py", *map(str, arguments)])
    return exit_code(measured.main)


def test_the_figures_of_a_folder_of_one_s_own(folder):
    """On the engine's clock: 40 ms to the first token, 10 ms a token."""
    mine, steady = read([folder])

    assert {name: round(summary["mean"], 6) for name, summary in mine.measured.items()} == {
        "ttft": 0.04,
        "tpot": 0.01,
        "latency": 0.06,
        "output_tokens_per_s": 50.0,
    }
    assert [application.arrival_s for application in steady.applications] == [0.0, 1.0]


def test_it_is_played_beside_ours_and_written_down(folder, tmp_path, monkeypatch, capsys):
    asked = ["--data", folder, "--run", "mine", "--run", "steady", "--run", "mine", "--json", tmp_path / "f.json"]
    assert call(monkeypatch, *asked) == 0

    assert "mean absolute error" in capsys.readouterr().out
    assert [row["name"] for row in json.loads((tmp_path / "f.json").read_text())["runs"]] == ["mine", "steady"]


@pytest.mark.parametrize(
    ("file", "lines", "said"),
    [
        ("runs.json", [], "runs.json: expected JSON"),
        ("runs.json", ["[]\n"], "runs.json: expected an object, got a list"),
        ("runs.json", [{"runs": []}], "runs.json: runs: expected a list of 1 to 10000 values, got 0"),
        ("runs.json", [{"runs": [{**MINE, "gpu": "h101"}]}], "runs.json: runs[0]: gpu: expected a100 or "),
        ("runs.json", [{"runs": [MINE, {**STEADY, "calls": True}]}], "runs[1]: calls: expected a whole number from 1"),
        (
            "runs.json",
            [{"runs": [{**MINE, "gpus": "1"}]}],
            "runs[0]: gpus: expected a whole number from 1 to 1024, got",
        ),
        ("runs.json", [{"runs": [{**MINE, "seen": 1}]}], "runs[0]: seen: expected true or false, got 1"),
        ("runs.json", [{"runs": [{**MINE, "max_running": 4096}]}], "max_running: expected at most step_budget_tokens"),
        ("runs.json", [{"runs": [{**MINE, "trace": "../one.jsonl"}]}], "runs[0]: trace: expected 1 to 200 printable c"),
        ("runs.json", [{"runs": [{**MINE, "rate": 1}]}], 'runs[0]: unknown field "rate"'),
        ("runs.json", [{"runs": [MINE, MINE]}], "runs[1]: name: expected one that no other run has, got 'mine' again"),
        ("runs.json", [{"runs": [{**STEADY, "measured": {}}]}], "runs[0]: measured: expected one of ttft, tpot, laten"),
        ("runs.json", [{"runs": [{**STEADY, "measured": {"ttft": {"p50": 1}}}]}], "measured.ttft.mean: is missing"),
        (
            "runs.json",
            [{"runs": [{**STEADY, "measured": {"ttft": {"mean": 0}}}]}],
            "measured.ttft.mean: expected a num",
        ),
        (
            "runs.json",
            [{"runs": [{**STEADY, "shared_tokens": 100}]}],
            "shared_tokens: expected fewer than prompt_tokens",
        ),
        (
            "runs.json",
            [{"runs": [{**STEADY, "prompt_tokens": 200_000}]}],
            "200005 tokens of prompt and answer, but the",
        ),
        ("runs.json", ['{"runs": [{"rate": NaN}]}\n'], "runs.json: expected JSON, which has no NaN"),
        ("runs.json", ['{"runs": [{"name": "a", "name": "b"}]}\n'], 'expected each field once, got "name" twice'),
        ("requests.jsonl", [], "requests.jsonl: expected a request for each application of one.jsonl, got 0"),
        (
            "requests.jsonl",
            [REQUEST, REQUEST],
            "requests.jsonl: expected a request for each application of one.jsonl, g",
        ),
        ("requests.jsonl", [{**REQUEST, "queued_ts": "1"}], "requests.jsonl:1: queued_ts: expected a number, at least"),
        ("requests.jsonl", [{**REQUEST, "queued_ts": 2.0}], "requests.jsonl:1: first_token_ts: expected later than qu"),
        ("requests.jsonl", [{**REQUEST, "last_token_ts": 1.04}], "requests.jsonl:1: last_token_ts: expected later tha"),
        (
            "requests.jsonl",
            [{**REQUEST, "output_toks": 4}],
            "request 1: output_toks: expected 3 as application 'a' of ",
        ),
        ("requests.jsonl", ['{"arrival_time": 5.0}\n'], "requests.jsonl:1: queued_ts: is missing"),
        ("one.jsonl", ["{}\n"], "one.jsonl:1: format: expected a header"),
        ("one.jsonl", [TRACE], "one.jsonl: the file ends early"),
        ("one.jsonl", [TRACE, {**APP, "calls": []}], "one.jsonl:2: calls: expected 1 to 20000 calls, got 0"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line_that_says_where(folder, file, lines, said, monkeypatch, capsys):
    write(folder / file, *lines)
    report = folder.parent / "f.json"

    assert call(monkeypatch, "--data", folder, "--json", report) == 2

    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.startswith(f"error: {folder}/")
    assert err.count("\n") == 1
    assert not report.exists()


@pytest.mark.parametrize("file", ["runs.json", "requests.jsonl", "one.jsonl"])
def test_a_pipe_in_a_folder_is_not_waited_for(folder, file, monkeypatch, capsys):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert call(monkeypatch, "--data", folder) == 2
    assert capsys.readouterr().err == f"error: {folder / file}: expected a file, got a pipe\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "nothing"], "unknown run 'nothing': expected one of rtx4090-llama-3.1-8b, "),
        (["--fit-from", "nothing"], "unknown run 'nothing': expected one of "),
        (["--fit-from", ""], "unknown run '': expected one of "),
        (["--data", "/nowhere"], "/nowhere/runs.json: cannot be read: No such file or directory"),
        (["--data", str(measured.HERE)], "name: expected one that no other run has, got 'rtx4090-llama-3.1-8b' again"),
        (["--json", "/nowhere/f.json"], "/nowhere/f.json: cannot be written: no such file or directory"),
        (["--json", str(measured.HERE / "runs.json")], "cannot be written: it would lie in the folder that is read"),
    ],
)
def test_what_is_wrong_with_a_call_is_one_line(arguments, said, monkeypatch, capsys):
    before = (measured.HERE / "runs.json").read_bytes()

    assert call(monkeypatch, *arguments) == 2

    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1
    assert (measured.HERE / "runs.json").read_bytes() == before


def test_an_interrupt_ends_it_without_a_file(tmp_path):
    """While it fits, which takes a while."""
    asked = ["--fit-from", "rtx4090-llama-3.1-8b", "--json", tmp_path / "f.json"]
    command = [sys.executable, "-c", INTERRUPTED, Path(measured.__file__).parent, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert not (tmp_path / "f.json").exists()


INTERRUPTED = """
import signal, sys
sys.path.insert(0, sys.argv.pop(1))
import measured
from exits import exit_code
from measurements import AS_THEY_ARE, Factors, read

measured.fit = lambda run: signal.raise_signal(signal.SIGINT)
sys.exit(exit_code(measured.main))
"""
