"""A benchmark that is called wrongly ends as `tokencake` does: in one line, before it works for hours, with a code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import accuracy
import fuzz
import measured
import mutations
import published
import pytest
import stability
import study
from exits import exit_code

from tokencake.traces.errors import RunError, TokencakeError, TraceError

WITH_FIGURES = (accuracy, fuzz, measured, mutations, published, stability, study)


def raises(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raises(TraceError("t.jsonl:1: expected\x1b[31m")), 2, "error: t.jsonl:1: expected\\x1b[31m\n"),
        (raises(TokencakeError("two\nlines")), 2, "error: two lines\n"),
        (raises(RunError("the engine died")), 1, "error: the engine died\n"),
        (raises(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_the_code_says_whose_fault_it_was(main, code, said, capsys):
    assert exit_code(main) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("script", WITH_FIGURES, ids=lambda script: script.__name__)
def test_figures_that_cannot_be_written_are_not_computed(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--json", "/nowhere/figures.json"])
    assert exit_code(script.main) == 2
    assert capsys.readouterr() == ("", "error: /nowhere/figures.json: cannot be written: no such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "gpu_block=1"], '--set unknown setting "gpu_block": did you mean gpu_blocks?'),
        (["--set", "gpu_blocks=10"], "call 'a0/architect_1': 4748 tokens need 297 blocks, but the GPU has 10"),
        (["--spread", "nan"], "spread: expected a number from 0 to below 1, got nan"),
        (["--shared", "-1"], "shared_tokens: expected a whole number, at least 0, got -1"),
        (["--json", str(published.CELLS)], "published_cells.json: cannot be written: it is the input"),
    ],
)
def test_what_is_wrong_with_the_published_benchmark_is_one_line(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["published.py", *arguments])
    assert exit_code(published.main) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


ABOUT = '"command": "", "date": ""'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected JSON"),
        ('{"field', "expected JSON"),
        ("[1]", "expected an object, got "),
        ('{"mine": 1}', 'the field "command" is missing'),
        (f'{{"version": "0", {ABOUT}}}', "version: expected "),
        (f'{{"version": "0", {ABOUT}, "field code-writer": {{"policies": []}}}}', 'field code-writer: the field "'),
    ],
)
def test_a_study_is_resumed_from_its_own_figures_only(content, said, tmp_path, monkeypatch, capsys):
    """Whatever else lies there stays as it is."""
    figures = tmp_path / "study.json"
    figures.write_text(content)
    monkeypatch.setattr(sys, "argv", ["study.py", "--json", str(figures), "--resume"])
    monkeypatch.setattr(study, "played", lambda coding, known: iter(()))
    assert exit_code(study.main) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {figures}: ")
    assert said in told
    assert told.count("\n") == 1
    assert figures.read_text() == content


def test_a_study_that_is_interrupted_keeps_what_it_has_played(tmp_path, monkeypatch, capsys):
    group = dict.fromkeys(study.GROUP, 0)

    def broken_off(coding, known):
        yield from ((name, group) for name in ("field code-writer", "parts code-writer") if name not in known)
        raise KeyboardInterrupt

    figures = tmp_path / "study.json"
    monkeypatch.setattr(sys, "argv", ["study.py", "--json", str(figures), "--resume"])
    monkeypatch.setattr(study, "played", broken_off)
    assert exit_code(study.main) == 130
    played = figures.read_bytes()
    assert b"parts code-writer" in played
    assert exit_code(study.main) == 130
    assert figures.read_bytes() == played


def test_tables_of_what_was_not_played_are_not_written(tmp_path, monkeypatch, capsys):
    """The figures of a study that was broken off: no document is touched, also none before the one that lacks them."""
    figures, *documents = (tmp_path / name for name in ("study.json", "one.md", "other.md"))
    figures.write_text(f'{{"version": "0", {ABOUT}}}')
    documents[0].write_text("no table\r\n")
    documents[1].write_text("<!-- study: field -->\n<!-- end -->\n")
    before = [document.stat().st_mtime_ns for document in documents]
    monkeypatch.setattr(sys, "argv", ["study.py", "--from", str(figures), "--write", *map(str, documents)])
    assert exit_code(study.main) == 2
    assert "the study has no figures of 'field code-writer'" in capsys.readouterr().err
    assert [document.stat().st_mtime_ns for document in documents] == before


@pytest.mark.parametrize("arguments", [["--coding", "/nowhere/c.jsonl"], ["--write", "/nowhere/study.md"]])
def test_a_study_of_files_that_are_not_there_does_not_begin(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "--json", str(tmp_path / "study.json"), *arguments])
    monkeypatch.setattr(study, "played", lambda coding, known: pytest.fail("it began"))
    assert exit_code(study.main) == 2
    assert arguments[1] in capsys.readouterr().err


def test_who_reads_no_further_sees_no_traceback():
    """`python benchmarks/measured.py | head -1`"""
    command = [sys.executable, "-c", UNREAD, str(Path(measured.__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


UNREAD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from exits import exit_code

reading, writing = os.pipe()
os.dup2(writing, 1)
os.close(reading)
sys.exit(exit_code(lambda: print("a line")))
"""
