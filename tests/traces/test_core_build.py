"""Which core runs: the sources in this suite, and wherever they are not what was compiled."""

import json
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tokencake.sim.engine import engine
from tokencake.traces import core_build


@pytest.mark.sources
def test_the_suite_is_about_the_sources() -> None:
    assert core_build.running == core_build.SOURCES
    assert engine.__file__.endswith("engine.py")
    code = "from tokencake.policies import controller; print(controller.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("controller.py\n")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one source, and what it was compiled to."""
    (tmp_path / "a.py").write_text("A = 1\n")
    (tmp_path / (core_build.LIBRARY + EXTENSION_SUFFIXES[0])).touch()
    (tmp_path / core_build.DIGESTS).write_text(json.dumps({"a.py": core_build.digest(tmp_path / "a.py")}))
    monkeypatch.setattr(core_build, "ROOT", tmp_path)
    monkeypatch.setattr(core_build, "running", core_build.SOURCES)
    monkeypatch.delenv(core_build.PURE)
    return tmp_path


def test_what_is_compiled_is_used(checkout: Path) -> None:
    core_build.choose()
    assert core_build.running == core_build.COMPILED


@pytest.mark.parametrize("edit", ["A = 2\n", None])
def test_what_was_compiled_from_other_sources_is_not(checkout: Path, edit: str | None) -> None:
    (checkout / "a.py").unlink() if edit is None else (checkout / "a.py").write_text(edit)
    core_build.choose()
    assert core_build.running == core_build.STALE


def test_nor_where_the_sources_are_asked_for(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(core_build.PURE, "1")
    core_build.choose()
    assert core_build.running == core_build.SOURCES
