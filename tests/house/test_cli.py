"""The command line, run as a user runs it: what it prints, what it writes, and how it refuses."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokencake import __version__
from tokencake.cli import run
from tokencake.policies.registry import options_of
from tokencake.traces import core_build
from tokencake.traces.format.events_file import read_events
from tokencake.traces.format.reader import read_trace
from tokencake.traces.results.metrics import Metrics
from tokencake.traces.results.run_files import events_name

INTERRUPTED = '''
import os, signal, time

class Interrupted:
    """Somebody presses Ctrl-C while it thinks."""
    listens_to = frozenset()

    def plan(self, view):
        os.kill(os.getppid(), signal.SIGINT)  # the command: it plays elsewhere
        time.sleep(60)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def trace() -> str:
    """Two code writers, a second apart."""
    assert run(["trace", "generate", "code-writer", "--apps", "2", "-o", "t.jsonl"]) == 0
    return "t.jsonl"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command which cannot be done says."""
    capsys.readouterr()
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def without_clock(report: dict[str, Any]) -> dict[str, Any]:
    clocked = ("wall_s", "calls_per_s", "policy_s")
    runs = [{key: value for key, value in one.items() if key not in clocked} for one in report["runs"]]
    return report | {"runs": runs}


def test_vllm_and_tokencake_are_compared_if_nothing_is_said(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["simulate", trace]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "54 calls of 2 applications on h200-llama-3.1-8b"
    assert out[2].split() == ["vllm", "tokencake"]
    assert out[-1].startswith("tokencake ")
    assert out[-1].endswith("against vllm (one run, no interval)")


def test_the_json_report(trace: str) -> None:
    specs = ["--policy", "vllm", "--policy", "tokencake:upload=demand"]
    machine = ["--machine", "a800-qwen2.5-14b", "--set", "gpu_blocks=2500"]
    assert run(["simulate", trace, *specs, *machine, "--json", "r.json", "--seed", "3"]) == 0
    report = json.loads(Path("r.json").read_text())
    assert report["version"] == __version__
    assert report["trace"]["path"] == trace
    assert (report["trace"]["applications"], report["trace"]["calls"]) == (2, 54)
    assert report["machine"]["gpu_blocks"] == 2500
    prompt_tokens = sum(call.prompt_tokens for application in read_trace(trace) for call in application.calls)
    vllm, tokencake = report["runs"]
    assert (vllm["policy"], vllm["options"], vllm["seed"]) == ("vllm", {}, 3)
    assert (tokencake["policy"], tokencake["options"]) == ("tokencake:upload=demand", {"upload": "demand"})
    for one in report["runs"]:
        assert one["metrics"]["applications"] == 2
        assert one["metrics"]["calls"] == 54
        assert sum(one["metrics"]["prefill_tokens"].values()) == prompt_tokens


def test_json_on_standard_output_stands_alone(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["simulate", trace, "--json", "-"]) == 0
    assert [one["policy"] for one in json.loads(capsys.readouterr().out)["runs"]] == ["vllm", "tokencake"]


def test_csv(trace: str) -> None:
    assert run(["simulate", trace, "--csv", "r.csv"]) == 0
    with open("r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["vllm", "tokencake"]
    assert rows[0]["calls"] == "54"


def test_quiet_prints_the_verdict_alone(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["simulate", trace, "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_an_events_file_folds_to_the_metrics_of_the_report(trace: str) -> None:
    arguments = ["simulate", trace, "--policy", "tokencake:upload=demand", "--machine", "a800-qwen2.5-14b"]
    assert run([*arguments, "--events", "deep/er", "--json", "r.json"]) == 0
    metrics = Metrics()
    for record in read_events("deep/er/1-tokencake-upload-demand.jsonl"):
        metrics.add(record)
    assert metrics.result() == json.loads(Path("r.json").read_text())["runs"][0]["metrics"]


def test_the_same_inputs_give_the_same_bytes_in_any_process(trace: str) -> None:
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "tokencake.cli", "simulate", trace, "--events", seed, "--json", f"{seed}.json"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(command, env=environment, check=True, capture_output=True)
    for name in ("1-vllm.jsonl", "2-tokencake.jsonl"):
        assert Path("1", name).read_bytes() == Path("2", name).read_bytes()
    first, second = (json.loads(Path(f"{seed}.json").read_text()) for seed in ("1", "2"))
    assert without_clock(first) == without_clock(second)


def test_a_rate_replaces_the_arrivals(trace: str) -> None:
    assert run(["simulate", trace, "--policy", "vllm", "--rate", "0.001", "--json", "r.json"]) == 0
    report = json.loads(Path("r.json").read_text())
    assert (report["trace"]["rate"], report["trace"]["arrivals"]) == (0.001, "even")
    metrics = report["runs"][0]["metrics"]
    assert metrics["makespan_s"] == pytest.approx(1000.0 + metrics["app_latency_s"]["max"], rel=0.01)


def test_oversized_applications_are_an_error_or_left_out(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat = '{"id": "small", "arrival_s": 9, "calls": [{"id": "c", "prompt": [["x", 100]], "output": 5}]}\n'
    lines = Path(trace).read_text().splitlines(keepends=True)
    Path("mixed.jsonl").write_text('{"format": "tokencake.trace", "version": 1}\n' + "".join(lines[1:]) + chat)
    small = ["--set", "gpu_blocks=300", "--policy", "vllm"]
    assert "a0/" in refused(capsys, "simulate", "mixed.jsonl", *small, "--json", "r.json")
    assert not Path("r.json").exists()
    assert run(["simulate", "mixed.jsonl", *small, "--skip-oversized", "--json", "r.json"]) == 0
    assert "left out: 2 of 3 applications" in capsys.readouterr().err
    played = json.loads(Path("r.json").read_text())["trace"]
    assert (played["applications"], played["calls"], played["oversized"]) == (1, 1, 2)
    assert "all 2 applications need more" in refused(capsys, "simulate", trace, *small, "--skip-oversized")


def test_an_interrupt_leaves_the_results_of_finished_runs(trace: str) -> None:
    Path("interrupted.py").write_text(INTERRUPTED)
    policies = ["--policy", "vllm", "--policy", "interrupted.py:Interrupted", "--policy", "tokencake"]
    outputs = ["--json", "r.json", "--csv", "r.csv", "--events", "runs"]
    command = [sys.executable, "-m", "tokencake.cli", "simulate", trace, *policies, *outputs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.strip() == "interrupted"
    assert "makespan" in done.stdout
    assert [one["policy"] for one in json.loads(Path("r.json").read_text())["runs"]] == ["vllm"]
    assert len(Path("r.csv").read_text().splitlines()) == 2
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "1-vllm.jsonl",
        "2-interrupted.py-Interrupted.jsonl.partial",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "absent.jsonl"], "absent.jsonl: cannot be read"),
        (["simulate", "."], ": cannot be read"),
        (["simulate", "empty.jsonl"], "expected a header"),
        (["simulate", "header.jsonl"], "no application"),
        (["simulate", "binary.jsonl"], "binary.jsonl:1"),
        (["simulate", "t.jsonl", "--policy", "vlm"], "unknown policy 'vlm'"),
        (["simulate", "t.jsonl", "--policy", "tokencake:uplod=demand"], "unknown option 'uplod'"),
        (["simulate", "t.jsonl", "--policy", "tokencake:upload=never"], "upload: expected"),
        (["simulate", "t.jsonl", "--policy", "absent.py:P"], "absent.py"),
        (["simulate", "t.jsonl", "--machine", "h300"], 'unknown machine "h300"'),
        (["simulate", "t.jsonl", "--set", "gpu_blocks=-1"], "gpu_blocks: expected"),
        (["simulate", "t.jsonl", "--set", "gpu_blocks"], "expected key=value"),
        (["simulate", "t.jsonl", "--rate", "nan"], "rate: expected a number of applications a second"),
        (["simulate", "t.jsonl", "--rate", "0"], "rate: expected a number of applications a second"),
        (["simulate", "t.jsonl", "--rate", "fast"], "'fast' is not a valid float"),
        (["simulate", "t.jsonl", "--arrivals", "odd"], "'odd' is not one of"),
        (["simulate", "t.jsonl", "--seed", "-1"], "-1 is not in the range"),
        (["simulate", "t.jsonl", "--json", "nowhere/r.json"], "nowhere/r.json: cannot be written"),
        (["simulate", "t.jsonl", "--json", "."], "cannot be written: is a directory"),
        (["simulate", "t.jsonl", "--json", "/dev/null"], "expected a regular file"),
        (["simulate", "t.jsonl", "--csv", "t.jsonl"], "it is the input"),
        (["simulate", "t.jsonl", "--csv", "-", "--json", "-"], "expected two files"),
        (["simulate", "t.jsonl", "--events", "t.jsonl"], "t.jsonl: cannot be written: file exists"),
        (["simulate", "t.jsonl", "--nonsense"], "No such option"),
        (["simulate"], "Missing argument 'TRACE'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["trace", "convert", "absent", "o.jsonl", "--from", "azure"], "absent"),
        (["trace", "convert", "t.jsonl", "o.jsonl", "--from", "nonsense"], "unknown trace format 'nonsense'"),
        (["trace", "generate", "code-writer", "--apps", "0", "-o", "o.jsonl"], "0 is not in the range"),
        (["trace", "generate", "code-writer", "--rate", "-1", "-o", "o.jsonl"], "expected a number of applications"),
        (["trace", "generate", "code-writer", "-o", "nowhere/o.jsonl"], "nowhere/o.jsonl: cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(
    trace: str, arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.jsonl").touch()
    (folder / "header.jsonl").write_text('{"format": "tokencake.trace", "version": 1}\n')
    (folder / "binary.jsonl").write_bytes(bytes(range(256)))
    before = sorted(folder.iterdir())
    assert message in refused(capsys, *arguments)
    assert sorted(folder.iterdir()) == before  # nothing half-written


@pytest.mark.parametrize("mode", ["even", "poisson"])
def test_a_generated_trace_is_the_same_again(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--apps", "3", "--rate", "0.5", "--arrivals", mode, "--seed", "1"]
    for name in ("1.jsonl", "2.jsonl"):
        assert run(["trace", "generate", "deep-research", *options, "-o", name]) == 0
    assert Path("1.jsonl").read_bytes() == Path("2.jsonl").read_bytes()
    assert capsys.readouterr().out == "1.jsonl: 3 applications\n2.jsonl: 3 applications\n"


def test_a_trace_of_others_is_converted_and_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["2023-11-16 18:15:46.680590,374,44", "2023-11-16 18:15:50.995169,396,109"]
    Path("azure.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    assert run(["trace", "convert", "azure.csv", "o.jsonl", "--from", "azure"]) == 0
    assert capsys.readouterr().out == "o.jsonl: 2 applications\n"
    assert run(["simulate", "o.jsonl", "--policy", "vllm", "--quiet"]) == 0


def test_inspect_shows_what_is_in_a_trace(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["trace", "inspect", trace]) == 0
    said = capsys.readouterr()
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in said.out.splitlines())
    assert lines["applications"] == "2, arriving over 1.0 s"
    assert lines["calls"].startswith("54 of 16 agents; an application: mean 27 ")
    assert lines["output tokens"].startswith("12,928; ")
    assert lines["tool search"] == "4, 100% declared; s: mean 4 p50 4 p90 4 p99 4 max 4"
    assert said.err == ""


def test_inspect_tells_every_wrong_line_and_goes_on(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    header, first, second = Path(trace).read_text().splitlines()
    Path("bad.jsonl").write_text("\n".join([header, "{}", first, '{"id": 3}', second]) + "\n")
    capsys.readouterr()
    assert run(["trace", "inspect", "bad.jsonl"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[0].endswith("  2, arriving over 1.0 s")
    assert [line.split(": ")[:2] for line in said.err.splitlines()] == [
        ["error", "bad.jsonl:2"],
        ["error", "bad.jsonl:4"],
    ]


def test_policies_and_machines_are_listed_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policies"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"vllm", "tokencake", "tokencake-space", "tokencake-time"} <= set(listed)
    assert run(["machines"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"h200-llama-3.1-8b", "a800-qwen2.5-14b"} <= set(listed)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tokencake {__version__} ({core_build.running})\n"
    for arguments in ([], ["--help"], ["trace"], ["simulate", "--help"]):
        assert run(arguments) == 0
        assert capsys.readouterr().out.startswith("Usage: tokencake")


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        (["trace", "generate", "code-writer", "--apps", "2", "-o", "-"], ["--qps", "2"], ["--rate", "2"]),
        (["sweep", "TRACE", "--policy", "vllm", "--repeat", "1", "-o", "-"], ["--qps", "1,2"], ["--rate", "1,2"]),
        (["sweep", "TRACE", "--policy", "vllm", "--repeat", "1", "-o", "-"], ["--jobs", "1"], ["--workers", "1"]),
        (["compare", "TRACE", "--policy", "vllm", "--repeat", "1", "--json", "-"], ["--jobs=1"], ["--workers", "1"]),
    ],
)
def test_options_are_taken_under_their_old_names_which_no_help_shows(
    trace: str, capsysbinary: pytest.CaptureFixture[bytes], command: list[str], old: list[str], new: list[str]
) -> None:
    command = [trace if word == "TRACE" else word for word in command]
    assert run([*command, *old]) == run([*command, *new]) == 0
    out = capsysbinary.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :] != b""
    name = command[:2] if command[0] == "trace" else command[:1]
    assert run([*name, "--help"]) == 0
    shown = capsysbinary.readouterr().out.decode()
    assert new[0] in shown
    assert old[0].partition("=")[0] not in shown


def test_progress_is_shown_when_it_takes_longer(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tokencake.traces.console.progress.QUIET_S", 0.0)
    assert run(["trace", "generate", "code-writer", "-o", "o.jsonl", "--progress"]) == 0
    assert "writing" in capsys.readouterr().err
    assert run(["trace", "generate", "code-writer", "-o", "o.jsonl"]) == 0
    assert capsys.readouterr().err == ""  # no terminal


def test_a_reader_that_goes_away_is_no_error(trace: str) -> None:
    command = f"{sys.executable} -m tokencake.cli simulate {trace} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("spec", "options", "file"),
    [
        ("vllm", {}, "1-vllm.jsonl"),
        ("tokencake:upload=demand", {"upload": "demand"}, "1-tokencake-upload-demand.jsonl"),
        ("a/b.py:Mine:x=1,y=a=b", {"x": "1", "y": "a=b"}, "1-a-b.py-Mine-x-1-y-a-b.jsonl"),
        ("../b.py:Mine", {}, "1-b.py-Mine.jsonl"),
    ],
)
def test_options_and_file_names_of_a_policy(spec: str, options: dict[str, str], file: str) -> None:
    assert options_of(spec) == options
    assert events_name(0, spec) == file
