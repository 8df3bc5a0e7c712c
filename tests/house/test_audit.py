"""CI's audit of what it installed: a vulnerability is never hidden by an index that knows of none."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / ".ci" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", PATH)
assert spec is not None
assert spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

FOUND = {"click": "8.1", "numpy": "2.0"}


class Index:
    """A service that knows of these vulnerabilities, by requirement."""

    def __init__(self, known: Mapping[str, str], unknown: Sequence[str] = (), breaks_on: str = "") -> None:
        self.known = known
        self.unknown = unknown
        self.breaks_on = breaks_on

    def __call__(self, requirements: Sequence[str]) -> dict[str, Any] | None:
        if self.breaks_on in requirements:
            return None
        return {"dependencies": [self._entry(*line.split("==")) for line in requirements]}

    def _entry(self, name: str, version: str) -> dict[str, Any]:
        if name in self.unknown:
            return {"name": name, "skip_reason": "not found"}
        found = self.known.get(f"{name}=={version}")
        return {"name": name, "version": version, "vulns": [{"id": found}] if found else []}


KNOWS = {"pyyaml==5.3": "PYSEC-1"}


def test_an_index_that_knows_and_finds_nothing_is_green(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge(Index(KNOWS), FOUND, "pypi") == 0
    assert "2 packages asked about at pypi, 0 with a vulnerability" in capsys.readouterr().out


def test_a_vulnerability_is_red_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge(Index({**KNOWS, "click==8.1": "PYSEC-7"}), FOUND, "pypi") == 1
    assert "audit: click 8.1: PYSEC-7" in capsys.readouterr().out


def test_an_index_that_knows_of_nothing_is_not_believed() -> None:
    assert audit.judge(Index({}), FOUND, "pypi") is None
    assert audit.judge(Index(KNOWS, unknown=["pyyaml", "urllib3", *FOUND]), FOUND, "pypi") is None
    assert audit.judge(lambda requirements: None, FOUND, "pypi") is None


def test_an_audit_that_fails_though_the_index_answers_is_an_error() -> None:
    assert audit.judge(Index(KNOWS, breaks_on="click==8.1"), FOUND, "pypi") == 2


def test_what_could_not_be_asked_about_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge(Index(KNOWS, unknown=["numpy"]), FOUND, "pypi") == 0
    assert "not known to pypi: numpy" in capsys.readouterr().out
