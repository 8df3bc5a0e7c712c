"""The guide runs, the example repository is good, and so are the project's own suite and its workflow."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokencake.cli import run
from tokencake.sim.gate.baseline import baseline_file, read_baseline
from tokencake.sim.gate.check import prepare
from tokencake.sim.gate.suite.suite_file import DEFAULT_GATES, load_suite

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_guides_commands_and_its_tests_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in blocks("sh")[0].splitlines()]
    assert len(commands) == 3
    for command in commands:
        assert command[0] == "tokencake"
        assert run(command[1:]) == 0
    (tmp_path / "test_guide.py").write_text(blocks("python")[0])
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = pytest_in(tmp_path, "--tokencake-slow")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_guides_suite_can_be_loaded(tmp_path: Path) -> None:
    suite, live = blocks("toml")
    (tmp_path / "tokencake.toml").write_text(suite + live)
    loaded = load_suite(tmp_path / "tokencake.toml")
    assert [case.name for case in loaded.cases] == ["code-writer", "code-writer-varied", "busier"]
    assert loaded.cases[0].live is not None


def test_the_guides_default_metrics_are_those_there_are() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| (\d+) % \| ?(\d*) \|$", GUIDE, re.MULTILINE)
    listed = {
        name: (int(relative) / 100, float(absolute or 0))
        for names, relative, absolute in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert listed == DEFAULT_GATES


def test_files_that_the_guide_names_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


# -- the example repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples" / "ci", tmp_path / "ci"))


@pytest.mark.slow
def test_the_example_repository_is_good(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    assert run(["check"]) == 0
    done = pytest_in(repository, "--tokencake-slow", "-n", "2")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_its_workflow_is_the_guides_and_its_command_runs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = (repository / ".github" / "workflows" / "policies.yml").read_text()
    assert workflow == (ROOT / "docs" / "check-workflow.yml").read_text()
    (folded,) = re.findall(r"run: >-\n((?: {10}.*\n)+)", workflow)
    command = shlex.split(folded.replace("$GITHUB_STEP_SUMMARY", "summary.md"))
    monkeypatch.chdir(repository)
    assert command[0] == "tokencake"
    assert run(command[1:]) == 0
    assert (repository / "tokencake.xml").read_text().startswith("<?xml")
    assert (repository / "summary.md").read_text().startswith("## tokencake check: good")


def test_a_pull_request_that_makes_it_worse_fails(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody loses the saves."""
    monkeypatch.chdir(repository)
    policy = repository / "policies" / "mine.py"
    policy.write_text(policy.read_text().replace(", offload=self.saves(view)", ""))
    capsys.readouterr()
    assert run(["check", "--case", "code-writer"]) == 1
    said = capsys.readouterr().out
    assert "cause: the policy's file was edited" in said
    assert "first decision that differs" in said
    assert "regressed" in said


# -- the project's own suite


def test_the_projects_own_baselines_are_of_its_own_suite() -> None:
    """Whether its policies are as good as they say is for `tokencake check` to tell."""
    suite = load_suite(ROOT / "tokencake.toml")
    assert suite.budget_s == 120
    for case in suite.cases:
        prepare(suite, case)
        assert read_baseline(suite, case).decisions is not None, baseline_file(suite, case)
    names = {file.name.split(".")[0] for file in suite.baselines_folder.iterdir()}
    assert names == {case.name for case in suite.cases}


def test_every_half_and_both_sets_of_rules_are_gated() -> None:
    policies = {case.policy for case in load_suite(ROOT / "tokencake.toml").cases}
    assert {"vllm", "tokencake", "tokencake:rules=published"} <= policies
    assert {"tokencake-space", "tokencake-time"} <= {policy.partition(":")[0] for policy in policies}
