"""The formats of a check: each says the same, in the way that its reader needs."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gate_suites import BACKWARDS, ONE_AT_A_TIME, SUITE, make_suite

from tokencake.cli import run
from tokencake.sim.gate.formats.words import parted

TWO = SUITE + '\n[cases.two]\npolicy = "vllm"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite of two cases, of which the first became worse."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    make_suite(tmp_path, TWO)
    assert run(["check", "--update", "--workers", "1"]) == 0
    (tmp_path / "mine.py").write_text(ONE_AT_A_TIME)
    return tmp_path


def check(*arguments: str) -> int:
    return run(["check", "--workers", "1", *arguments])


def test_text_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert check() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "regressed one  mine.py:Mine on h100-llama-3.1-8b"
    assert max(len(line) for line in lines if "first decision" not in line) <= 80
    assert lines[-2].startswith("2 cases: 1 regressed, 1 good (")
    assert lines[-1] == "if that is meant: tokencake check --update --case one"


def test_junit_has_a_test_for_each_metric_and_counts_them(folder: Path) -> None:
    assert check("--format", "junit", "-o", "junit.xml") == 1
    root = ElementTree.parse(folder / "junit.xml").getroot()
    (suite,) = root
    assert root.tag == "testsuites"
    tests = {(test.get("classname"), test.get("name")): test for test in suite}
    assert set(tests) == {
        *((f"tokencake.{case}", name) for case in ("one", "two") for name in ("behaviour", "app_latency_s.mean")),
        ("tokencake.one", "makespan_s"),
        ("tokencake.two", "makespan_s"),
        ("tokencake.check", "budget"),
    }
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("7", "2", "0")
    failure = tests["tokencake.one", "app_latency_s.mean"].find("failure")
    assert failure is not None
    assert failure.get("message") == "app_latency_s.mean regressed: 101.4 s, baseline 69.91 s, +45.0% (allowed +2%)"
    assert "first decision that differs: number 3" in (failure.text or "")
    assert tests["tokencake.two", "makespan_s"].find("failure") is None


def test_junit_has_an_error_for_a_policy_that_failed(folder: Path) -> None:
    (folder / "mine.py").write_text("class Mine:\n    listens_to = frozenset()\n    def plan(self, view): return ''\n")
    assert check("--format", "junit", "-o", "junit.xml") == 1
    error = ElementTree.parse(folder / "junit.xml").find(".//error")
    assert error is not None
    assert error.get("message") == "policy Mine: at 0.000000 s: plan() returned str, expected a Plan"


def test_github_annotates_the_line_of_the_case(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert check("--format", "github", "--suite", str(folder / "tokencake.toml")) == 1
    first, last = capsys.readouterr().out.splitlines()
    match = re.fullmatch(r"::error file=tokencake.toml,line=(\d+),title=tokencake check%3A one regressed::(.*)", first)
    assert match is not None
    assert TWO.splitlines()[int(match[1]) - 1] == "[cases.one]"
    message = match[2].split("%0A")
    assert message[0] == "cause: the policy's file was edited"
    assert message[1] == "app_latency_s.mean regressed: 101.4 s, baseline 69.91 s, +45.0%25 (allowed +2%25)"
    assert message[-2:] == ["  admit: old plan a1/architect_1", "         new plan nothing"]
    assert last.startswith("2 cases: 1 regressed, 1 good")


def test_github_notes_what_does_not_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(BACKWARDS)
    capsys.readouterr()
    assert check("--format", "github") == 0
    assert capsys.readouterr().out.startswith(
        "::notice file=tokencake.toml,line=11,title=tokencake check%3A one improved::"
    )
    assert check("--format", "github", "--strict") == 1
    assert capsys.readouterr().out.startswith("::error file=tokencake.toml")


def test_markdown_has_a_table_of_cases_and_one_of_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert check("--format", "markdown") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## tokencake check: failed"
    assert "| ✅ | two | vllm on h100-llama-3.1-8b | as it was |" in lines
    assert "### one: regressed" in lines
    assert "| `app_latency_s.mean` | baseline | 69.91 s | 101.4 s | +45.0% | +2% | **regressed** |" in lines
    assert "### two: good" not in lines


def test_json_is_the_whole_report_and_the_same_again_but_for_the_clock(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    reports = []
    for _ in range(2):
        assert check("--format", "json") == 1
        report = json.loads(capsys.readouterr().out)
        assert report.pop("wall_s") > 0
        reports.append(report)
    assert reports[0] == reports[1]
    assert (reports[0]["schema"], reports[0]["good"]) == ("tokencake.check/1", False)
    assert [case["fails"] for case in reports[0]["cases"]] == [True, False]


def test_several_formats_at_once_go_to_their_files_and_the_rest_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    several = ["--format", "junit", "-o", "j.xml", "--format", "markdown", "-o", "m.md", "--format", "github"]
    assert check(*several) == 1
    assert capsys.readouterr().out.startswith("::error")
    assert (folder / "j.xml").read_text().startswith("<?xml")
    assert (folder / "m.md").read_text().startswith("## tokencake check: failed")
    assert check("-o", "plain.txt") == 1
    assert capsys.readouterr().out.startswith("regressed one")  # people see it all the same
    assert (folder / "plain.txt").read_text().startswith("regressed one")


def test_a_file_that_cannot_be_written_is_found_before_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert check("-o", "no/such/folder.txt") == 2
    assert capsys.readouterr().err.startswith("error: no/such/folder.txt: cannot be written")
    assert check("-o", "a", "-o", "b") == 2
    assert capsys.readouterr().err == "error: -o b: expected a --format for each -o\n"


def test_long_lists_are_shown_from_where_they_part() -> None:
    assert parted(["a", "b", "c"], ["a", "b", "d"]) == ("[2 as in the other] c", "[2 as in the other] d")
    assert parted(["a"], ["a", "b"]) == ("[1 as in the other] nothing more", "[1 as in the other] b")
    assert parted([], None) == ("[]", "-")
    assert parted([["a", 3, True]], [["a", 4, True]]) == ('["a", 3, true]', '["a", 4, true]')
