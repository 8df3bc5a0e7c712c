"""What the study says of other models stands in its document as its script writes it from what was played."""

from __future__ import annotations

import re

import study
import study_models
from documented import RESULTS, ROOT, result

from tokencake.sim.machine.files import load_machine

NEWEST = max(RESULTS.glob("*-study-models.json"))
TEXT = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


def test_no_figure_was_copied_by_hand() -> None:
    assert study_models.filled(TEXT, result(NEWEST.name)) == TEXT


def test_every_table_is_in_the_document() -> None:
    assert set(re.findall(r"<!-- study-models: (.+?) -->", TEXT)) == set(study_models.TABLES)


def test_a_block_is_as_scarce_on_every_machine() -> None:
    """As the figures were played: as many blocks on the GPU and on the host, of one group or of seven."""
    fields = result(NEWEST.name)["fields"]
    machines = {name: load_machine(name, fields[name]["set"]) for name in study_models.MACHINES}
    assert {(machine.gpu_blocks, machine.host_blocks) for machine in machines.values()} == {(55_281, 51_200)}
    assert [len(machine.kv_groups) for machine in machines.values()] == [1, 7, 1]
    assert [machine.experts > 0 for machine in machines.values()] == [False, False, True]
    assert all(fields[name]["set"] == study_models.settings(name) for name in machines)


def test_all_was_played_with_the_study_s_repeats_and_nothing_failed() -> None:
    for one in result(NEWEST.name)["fields"].values():
        assert (one["repeats"], one["failed"]) == (study_models.REPEATS, [])


def test_what_the_document_says_of_the_hybrid() -> None:
    """Who is best changes there, and the oracle, which knows gaps but not what groups cost, is no bound."""
    hybrid = result(NEWEST.name)["fields"]["h200-gemma-3-27b"]
    ours, oracle, other = (study.ratio(hybrid, policy) for policy in ("tokencake", "oracle", "infercept"))
    assert ours < other < 1
    assert ours < oracle
