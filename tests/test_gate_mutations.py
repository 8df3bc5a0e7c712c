"""The mutation trial: each bug is one, and the gate tells of it."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tokencake.cli import run
from tokencake.sim.gate.check import check_suite
from tokencake.sim.gate.suite_file import load_suite

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "mutations.py"


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_mutations", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_there_are_ten_and_each_is_undone_when_it_is_left(mutations: ModuleType) -> None:
    assert len(mutations.MUTATIONS) == 10
    before = mutations.Partition.charge, mutations.Seniority._weight, mutations.Uploads._progress
    for mutation in mutations.MUTATIONS.values():
        with mutation.patch():
            pass
    assert (mutations.Partition.charge, mutations.Seniority._weight, mutations.Uploads._progress) == before


@pytest.mark.parametrize("name", ["least-urgent-first", "never-forgets", "answers-forgotten"])
def test_a_bug_in_the_published_rules_is_caught_and_without_it_all_is_good(
    mutations: ModuleType, name: str, tmp_path: Path
) -> None:
    text = (
        '[defaults]\ntrace = "t.jsonl"\nmachine = "a800-qwen2.5-14b"\nsettings = { gpu_blocks = 1500 }\n'
        'policy = "tokencake:rules=published"\n[cases.one]\n'
    )
    (tmp_path / "tokencake.toml").write_text(text)
    assert run(["trace", "generate", "code-writer", "--apps", "12", "-o", str(tmp_path / "t.jsonl")]) == 0
    assert run(["check", "--update", "--suite", str(tmp_path / "tokencake.toml"), "--workers", "1"]) == 0
    suite = load_suite(tmp_path / "tokencake.toml")
    with mutations.MUTATIONS[name].patch():
        (case,) = check_suite(suite, workers=0).cases
    assert case.behaviour == "changed"
    assert case.state == "regressed"
    (case,) = check_suite(replace(suite), workers=0).cases
    assert case.state == "good"
