"""How processes that play begin, and what they share with the one that they play for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokencake.cli import run
from tokencake.sim.experiments.processes.worker import start_method

on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are copied on Linux alone")

COMMAND = """
import os, sys
from tokencake.traces.console.supervisor import allow_supervision
allow_supervision()
"""
WATCHED = """
from tokencake.cli import main

def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("t.jsonl"):
        with os.fdopen(os.open("opened", os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
            file.write(f"{os.getpid() == own}\\n")

own = os.getpid()
sys.addaudithook(watch)
main()
"""


def of_a_command(code: str, *arguments: str) -> str:
    """What code prints that runs in a command's own process."""
    asked = [sys.executable, "-c", COMMAND + code, *arguments]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(asked, stdout=subprocess.PIPE, text=True, timeout=60, check=True, env=environment).stdout


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["trace", "generate", "code-writer", "--apps", "2", "-o", "t.jsonl"]) == 0
    return tmp_path / "t.jsonl"


def test_nobody_else_s_process_is_copied() -> None:
    assert start_method() == "spawn"


@on_linux
def test_a_command_is_copied_as_long_as_it_is_one_thread() -> None:
    code = """
import threading
from tokencake.sim.experiments.processes.worker import start_method
print(start_method())
ends = threading.Event()
thread = threading.Thread(target=ends.wait)
thread.start()
print(start_method())
ends.set()
"""
    assert of_a_command(code).split() == ["fork", "spawn"]


@on_linux
@pytest.mark.parametrize(
    "asked",
    [
        ["compare", "t.jsonl", "--repeat", "3"],
        ["sweep", "t.jsonl", "--repeat", "2", "--rate", "1,2", "--set", "gpu_blocks=1500,2000", "-o", "s.csv"],
    ],
    ids=lambda asked: asked[0],
)
def test_who_plays_reads_no_trace(trace: Path, asked: list[str]) -> None:
    of_a_command(WATCHED, *asked, "--policy", "vllm", "--policy", "tokencake", "--workers", "2", "--quiet")
    assert set(Path("opened").read_text().split()) == {"True"}


@on_linux
def test_a_sweep_reads_its_trace_as_often_as_one_point_does(trace: Path) -> None:
    opened = []
    for rates in ("1", "1,2,3,4"):
        of_a_command(WATCHED, "sweep", "t.jsonl", "--policy", "vllm", "--rate", rates, "-o", f"{rates}.csv", "--quiet")
        opened.append(Path("opened").read_text().count("\n"))
        Path("opened").unlink()
    assert opened[0] == opened[1]


def opened_by(code: str, *policies: str) -> int:
    asked = [argument for policy in policies for argument in ("--policy", policy)]
    of_a_command(code, "simulate", "t.jsonl", *asked, "--quiet")
    times = Path("opened").read_text().count("\n")
    Path("opened").unlink()
    return times


def test_a_simulation_reads_what_is_short_once_for_all_policies(trace: Path) -> None:
    assert opened_by(WATCHED, "vllm", "tokencake", "infercept") == opened_by(WATCHED, "vllm")
    long = f"from tokencake.sim.experiments import kept_applications\nkept_applications.MOST_CALLS = 20\n{WATCHED}"
    assert opened_by(long, "vllm", "tokencake", "infercept") == opened_by(WATCHED, "vllm") + 2


@on_linux
def test_a_copy_keeps_nothing_open_that_the_original_has(tmp_path: Path) -> None:
    """A lock of the original would outlive it, and a pipe to another copy would never end."""
    code = """
from tokencake.sim.experiments.processes.worker import Worker

def targets(folder):
    return [os.readlink(f"{folder}/{number}") for number in range(3, 64) if os.path.lexists(f"{folder}/{number}")]

kept = open(sys.argv[1], "w")
first, second = Worker(), Worker()
for name in second.ask(targets, "/proc/self/fd"):
    print(name)
first.end()
second.end()
"""
    names = of_a_command(code, str(tmp_path / "kept")).splitlines()
    assert [name for name in names if name.startswith("socket:")] == [name for name in names if name != os.devnull]
    assert len([name for name in names if name != os.devnull]) == 1  # the pipe to who asks


@on_linux
def test_a_copy_ends_when_it_is_asked_to_and_not_by_ctrl_c() -> None:
    code = """
import signal, time
from tokencake.traces.console.interrupts import heed
from tokencake.sim.experiments.processes.worker import Worker

def tells(_):
    os.kill(os.getpid(), signal.SIGINT)
    return os.getpid()

heed()
worker = Worker()
print(worker.ask(tells, None) != os.getpid())
worker.hurry()
print(worker._ends_within(20.0), worker._process.exitcode)
"""
    assert of_a_command(code).split() == ["True", "True", "0"]
