"""When a metric regressed: exactly for one run, and if it is sure for several."""

import json
import random
from math import inf

import pytest

from tokencake.sim.gate.formats.report import finding_record
from tokencake.sim.gate.formats.words import interval
from tokencake.sim.gate.judge import Chance, judge
from tokencake.sim.gate.suite.suite import Gate

SURE = Chance(0.95)
LATENCY = Gate("app_latency_s.mean", False, relative=0.02)


@pytest.mark.parametrize(
    ("value", "word"),
    [(100.0, "good"), (102.0, "good"), (102.001, "regressed"), (98.0, "good"), (97.9, "improved")],
)
def test_one_run_is_judged_by_the_tolerance_alone(value: float, word: str) -> None:
    finding = judge(LATENCY, [value], [100.0], SURE)
    assert (finding.word, finding.interval) == (word, None)
    assert finding.change == pytest.approx(value / 100 - 1)


def test_where_more_is_better_less_is_worse() -> None:
    gate = Gate("effective_utilisation", True, relative=0.1)
    assert [judge(gate, [value], [0.5], SURE).word for value in (0.44, 0.45, 0.56)] == ["regressed", "good", "improved"]


def test_the_larger_of_both_tolerances_counts() -> None:
    gate = Gate("preemptions", False, relative=0.05, absolute=3)
    assert [judge(gate, [value], [0], SURE).word for value in (3, 4)] == ["good", "regressed"]
    assert [judge(gate, [value], [100], SURE).word for value in (105, 106)] == ["good", "regressed"]


def test_to_be_better_than_a_rival_is_good_and_no_improvement() -> None:
    gate = Gate("makespan_s", False, than="vllm")
    assert judge(gate, [50.0], [100.0], SURE).word == "good"
    assert judge(gate, [100.1], [100.0], SURE).word == "regressed"


def test_no_value_is_equal_to_none_and_to_nothing_else() -> None:
    assert judge(LATENCY, [None], [None], SURE)[1:] == (None, None, None, "good", None)
    lost = judge(LATENCY, [None], [1.0], SURE)
    assert (lost.word, lost.lacks, lost.base, lost.value, lost.change) == ("regressed", "value", 1.0, None, None)
    new = judge(LATENCY, [1.0], [None], SURE)
    assert (new.word, new.lacks, new.base, new.value) == ("regressed", "base", None, 1.0)


def test_a_rival_without_a_value_leaves_it_open() -> None:
    gate = Gate("ttft_s.mean", False, than="vllm")
    assert (found := judge(gate, [1.0], [None], SURE)).word == "uncertain"
    assert found.lacks == "base"
    assert judge(gate, [None], [1.0], SURE).word == "regressed"


def test_repeats_in_which_neither_has_a_value_hide_no_others() -> None:
    base = [None, 80.0, 120.0, 95.0, 101.0, 90.0]
    worse = [None if value is None else 1.5 * value + index / 10 for index, value in enumerate(base)]
    assert judge(LATENCY, base, base, SURE).word == "good"
    assert judge(LATENCY, worse, base, SURE).word == "regressed"
    assert judge(LATENCY, [None, 2.0], [None, 1.0], SURE).word == "uncertain"  # one pair of two is one sample


@pytest.mark.parametrize(
    ("values", "base", "lacks"),
    [
        ([1.0, 1.0], [1.0, None], "base"),
        ([None, 1.0], [1.0, 1.0], "value"),
        ([None, 1.0], [1.0, None], "both"),
    ],
)
def test_values_in_other_repeats_are_no_values_to_compare(
    values: list[float | None], base: list[float | None], lacks: str
) -> None:
    finding = judge(LATENCY, values, base, SURE)
    assert (finding.word, finding.lacks, finding.change) == ("regressed", lacks, None)


def test_repeats_that_are_as_they_were_are_good_without_a_doubt() -> None:
    values = [80.0, 120.0, 95.0, 101.0]
    finding = judge(Gate("makespan_s", False), values, values, SURE)
    assert (finding.word, finding.interval) == ("good", (1.0, 1.0))


def test_a_regression_that_every_repeat_shows_is_caught() -> None:
    base = [80.0, 120.0, 95.0, 101.0, 90.0]
    worse = [value * factor for value, factor in zip(base, (1.03, 1.035, 1.03, 1.025, 1.03), strict=True)]
    finding = judge(LATENCY, worse, base, Chance(0.95, comparisons=20))
    assert finding.word == "regressed"
    assert finding.interval is not None
    assert 1.01 < finding.interval[0] < 1.03 < finding.interval[1]


def test_a_mean_that_one_repeat_alone_made_worse_is_uncertain() -> None:
    base = [100.0] * 6
    assert judge(LATENCY, [100.0, 100.0, 99.0, 101.0, 100.0, 130.0], base, SURE).word == "uncertain"


def test_figures_of_other_days_hardly_ever_fail_and_never_without_need() -> None:
    """Runs that chance makes differ by 10 %, all of the same policy: with 20 gates at once 5 % of checks may fail."""
    rng = random.Random(0)
    draw = lambda: [rng.gauss(100, 10) for _ in range(10)]  # noqa: E731
    words = [judge(LATENCY, draw(), draw(), Chance(0.95, comparisons=20)).word for _ in range(200)]
    assert words.count("regressed") <= 1
    assert "uncertain" in words


def test_a_count_that_was_always_none_is_judged_by_the_tolerance() -> None:
    gate = Gate("preemptions", False, absolute=3)
    assert judge(gate, [1, 2, 0], [0, 0, 0], SURE).word == "good"
    assert judge(gate, [4, 5, 6], [0, 0, 0], SURE).word == "regressed"


def test_what_was_nothing_and_is_something_has_no_interval_that_json_can_hold() -> None:
    finding = judge(Gate("preemptions", False), [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], SURE)
    assert finding.interval == (inf, inf)
    record = finding_record(finding)
    assert record["interval"] == [None, None]
    assert interval(record) == ""
    assert json.dumps(record, allow_nan=False)
