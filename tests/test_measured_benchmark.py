"""The presets, held against the measurements of real engines that the project carries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import measured
import pytest

RUNS = measured.read(measured.HERE)


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
    known = (1.0, 0.9, 0.95, 1.0)
    made = replace(run, measured=measured.play(run, run.machine(known)))

    fitted = measured.fit(made)

    played = measured.errors(measured.play(made, made.machine(fitted)), made.measured)
    assert all(abs(error) < 0.02 for figures in played.values() for error in figures.values())


def test_the_figures_of_a_folder_of_one_s_own(tmp_path):
    """A call of 100 tokens in and 3 out, on the engine's clock: 40 ms to the first token, 10 ms a token."""
    trace = {"format": "tokencake.trace", "version": 1, "name": "one", "applications": 1}
    call = {"id": "c", "output": 3, "prompt": [["/question", 100]]}
    request = {"arrival_time": 5.0, "queued_ts": 1.0, "first_token_ts": 1.04, "last_token_ts": 1.06, "output_toks": 3}
    (tmp_path / "one.jsonl").write_text(
        f"{json.dumps(trace)}\n{json.dumps({'id': 'a', 'arrival_s': 0, 'calls': [call]})}\n"
    )
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    run = {"name": "mine", "gpu": "h100", "model": "llama-3.1-8b", "gpus": 1, "step_budget_tokens": 2048}
    run |= {"max_running": 128, "engine": "vLLM", "source": "here", "seen": False}
    run |= {"trace": "one.jsonl", "requests": "requests.jsonl"}
    (tmp_path / "runs.json").write_text(json.dumps({"runs": [run]}))

    (mine,) = measured.read(tmp_path)

    assert {name: round(summary["mean"], 6) for name, summary in mine.measured.items()} == {
        "ttft": 0.04,
        "tpot": 0.01,
        "latency": 0.06,
        "output_tokens_per_s": 50.0,
    }


@pytest.mark.parametrize("arguments", [["--run", "nothing"], ["--data", "/nowhere"], ["--fit-from", "nothing"]])
def test_what_is_wrong_is_one_line(arguments):
    done = subprocess.run([sys.executable, measured.__file__, *arguments], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "expected" in done.stderr.splitlines()[-1]
    assert not done.stdout
