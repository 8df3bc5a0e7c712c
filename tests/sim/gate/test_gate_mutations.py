"""The mutation trial: each bug is one, and the gate tells of it."""

from dataclasses import replace
from pathlib import Path

import mutations
import pytest

from tokencake.cli import run
from tokencake.policies.tokencake.published.partition import Partition
from tokencake.policies.tokencake.published.uploads import Uploads
from tokencake.policies.tokencake.seniority import Seniority
from tokencake.sim.gate.check import check_suite
from tokencake.sim.gate.suite.suite_file import load_suite


def test_there_are_ten_and_each_is_undone_when_it_is_left() -> None:
    assert len(mutations.MUTATIONS) == 10
    before = Partition.charge, Seniority._weight, Uploads._progress
    for mutation in mutations.MUTATIONS.values():
        with mutation.patch():
            pass
    assert (Partition.charge, Seniority._weight, Uploads._progress) == before


@pytest.mark.sources
@pytest.mark.parametrize("name", ["least-urgent-first", "never-forgets", "answers-forgotten"])
def test_a_bug_in_the_published_rules_is_caught_and_without_it_all_is_good(name: str, tmp_path: Path) -> None:
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
