"""The installed vLLM has each attribute that `live.engine.vllm_surface` names, takes what methods are given, and has
what is imported from it. `python -m vllm_use.missing` prints what some other version lacks: see `.ci/next-vllm`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Protocol

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from vllm_use.imports import missing_imports
from vllm_use.missing import missing, walked
from vllm_use.walk import Walk

from tokencake.live.engine import vllm_surface as surface
from tokencake.live.engine.control.versions import check_vllm


@pytest.mark.slow
def test_vllm_has_what_is_leaned_on() -> None:
    assert missing(Walk(check_vllm())) == []


class Renamed(Protocol):
    there: int
    gone: int
    new: Annotated[int, surface.Varies(having="0.31", lacking="0.29")]
    old: Annotated[int, surface.Varies(having="0.29", lacking="0.31")]

    def takes(self, one: int, other: int, /) -> None: ...


class Vllm:
    there = new = 1

    def takes(self, one: int) -> None: ...


def test_what_vllm_renames_is_found_by_its_name() -> None:
    walk = Walk("0.32.0")
    walk.look(Renamed, Vllm())
    gone, takes = walk.missing
    assert gone == "Vllm.gone, of Renamed"
    assert takes.startswith("Vllm.takes, of Renamed: too many positional arguments")


@pytest.mark.parametrize(("version", "missing"), [("0.28.1", ["new", "old"]), ("0.30", []), ("0.32", [])])
def test_versions_differ(version: str, missing: list[str]) -> None:
    """`new` is there and `old` is not: as in 0.31 and later. Of 0.30 it is not known."""
    walk = Walk(version)
    walk.look(Renamed, Vllm())
    assert [f"Vllm.{name}, of Renamed" for name in missing] == [line for line in walk.missing if "gone" not in line][
        :-1
    ]


def test_what_is_no_more_in_a_module_is_found_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text("import vllm.gone\nfrom vllm.v1.request import Request, Renamed\nfrom vllm.v1 import request\n")
    moved, renamed = missing_imports([file])
    assert moved == "vllm.gone, of some.py: No module named 'vllm.gone'"
    assert renamed == "vllm.v1.request.Renamed, of some.py"


def test_what_breaks_off_is_a_line() -> None:
    assert list(walked("through_nothing", Walk("0.32"))) == [
        "through_nothing: AttributeError: module 'vllm_use.objects' has no attribute 'through_nothing'"
    ]
