"""A benchmark that is called wrongly ends as `tokencake` does: in one line, before it works for hours, with a code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fuzz
import measured
import mutations
import published
import pytest
import stability
import study
from exits import exit_code

from tokencake.traces.errors import RunError, TokencakeError, TraceError

WITH_FIGURES = (fuzz, measured, mutations, published, stability, study)


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
