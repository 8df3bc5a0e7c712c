"""Decisions: which plans are one, how they are kept, and where two runs part."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.sim.gate.decisions import (
    KEPT_CHARACTERS,
    Decision,
    DecisionDifference,
    Decisions,
    StoredDecisions,
    first_difference,
    packed,
    read_text,
    unpacked,
    write_bytes,
)
from tokencake.traces.errors import TokencakeError
from tokencake.traces.events import FirstToken, Planned

A = {"admit": ["a/x", "b/y"], "skip": True}
B = {"admit": ["b/y", "a/x"], "skip": True}


def made(*plans: Mapping[str, object]) -> Decisions:
    decisions = Decisions()
    for at_s, plan in enumerate(plans):
        decisions.add(Planned(float(at_s), plan))
    return decisions


def kept(*plans: Mapping[str, object]) -> StoredDecisions:
    decisions = made(*plans).made
    return StoredDecisions(len(decisions), tuple(decisions))


def test_the_same_plan_again_is_no_new_decision_but_moving_blocks_again_is() -> None:
    move = {"offload": [["a", 3, True]]}
    assert made(A, A, B, B, A).made == [Decision(0.0, A), Decision(2.0, B), Decision(4.0, A)]
    assert made(move, move).made == [Decision(0.0, move), Decision(1.0, move)]


def test_facts_are_no_decisions() -> None:
    decisions = made(A)
    decisions.add(FirstToken(1.0, "a/x"))
    assert decisions.made == [Decision(0.0, A)]


def test_equal_plans_at_other_times_have_one_digest() -> None:
    late = Decisions()
    late.add(Planned(99.0, A))
    assert late.digest.hexdigest() == made(A, A).digest.hexdigest() != made(B).digest.hexdigest()


def test_two_runs_part_at_the_first_plan_that_differs_and_at_the_first_call_in_it() -> None:
    other = {"admit": ["a/x", "c/z"]}
    assert first_difference(kept(A, B), made(A, other).made) == DecisionDifference(
        2, 1.0, 1.0, "a/x", {"admit": ["b/y", "a/x"], "skip": True}, {"admit": ["a/x", "c/z"], "skip": None}
    )
    assert first_difference(kept(A, B), made(A, B).made) is None


def test_moves_part_at_their_agent_whatever_of_it_differs() -> None:
    old, new = {"offload": [["a", 3, True], ["b", 5, True]]}, {"offload": [["a", 3, True], ["b", 4, True]]}
    found = first_difference(kept(old), made(new).made)
    assert found is not None
    assert found.about == "b"
    pinned = first_difference(kept({"pin": {"a": 1.0}}), made({"pin": {"a": 2.5}}).made)
    assert pinned is not None
    assert (pinned.about, pinned.old, pinned.new) == ("a", {"pin": {"a": 1.0}}, {"pin": {"a": 2.5}})


def test_a_run_that_decides_less_or_more_parts_where_the_shorter_one_ends() -> None:
    assert first_difference(kept(A, B), made(A).made) == DecisionDifference(2, 1.0, 1.0, "b/y", B, None)
    assert first_difference(kept(A), made(A, B).made) == DecisionDifference(2, 1.0, None, "b/y", None, B)
    assert (
        first_difference(StoredDecisions(2, kept(A).decisions), made(A, B).made) is None
    )  # the second one was not kept


PLANS = st.dictionaries(
    st.sampled_from(["admit", "skip", "offload", "pin", "wake_at_s"]),
    st.one_of(
        st.booleans(),
        st.floats(0, 9),
        st.lists(st.text(max_size=3)),
        st.dictionaries(st.text(max_size=2), st.integers(-(2**62), 2**62)),
    ),
)


@given(st.lists(PLANS))
def test_what_is_kept_is_read_back(plans: list[dict[str, object]]) -> None:
    decisions = [Decision(float(at_s), plan) for at_s, plan in enumerate(plans)]
    assert unpacked(packed(decisions), "x") == StoredDecisions(len(decisions), tuple(decisions))


def test_of_a_long_run_the_beginning_is_kept() -> None:
    long = [Decision(float(at_s), {"admit": [f"{at_s}/{'x' * 990}"]}) for at_s in range(1000)]
    text = packed(long)
    found = unpacked(text, "x")
    assert found.total == 1000
    assert 390 <= len(found.decisions) < 400  # a thousand characters and a few each
    assert found.decisions == tuple(long[: len(found.decisions)])
    assert len(text) <= KEPT_CHARACTERS + 100


def test_equal_decisions_make_equal_files(tmp_path: Path) -> None:
    text = packed(made(A, B).made)
    (tmp_path / "d.gz").write_bytes(write_bytes(text))
    assert read_text(tmp_path / "d.gz") == text
    assert write_bytes(text) == write_bytes(text)
    assert read_text(tmp_path / "none.gz") is None


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", '{"schema": "tokencake.decisions/1", "kept": 1}\n'])
def test_what_was_never_written_so_is_refused(text: str) -> None:
    with pytest.raises(TokencakeError, match=r"^f: expected decisions as .* writes them: header"):
        unpacked(text, "f")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7", "decisions[0]: expected [seconds, fields], got 7"),
        ("[1]", "decisions[0]: expected [seconds, fields], got a list"),
        ("[NaN, {}]", "expected JSON, which has no NaN"),
        ("[-1, {}]", "decisions[0]: expected 0 or a number from 1e-30 to 9.22337e+18, got -1"),
        ('["soon", {}]', 'decisions[0]: expected 0 or a number from 1e-30 to 9.22337e+18, got "soon"'),
        ("[0, []]", "decisions[0]: expected an object, got a list"),
        ('[0, {"offload": [[]]}]', "decisions[0].offload[0]: expected text of at most 1000 characters, got a list"),
        ('[0, {"admit": [3]}]', "decisions[0].admit[0]: expected text of at most 1000 characters, got 3"),
        ("[0, " + "[" * 9999, "expected at most a few levels of lists and objects, got them nested too deeply"),
    ],
)
def test_a_line_that_is_no_decision_is_named(line: str, said: str) -> None:
    with pytest.raises(TokencakeError) as refused:
        unpacked('{"schema": "tokencake.decisions/1", "decisions": 1, "kept": 1}\n' + line + "\n", "f")
    assert str(refused.value) == f"f: expected decisions as `tokencake check --update` writes them: {said}"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "d.gz"
    file.write_bytes(write_bytes(packed(made(A, B).made))[:-9])
    with pytest.raises(TokencakeError, match=r"d.gz: expected a whole gzip file, got one that is cut off"):
        read_text(file)
    file.write_bytes(gzip.compress(bytes(5_000_000)))
    with pytest.raises(TokencakeError, match="expected at most 4000000 bytes"):
        read_text(file)
