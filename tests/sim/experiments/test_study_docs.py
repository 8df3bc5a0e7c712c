"""The tables of the study stand in the documents as its script writes them from the figures that were played."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import study

ROOT = Path(__file__).parents[3]
FIGURES = ROOT / "benchmarks" / "results" / "2026-11-28-study.json"


@pytest.mark.parametrize("document", ["README.md", "docs/study.md"])
def test_no_figure_was_copied_by_hand(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- study: ", text)) >= 2
    assert study.filled(text, json.loads(FIGURES.read_text(encoding="utf-8"))) == text


def test_every_table_is_in_a_document() -> None:
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- study: (.+?) -->", text)) == set(study.TABLES)
