"""The tables of speed stand in README and docs as their script writes them from the figures that were measured."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest
import speed
import speed_run
import speed_tables
from documented import RESULTS, ROOT, result

from tokencake.sim.machine.files import load_machine

NEWEST = max(RESULTS.glob("*-speed.json"))
ONE_PROCESS = {"calls": 3, "iterations": 9, "compiled": False, "cpu_s": 0.5, "wall_s": 0.5, "peak_mb": 20.0}
DOCUMENTS = ("README.md", "docs/speed.md")


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_figure_was_copied_by_hand(document):
    assert speed_tables.filled(text(document), result(NEWEST.name)) == text(document)


def test_every_table_is_in_a_document():
    named = {name for document in DOCUMENTS for name in re.findall(r"<!-- speed: (.+?) -->", text(document))}
    assert named == set(speed_tables.TABLES)


def test_what_is_measured_has_words():
    assert list(speed.SHAPES) == list(speed_tables.SHAPES)


def run(build: str, cpu_s: list[float], calls: int = 1_000, shape: str = "dag") -> dict[str, object]:
    return {
        "shape": shape,
        "policy": "vllm",
        "build": build,
        "compiled": build == "installed",
        "calls": calls,
        "cpu_s": cpu_s,
        "wall_s": [1.1 * one for one in cpu_s],
        "peak_mb": [20.0],
    }


def test_a_speed_is_the_median_and_its_ratio_that_of_the_same_run():
    """Of 100,000 calls in 4 s against 1,000 calls in 0.1 s: 25,000 a second, 2.5 times as many."""
    runs = [run("installed", [9.0, 4.0, 3.9], 100_000), run("against", [0.1, 0.1, 0.05])]
    head, _, row = speed_tables.TABLES["calls"]({"against": "1234567", "runs": runs})
    assert head.startswith("| calls a second (times those of 1234567) | `vllm` |")
    assert row == "| 24 code writers at 1.0/s, saturated | 25,000 (×2.5) |  |  |"


def test_what_an_earlier_commit_was_not_played_with_has_no_ratio():
    *_, row = speed_tables.TABLES["calls"]({"against": None, "runs": [run("installed", [0.1])]})
    assert "| 10,000 |" in row


def test_several_groups_stand_beside_one():
    """Ten times as long a call with seven groups; an earlier commit that knows groups is there, too."""
    runs = [run("installed", [cpu_s], shape=shape) for shape, cpu_s in (("groups-1", 0.1), ("groups-7", 1.0))]
    *_, row = speed_tables.TABLES["calls"]({"against": None, "runs": runs})
    assert row == "| 24 code writers, 7 groups | 1,000, 0.10 of one group's |  |  |"
    runs.append(run("against", [2.0], shape="groups-7"))
    *_, row = speed_tables.TABLES["calls"]({"against": "1234567", "runs": runs})
    assert row == "| 24 code writers, 7 groups | 1,000 (×2.0), 0.10 of one group's |  |  |"


@pytest.mark.parametrize(("shape", "groups"), [("groups-1", 1), ("groups-2", 2), ("groups-7", 7)])
def test_the_machines_have_as_many_groups_as_is_said(shape, groups):
    asked = speed.SHAPES[shape].asked
    assert len(load_machine(asked["machine"], asked["settings"]).kv_groups) == groups
    assert (asked["machine"] in speed_run.NEEDS_GROUPS) == (groups > 1)


def test_of_sources_without_groups_it_is_said_what_they_lack(monkeypatch):
    found = speed_run.found
    monkeypatch.setattr(speed_run, "found", lambda name: None if name == "KvGroup" else found(name))
    asked = speed.SHAPES["groups-7"].asked
    assert speed_run.play(policy="vllm", **asked) == {"lacks": "KV cache groups, which h200-gemma-3-27b has"}


def test_a_shape_that_a_commit_lacks_is_left_out(monkeypatch, capsys):
    """The other builds have their row."""
    monkeypatch.setattr(
        speed, "play", lambda asked, build: {"lacks": "groups"} if build.name == "against" else ONE_PROCESS
    )
    arguments = Namespace(shape=["groups-2"], policy=["vllm"], times=2, traces=Path("nowhere"))
    builds = [speed.Build("installed", {}), speed.Build("against", {})]
    assert [row["build"] for row in speed._runs(arguments, builds)] == ["installed"]
    assert capsys.readouterr().err == "groups-2: against: left out, its sources lack groups\n"


def test_one_process_measures_what_it_is_asked_for():
    found = speed.play({"shape": "chat", "policy": "vllm", "calls": 50}, speed.Build("pure", {"TOKENCAKE_PURE": "1"}))
    assert found["calls"] == 50
    assert not found["compiled"]
    assert 0 < found["cpu_s"] < 10
    assert found["peak_mb"] > 10
