"""Sweeps on Ray, on a cluster of this machine: the same bytes as without it, whatever its workers see of the disk."""

import json
import re
import socket
import sys
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from tokencake.cli import run
from tokencake.sim.experiments import ray_executor
from tokencake.sim.experiments.identity import code_digest
from tokencake.sim.experiments.run import RunSpec, play
from tokencake.sim.machine.files import load_machine

MINE = "from tokencake.policies.field.vllm import Vllm\nclass Mine(Vllm): pass\n"
DYING = """
import os, signal

class Dying:
    listens_to = frozenset()

    def plan(self, view):
        os.kill(os.getpid(), signal.SIGKILL)
"""
POISON = """
from tokencake.policies.field.vllm import Vllm
from tokencake.traces.results import metrics

class Mine(Vllm):
    def __init__(self):
        metrics.Metrics.result = lambda self: 1 / 0
"""


@pytest.fixture(autouse=True)
def trace(tmp_path, monkeypatch):
    """Two code writers in the folder that tests run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run(["trace", "generate", "code-writer", "--apps", "2", "-o", "t.jsonl"]) == 0


def test_without_ray_it_is_one_line_before_anything_is_played(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    capsys.readouterr()
    assert run(["sweep", "t.jsonl", "--ray", "-o", "s.csv"]) == 2
    assert capsys.readouterr().err == "error: --ray: Ray is not installed: pip install 'tokencake[ray]'\n"
    assert not Path("s.csv.cells.jsonl").exists()


def test_a_cluster_that_is_not_there_is_one_line_and_soon(capsys):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
    capsys.readouterr()
    assert run(["sweep", "t.jsonl", "--ray", "--ray-address", nobody, "-o", "s.csv"]) == 2
    assert capsys.readouterr().err == f"error: --ray: no cluster at {nobody}: Connection refused\n"


class ObjectStore:
    """As much of Ray as a worker needs."""

    def __init__(self, contents):
        self.contents = contents

    def get(self, reference):
        assert reference == "reference"
        return self.contents


@pytest.fixture
def worker(monkeypatch):
    """A worker whose object store has the files of the cell, while its disk has none of them."""

    def there(spec, code):
        ray_executor._fetched.cache_clear()
        contents = ray_executor._contents([spec])
        monkeypatch.setattr(ray_executor, "_ray", lambda: ObjectStore(contents))
        for path in contents:
            Path(path).unlink()
        return ray_executor._play_there(["reference"], code, play, spec)

    yield there
    ray_executor._fetched.cache_clear()


def test_a_worker_needs_neither_the_trace_nor_the_policy_s_file(worker, tmp_path, monkeypatch):
    Path("mine.py").write_text(MINE)
    Path("tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    spec = RunSpec(Path("t.jsonl"), load_machine(), "mine.py:Mine")
    here = play(spec)
    there = worker(spec, code_digest())
    assert (there.spec, there.metrics, there.error) == (spec, here.metrics, None)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_error_on_a_worker_names_the_files_as_they_are_called_here(worker):
    Path("mine.py").write_text("raise ValueError('no')")
    spec = RunSpec(Path("t.jsonl"), load_machine(), "mine.py:Mine")
    here = play(spec)
    assert here.error == "policy file mine.py: import raised ValueError: no (mine.py:1)"
    assert worker(spec, code_digest()).error == here.error


def test_a_worker_with_another_tokencake_refuses(worker):
    outcome = worker(RunSpec(Path("t.jsonl"), load_machine(), "vllm"), "another")
    assert outcome.error == "the Ray worker has another Tokencake: expected the same one as on the machine that asks"


class Tasks:
    """As much of Ray as the executor needs: what becomes of each cell's worker afterwards."""

    def __init__(self):
        self.played = []  # the policy, and how many cells its worker plays before it ends; 0: any number

    def put(self, contents):
        return "reference"

    def remote(self, *, max_retries, max_calls=0):
        def task(contents, code, act, spec):
            self.played.append((spec.policy, max_calls))
            return Reference()

        return lambda play: SimpleNamespace(remote=task)


class Reference:
    def future(self):
        return Future()


def test_a_worker_that_played_other_people_s_code_plays_nothing_else():
    tasks = Tasks()
    executor = ray_executor.RayExecutor(tasks, {})
    for policy in ("vllm", "mine.py:Mine", "tokencake:rules=published"):
        executor.submit(play, RunSpec(Path("t.jsonl"), load_machine(), policy))
    assert tasks.played == [("vllm", 0), ("mine.py:Mine", 1), ("tokencake:rules=published", 0)]


def test_a_policy_s_timeout_is_refused(capsys):
    capsys.readouterr()
    assert run(["sweep", "t.jsonl", "--ray", "--policy-timeout", "3", "-o", "s.csv"]) == 2
    assert capsys.readouterr().err.startswith("error: --policy-timeout: not with --ray")


@pytest.fixture
def short_tmp(monkeypatch):
    """For Ray's own files, whose sockets take no long paths, and for what killed workers leave behind."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("short_tmp")
def test_on_a_cluster_a_sweep_comes_to_the_same_bytes(capsys):
    pytest.importorskip("ray")
    Path("mine.py").write_text(MINE)
    Path("dying.py").write_text(DYING)
    policies = [word for spec in ("vllm", "mine.py:Mine", "dying.py:Dying") for word in ("--policy", spec)]
    sweep = ["sweep", "t.jsonl", "--rate", "1,2", "--repeat", "2", "--workers", "2", *policies]
    assert run([*sweep, "-o", "here.csv", "--json", "here.json"]) == 1
    capsys.readouterr()
    assert run([*sweep, "-o", "there.csv", "--json", "there.json", "--ray"]) == 1  # one policy kills its workers
    died = r"failed: qps=1.0: dying.py:Dying, repeat [01]: the Ray worker that played it failed: WorkerCrashedError: "
    assert re.search(died, capsys.readouterr().err)
    assert Path("here.csv").read_bytes() == Path("there.csv").read_bytes()
    here, there = (json.loads(Path(name).read_text()) for name in ("here.json", "there.json"))
    assert len(here["failures"]) == len(there["failures"]) == 4
    assert here | {"failures": None} == there | {"failures": None}


@pytest.mark.slow
@pytest.mark.usefixtures("short_tmp")
def test_what_a_policy_changes_on_a_worker_reaches_no_other_cell():
    pytest.importorskip("ray")
    Path("mine.py").write_text(POISON)
    sweep = ["sweep", "t.jsonl", "--repeat", "4", "--policy", "vllm", "--ray", "--workers", "1", "--quiet"]
    assert run([*sweep, "-o", "clean.csv"]) == 0
    assert run([*sweep, "--policy", "mine.py:Mine", "-o", "both.csv"]) == 70  # it breaks what is ours
    clean, both = (Path(f"{name}.csv").read_text().splitlines() for name in ("clean", "both"))
    repeats = clean[0].split(",").index("repeats")
    assert [row.split(",")[repeats] for row in both[1:]] == ["4", "0"]
    assert both[1] == clean[1]
