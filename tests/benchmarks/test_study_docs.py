"""The tables of the study stand in its document as its script writes them from the figures that were played."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import study

from tokencake.sim.experiments.compare import ComparisonRequest, Progress
from tokencake.sim.experiments.compare import run as play
from tokencake.sim.experiments.comparison_report import ComparisonRuns
from tokencake.sim.experiments.run import Outcome, RunSpec
from tokencake.sim.machine.files import load_machine
from tokencake.traces.format.writer import write_trace
from tokencake.traces.generate.workloads import code_writer
from tokencake.traces.variants.vary import parse_variation

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "2026-11-28-study.json"


TEXT = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


def test_no_figure_was_copied_by_hand() -> None:
    assert study.filled(TEXT, json.loads(FIGURES.read_text(encoding="utf-8"))) == TEXT


def test_every_table_is_in_the_document() -> None:
    assert set(re.findall(r"<!-- study: (.+?) -->", TEXT)) == set(study.TABLES)


def test_a_run_that_two_groups_compare_is_played_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []

    def watched(request: ComparisonRequest, runs: ComparisonRuns, progress: Progress) -> None:
        there = runs.outcomes
        play(request, runs, progress)
        played.append(runs.outcomes - there)

    monkeypatch.setattr(study, "run", watched)
    write_trace(tmp_path / "trace.jsonl", code_writer(1))
    spec = RunSpec(tmp_path / "trace.jsonl", load_machine("a800-qwen2.5-14b"), "", parse_variation("arrivals"))
    workload, known = study.Workload("one", spec, 2), dict[RunSpec, Outcome]()
    field = study.compared(workload, ("vllm", "native-offload"), known)
    study.compared(workload, ("vllm", "native-offload", "continuum"), known)
    assert study.compared(workload, ("vllm", "native-offload"), known) == field
    assert played == [4, 2, 0]
