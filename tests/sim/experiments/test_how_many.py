"""Very many runs are announced, and absurdly many refused, before anything is played."""

from pathlib import Path

import pytest

from tokencake.cli import run
from tokencake.sim.experiments import executors
from tokencake.sim.experiments.executors import announced
from tokencake.sim.experiments.run import RunSpec
from tokencake.sim.machine.files import load_machine
from tokencake.traces.format.writer import write_trace
from tokencake.traces.generate.workloads import code_writer


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(tmp_path / "t.jsonl", list(code_writer(apps=1)))
    return tmp_path / "t.jsonl"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "TRACE", "--repeat", "1000000000"], "--repeat: expected at most 1,000 repeats, got 1,000,000,000"),
        (["sweep", "TRACE", "-o", "OUT", "--repeat", "1001"], "--repeat: expected at most 1,000 repeats, got 1,001"),
        (
            ["sweep", "TRACE", "-o", "OUT", "--rate", "1:90000:1"],
            "the grid: expected at most 200,000 runs in all, got 900,000",
        ),
        (["sweep", "TRACE", "-o", "OUT", "--rate", "1:200000:1"], "--rate: expected at most 100,000 values"),
        (["live", "TRACE", "--model", "tiny", "--repeat", "1001"], "--repeat: expected at most 1,000 repeats"),
        (["trace", "generate", "code-writer", "--apps", "1000001", "-o", "OUT"], "apps: expected at most 1,000,000"),
        (["simulate", "TRACE", "--rate", "1e-300"], "rate: expected a number of applications a second from 1e-06"),
        (["compare", "TRACE", "--margin", "nan"], "nan is not in the range"),
        (["compare", "TRACE", "--confidence", "nan"], "nan is not in the range"),
    ],
)
def test_absurd_numbers_are_refused_at_once(
    trace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    places = {"TRACE": str(trace), "OUT": str(trace.with_name("out"))}
    assert run([places.get(argument, argument) for argument in arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
    assert not trace.with_name("out").exists()


def test_many_runs_are_announced_with_the_time_that_the_first_took(trace: Path) -> None:
    first = RunSpec(trace, load_machine(), "vllm")
    assert announced(10_000, first, 2) is None
    line = announced(60_000, first, 2)
    assert line is not None
    assert line.startswith("60,000 runs; the first took 0.")
    assert line.endswith(" min on 2 processes")


def test_compare_announces_before_it_begins(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "MANY_RUNS", 3)
    assert (
        run(["compare", str(trace), "--policy", "vllm", "--policy", "tokencake", "--repeat", "2", "--workers", "1"])
        == 0
    )
    assert capsys.readouterr().err.startswith("4 runs; the first took 0.")
    assert run(["sweep", str(trace), "--repeat", "2", "-o", str(trace.with_name("s.csv"))]) == 0
    assert capsys.readouterr().err.startswith("4 runs; the first took 0.")
