"""The tables of the study stand in its document as its script writes them from the figures that were played."""

from __future__ import annotations

import json
import re
from pathlib import Path

import study

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "2026-11-28-study.json"


TEXT = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


def test_no_figure_was_copied_by_hand() -> None:
    assert study.filled(TEXT, json.loads(FIGURES.read_text(encoding="utf-8"))) == TEXT


def test_every_table_is_in_the_document() -> None:
    assert set(re.findall(r"<!-- study: (.+?) -->", TEXT)) == set(study.TABLES)
