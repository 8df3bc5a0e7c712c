"""The tables of the study stand in the documents as its script writes them from the figures that were played."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "benchmarks" / "results" / "2026-11-28-study.json"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["study"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", ["README.md", "docs/study.md"])
def test_no_figure_was_copied_by_hand(script: ModuleType, document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- study: ", text)) >= 2
    assert script.filled(text, json.loads(FIGURES.read_text(encoding="utf-8"))) == text


def test_every_table_is_in_a_document(script: ModuleType) -> None:
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- study: (.+?) -->", text)) == set(script.TABLES)
