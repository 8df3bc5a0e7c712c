"""The pytest plugin, as a team's tests use it: in a pytest of its own, with the plugin found by its entry point."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gate_suites import ONE_AT_A_TIME, POLICY

from tokencake.cli import run
from tokencake.sim.gate.testing import Simulation, assert_not_worse
from tokencake.traces.errors import TokencakeError
from tokencake.traces.events import CallAdmitted

TESTS = """
import pytest
from tokencake.policies.field.vllm import Vllm
from tokencake.sim.gate.testing import assert_not_worse
from tokencake.traces.events import CallFinished

SMALL = dict(machine="h100-llama-3.1-8b", settings={"gpu_blocks": 850})

def test_mine_is_not_worse(simulate):
    mine = simulate("t.jsonl", "mine.py:Mine", **SMALL)
    assert len(mine.happened(CallFinished)) == 54
    assert_not_worse(mine, than=simulate("t.jsonl", "vllm", **SMALL), metric="app_latency_s.mean", tolerance=0.1)

def test_a_class_is_a_policy(simulate):
    one, other = simulate("t.jsonl", Vllm, **SMALL), simulate("t.jsonl", "vllm", **SMALL)
    assert one.metrics == other.metrics
    assert one.events == other.events

@pytest.mark.tokencake_slow
def test_mine_is_not_worse_on_other_days(simulate):
    varied = dict(SMALL, repeats=5, vary="arrivals,tools")
    vllm = simulate("t.jsonl", "vllm", **varied)
    assert_not_worse(simulate("t.jsonl", "mine.py:Mine", **varied), than=vllm, tolerance=0.1)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    assert run(["trace", "generate", "code-writer", "--apps", "2", "-o", str(tmp_path / "t.jsonl")]) == 0
    (tmp_path / "mine.py").write_text(POLICY)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_policy.py").write_text(TESTS)
    return tmp_path


def pytest_in(project: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a pytest that is started in the project."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_policy_that_leaves_the_process_fails_its_test_and_ends_no_others(project: Path) -> None:
    (project / "leaving.py").write_text(
        """
import os
class Leaving:
    listens_to = frozenset()
    def plan(self, view):
        os._exit(0)
"""
    )
    (project / "tests" / "test_leaving.py").write_text(
        """
def test_leaving(simulate):
    simulate("t.jsonl", "leaving.py:Leaving")

def test_behind_it():
    pass
"""
    )
    code, said = pytest_in(project, "tests/test_leaving.py")
    assert code == 1
    assert "policy Leaving: at 0.000000 s: plan() raised SystemExit: 0 (leaving.py:6)" in said
    assert "1 failed, 1 passed" in said


def test_a_teams_tests_pass_and_slow_ones_are_left_out(project: Path) -> None:
    code, said = pytest_in(project)
    assert code == 0, said
    assert "2 passed, 1 deselected" in said


def test_slow_ones_run_when_they_are_asked_for(project: Path) -> None:
    code, said = pytest_in(project, "--tokencake-slow")
    assert code == 0, said
    assert "3 passed" in said


@pytest.mark.slow
def test_workers_of_xdist_share_the_tests(project: Path) -> None:
    code, said = pytest_in(project, "-n", "2", "--tokencake-slow")
    assert code == 0, said
    assert "3 passed" in said
    assert "2 workers" in said


def test_a_policy_that_is_worse_fails_its_test_with_a_message_for_people(project: Path) -> None:
    (project / "mine.py").write_text(ONE_AT_A_TIME)
    code, said = pytest_in(project, "tests")
    assert code == 1
    assert "AssertionError: app_latency_s.mean of mine.py:Mine is worse than that of vllm" in said
    assert "change +4" in said
    assert "allowed +10%" in said


def test_paths_are_told_from_the_root_of_the_tests_wherever_pytest_was_started(project: Path) -> None:
    code, said = pytest_in(project / "tests")
    assert code == 0, said


def test_pytest_loads_nothing_of_the_simulator_before_a_test_asks(project: Path) -> None:
    (project / "tests" / "test_policy.py").write_text(
        "import sys\n"
        "def test_light():\n"
        "    heavy = {'simpy', 'numpy', 'click', 'rich', 'tokencake.sim.engine.simulate'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    assert 'tokencake.sim.gate.pytest_plugin' in sys.modules\n"
    )
    code, said = pytest_in(project)
    assert code == 0, said


# -- in this process


@pytest.fixture
def small(project: Path, simulate: Callable[..., Simulation]) -> Callable[..., Simulation]:
    """Two code writers on few blocks."""
    return lambda policy, **more: simulate(
        project / "t.jsonl", policy, **{"machine": "h100-llama-3.1-8b", "settings": {"gpu_blocks": 850}, **more}
    )


def test_the_message_says_what_how_much_and_where(project: Path, small: Callable[..., Simulation]) -> None:
    (project / "mine.py").write_text(ONE_AT_A_TIME)
    worse, vllm = small(f"{project}/mine.py:Mine"), small("vllm")
    with pytest.raises(AssertionError) as raised:
        assert_not_worse(worse, than=vllm, metric="makespan_s", tolerance=0.05)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"makespan_s of {project}/mine.py:Mine is worse than that of vllm"
    assert lines[1].split() == [f"{project}/mine.py:Mine", "104.5", "s"]
    assert lines[2].split()[0] == "vllm"
    assert lines[3].endswith("allowed +5%")
    assert lines[4] == f"  in {project}/t.jsonl on h100-llama-3.1-8b"
    assert_not_worse(vllm, than=worse, metric="makespan_s")
    assert_not_worse(worse, than=vllm, metric="makespan_s", tolerance=1.0)
    assert_not_worse(worse, than=vllm, metric="makespan_s", absolute=60)


def test_of_several_repeats_it_must_be_sure(small: Callable[..., Simulation]) -> None:
    """Worse by 3 % on the whole, but only because of one repeat of four; then in all of them."""
    vllm = small("vllm")
    lasting = lambda *times_s: replace(vllm, runs=tuple({"makespan_s": time_s} for time_s in times_s))  # noqa: E731
    before = lasting(100, 100, 100, 100)
    assert_not_worse(lasting(100, 99, 101, 112), than=before, metric="makespan_s", tolerance=0.02)
    with pytest.raises(AssertionError, match=r"change \+3.0%, allowed \+2%, interval \+1.* to \+4.*\n.*4 repeats"):
        assert_not_worse(lasting(103, 102, 104, 103), than=before, metric="makespan_s", tolerance=0.02)


def test_events_are_those_of_the_first_repeat(small: Callable[..., Simulation]) -> None:
    run = small("vllm", repeats=2, vary="tools=0.1")
    assert len(run.happened(CallAdmitted)) - run.metrics["preemptions"] == run.metrics["calls"] == 54
    assert run.runs[0] != run.runs[1]


def test_what_cannot_be_compared_is_refused(small: Callable[..., Simulation]) -> None:
    one, other = small("vllm"), small("vllm", settings={"gpu_blocks": 900})
    with pytest.raises(TokencakeError, match="expected one trace, played alike on one machine"):
        assert_not_worse(one, than=other)
    with pytest.raises(TokencakeError, match="expected equal repeats, got 1 and 2"):
        assert_not_worse(one, than=small("vllm", repeats=2))
    with pytest.raises(TokencakeError, match="unknown metric 'latency'"):
        assert_not_worse(one, than=one, metric="latency")
    with pytest.raises(TokencakeError, match="a class, or a function that makes one for each run"):
        small(object())
