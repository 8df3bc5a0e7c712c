"""Exit code 0 is earned: whatever a policy does, and wherever the output goes, it means that the result was written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from misbehaving import POLICIES, WRONG

from tokencake.cli import run
from tokencake.sim.experiments.executors import run_on_workers
from tokencake.sim.experiments.processes.worker import Worker
from tokencake.sim.experiments.run import RunSpec
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces.console.exit_codes import BUG
from tokencake.traces.errors import WorkerBug

COMMAND = [sys.executable, "-m", "tokencake.cli"]
QUICK = ("Exits", "Leaves", "Loops", "LeavesWhenMade")


def ways(*names: str, quick: tuple[str, ...] = QUICK) -> list[Any]:
    """Policies by name; those that show little beyond the quick ones are left to CI."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(POLICIES)
    assert run(["trace", "generate", "code-writer", "--apps", "1", "-o", "t.jsonl"]) == 0
    return tmp_path


def command(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **how)


@pytest.mark.parametrize("asked", [["simulate", "t.jsonl"], ["check"]])
def test_a_timeout_that_is_no_number_is_refused(folder: Path, capfd: Any, asked: list[str]) -> None:
    assert run([*asked, "--policy-timeout", "nan"]) == 2
    assert "'--policy-timeout': nan is not in the range" in capfd.readouterr().err


# -- policies that misbehave


@pytest.mark.parametrize("policy", ways(*WRONG))
def test_in_a_simulation_it_is_one_line_and_exit_code_2(folder: Path, capfd: Any, policy: str) -> None:
    asked = ["simulate", "t.jsonl", "--policy", f"mine.py:{policy}", "--policy-timeout", "1", "--json", "r.json"]
    assert run(asked) == 2
    said = capfd.readouterr().err.removeprefix("at import\n" * 2).removeprefix("at import\n")
    assert said.startswith("error: policy ")
    assert said.count("\n") == 1
    assert WRONG[policy] in said
    assert not Path("r.json").exists()


POISON = """
from tokencake.policies.field.vllm import Vllm
from tokencake.traces.results import metrics
class Mine(Vllm):
    def __init__(self):
        metrics.Metrics.result = lambda self: 1 / 0
"""


def test_what_a_policy_changes_in_its_process_touches_no_other_policy(folder: Path) -> None:
    Path("poison.py").write_text(POISON)
    specs = [
        RunSpec(Path("t.jsonl"), PUBLISHED, policy, seed=seed)
        for seed in (0, 1)
        for policy in ("poison.py:Mine", "vllm", "mine.py:Base")
    ]
    played = {(one.spec.policy, one.spec.seed): one.error for one in run_on_workers(specs, 1)}
    assert len(played) == len(specs)
    for (policy, _), error in played.items():
        assert (error is not None) == (policy == "poison.py:Mine"), policy


def test_what_finished_before_is_reported(folder: Path, capfd: Any) -> None:
    assert run(["simulate", "t.jsonl", "--policy", "vllm", "--policy", "mine.py:Leaves", "--json", "r.json"]) == 2
    assert [one["policy"] for one in json.loads(Path("r.json").read_text())["runs"]] == ["vllm"]


def test_events_up_to_then_are_left(folder: Path, capfd: Any) -> None:
    asked = ["simulate", "t.jsonl", "--policy", "mine.py:Loops", "--policy-timeout", "1", "--events", "e"]
    assert run(asked) == 2
    assert [path.name.endswith(".partial") for path in Path("e").iterdir()] == [True]


def test_what_policies_print_is_not_in_the_result(folder: Path) -> None:
    done = command("simulate", "t.jsonl", "--policy", "mine.py:Prints", "--json", "-", "--quiet")
    assert done.returncode == 0
    assert json.loads(done.stdout)["runs"]
    for text in ("at import", "in a plan", "from a shell"):
        assert text in done.stderr


def test_what_policies_print_is_not_in_the_result_of_a_replay(folder: Path) -> None:
    assert command("simulate", "t.jsonl", "--policy", "vllm", "--events", "e", "--quiet").returncode == 0
    (events,) = map(str, Path("e").iterdir())
    done = command("replay", events, "--policy", "mine.py:Prints", "--json", "-")
    assert json.loads(done.stdout)["policy"] == "mine.py:Prints"
    for text in ("at import", "in a plan", "from a shell"):
        assert text in done.stderr


def test_a_thread_that_a_policy_leaves_behind_keeps_nobody(folder: Path) -> None:
    assert command("simulate", "t.jsonl", "--policy", "mine.py:Threads", "--quiet").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["Leaves", "Loops", "LeavesWhenMade"])
def test_in_a_comparison_and_a_sweep_it_has_failed(folder: Path, capfd: Any, policy: str) -> None:
    asked = ["t.jsonl", "--policy", "vllm", "--policy", f"mine.py:{policy}", "--repeat", "2", "--policy-timeout", "1"]
    code = 2 if policy.endswith("Made") else 1  # what cannot be made at all is found before the work begins
    assert run(["compare", *asked]) == code
    assert WRONG[policy] in "".join(capfd.readouterr()).replace("\n", " ")
    assert run(["sweep", *asked, "-o", "s.csv"]) == code
    assert WRONG[policy] in capfd.readouterr().err


def test_a_replay_of_a_policy_that_leaves_is_no_success(folder: Path) -> None:
    assert run(["simulate", "t.jsonl", "--policy", "tokencake", "--events", "e", "--quiet"]) == 0
    for policy in ("Leaves", "LeavesWhenMade"):
        done = command("replay", "e/1-tokencake.jsonl", "--policy", f"mine.py:{policy}")
        assert done.returncode == 2
        assert "exited with 0 before its result was written: did a policy end it?" in done.stderr


# -- the gate


SUITE = """
policy_timeout_s = 1
[defaults]
trace = "t.jsonl"
[cases.one]
policy = "mine.py:Mine"
[cases.two]
policy = "vllm"
"""


@pytest.fixture
def gate(folder: Path, capfd: Any) -> Path:
    Path("tokencake.toml").write_text(SUITE)
    Path("mine.py").write_text(POLICIES + "\nclass Mine(Base): pass\n")
    assert run(["check", "--update"]) == 0
    assert run(["check"]) == 0
    capfd.readouterr()
    return folder


@pytest.mark.parametrize(
    "policy", ways("Exits", "Leaves", "Holds", "LeavesWhenMade", "LoopsWhenMade", quick=("Leaves", "LeavesWhenMade"))
)
def test_in_the_gate_it_is_a_failed_case_in_every_output(gate: Path, capfd: Any, policy: str) -> None:
    Path("mine.py").write_text(POLICIES + f"\nclass Mine({policy}): pass\n")
    formats = ("text", "github", "junit", "markdown", "json")
    outputs = [argument for name in formats for argument in ("--format", name, "-o", f"out.{name}")]
    assert run(["check", *outputs]) == 1
    for name in formats:
        assert WRONG[policy].removesuffix(" (mine.py:") in Path(f"out.{name}").read_text(), name
    cases = {case["name"]: case["state"] for case in json.loads(Path("out.json").read_text())["cases"]}
    assert cases == {"one": "failed", "two": "good"}
    assert ElementTree.parse("out.junit").find(".//error") is not None


@pytest.mark.parametrize("text", ["import os; os._exit(0)", "import sys; sys.exit(0)"])
def test_a_file_that_leaves_when_it_is_imported_fails_its_case(gate: Path, capfd: Any, text: str) -> None:
    Path("mine.py").write_text(text)
    assert run(["check"]) == 1
    assert run(["check", "--update"]) == 2
    assert "cases.one: policy " in capfd.readouterr().err


# -- outputs that are closed or full


@pytest.mark.parametrize("arguments", [["policies"], ["--help"], ["simulate", "t.jsonl", "--json", "r.json"]])
def test_a_closed_standard_output_is_no_success(folder: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, *arguments], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: standard output is closed: expected it to be open, or >/dev/null\n"
    assert not Path("r.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["policies"], ["--version"], ["simulate", "t.jsonl", "--quiet"]])
def test_a_full_standard_output_is_no_success(folder: Path, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["policies"], ["--version"], ["simulate", "t.jsonl", "--json", "-"]])
def test_a_reader_that_has_gone_is_no_bug(folder: Path, arguments: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([*COMMAND, *arguments], stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, "")


def test_nobody_to_tell_of_an_error_is_no_traceback(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([*COMMAND, "simulate", "absent"], stderr=full, check=False).returncode == 2


# -- bugs of ours


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("too deep"), AssertionError(), SystemExit(0)])
def test_a_bug_of_ours_is_70_with_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, error: BaseException
) -> None:
    def fail() -> list[tuple[str, str]]:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tokencake.policies.registry.policy_lines", fail)
    assert run(["policies"]) == BUG == 70
    said = capsys.readouterr().err
    assert said.startswith("error: a bug in tokencake, please report: ")
    assert said.count("\n") == 1
    (file,) = tmp_path.iterdir()
    assert str(file) in said
    assert type(error).__name__ in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.sources
@pytest.mark.parametrize("how", [[], ["--policy-timeout", "9"], ["--policy", "vllm"]])
def test_where_a_policy_may_be_to_blame_for_a_bug_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, how: list[str]
) -> None:
    """It writes past the lock of the view. What comes of that looks like a bug of ours, and only like one."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert run(["simulate", "t.jsonl", "--policy", "mine.py:WritesPastTheLock", *how]) == BUG
    said = capfd.readouterr().err
    assert "error: a bug in tokencake, please report: AttributeError: 'NoneType' object has no attribute " in said
    assert ", or a bug in policy WritesPastTheLock, which was playing: does it write past the lock" in said


def test_a_bug_of_ours_in_another_process_is_ours_too() -> None:
    worker = Worker()
    try:
        with pytest.raises(WorkerBug, match="ValueError"):
            worker.ask(int, "no number")
        assert worker.ask(int, "5") == 5
    finally:
        worker.end()


def test_no_memory_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> list[tuple[str, str]]:
        raise MemoryError

    monkeypatch.setattr("tokencake.policies.registry.policy_lines", fail)
    assert run(["policies"]) == 2
    assert capsys.readouterr().err == "error: out of memory\n"


# -- interrupts


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupt_ends_what_plays_elsewhere(folder: Path, number: int, code: int) -> None:
    asked = [*COMMAND, "simulate", "t.jsonl", "--policy", "mine.py:Loops", "--events", "e"]
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True) as running:
        while not (Path("e").exists() and list(Path("e").iterdir())):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(running.pid, number)
        assert running.wait(timeout=20) == code
    assert [path.name for path in Path("e").iterdir()] == ["1-mine.py-Loops.jsonl.partial"]
