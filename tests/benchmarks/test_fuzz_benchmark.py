"""The benchmark that fuzzes the readers counts what it says it counts, whatever becomes of its workers."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fuzz
import pytest

from tokencake.traces.errors import TraceError

SEED = 100


class Reader(NamedTuple):
    read: Callable[[bytes, Path], object]


def for_number(number: int, act: Callable[[], object]) -> Reader:
    """A reader for which one of its inputs is special."""
    return Reader(lambda data, folder: act() if data == b"%d" % (SEED + number) else None)


def refuse(message: str) -> object:
    raise TraceError(message)


def spin() -> object:
    while True:
        pass


def swell() -> object:
    return bytearray(10**10)


READERS = {
    "takes": for_number(0, lambda: None),
    "refuses": for_number(1, lambda: refuse("t.jsonl:1: no")),
    "says two lines": for_number(2, lambda: refuse("t.jsonl:1: no\nno")),
    "fails": for_number(3, lambda: 1 // 0),
    "leaves": for_number(4, lambda: sys.exit(0)),
    "dies": for_number(5, lambda: os._exit(3)),
    "hangs": for_number(6, spin),
    "swells": for_number(7, swell),
}


def test_whatever_a_reader_does_is_counted_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuzz, "READERS", READERS)
    monkeypatch.setattr(fuzz, "mutants", lambda name, seeds: [b"%d" % seed for seed in seeds])
    asked = fuzz.Asked(
        tuple(READERS), inputs=120, seed=SEED, jobs=2, limit_s=0.3, limit_mb=4_000, failures=tmp_path / "failures"
    )
    context = multiprocessing.get_context("fork")
    board = fuzz.Board(context, asked)
    fuzz.play(asked, board, context, tmp_path)
    rows = {row.reader: row for row in board.rows()}
    assert all(row.inputs == 120 for row in rows.values())

    def counts(name: str) -> tuple[int, ...]:
        row = rows[name]
        return row.refused, row.accepted, row.tracebacks, row.hangs, row.deaths

    assert {name: counts(name) for name in READERS} == {
        "takes": (0, 120, 0, 0, 0),
        "refuses": (1, 119, 0, 0, 0),
        "says two lines": (0, 119, 1, 0, 0),
        "fails": (0, 119, 1, 0, 0),
        "leaves": (0, 119, 1, 0, 0),
        "dies": (0, 119, 0, 0, 1),
        "hangs": (0, 119, 0, 1, 0),
        "swells": (0, 119, 1, 0, 0),
    }
    kept = sorted(path.name for path in (tmp_path / "failures").glob("*.input"))
    assert kept == ["dies-105.input", "fails-103.input", "hangs-106.input", "leaves-104.input",
                    "says-two-lines-102.input", "swells-107.input"]  # fmt: skip
    assert "ZeroDivisionError" in (tmp_path / "failures" / "fails-103.txt").read_text()
    assert fuzz.table(board.rows()).splitlines()[-1].startswith("| all | 960 | 1 | 953 | 4 | 1 | 1 |")
