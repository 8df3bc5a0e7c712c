"""Who wins, loses, or cannot be told apart; and how often that is wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokencake.traces.results.verdict import interval_of_mean, judge_paired, judge_unpaired, share_of_gain

ASKED: dict[str, Any] = {"confidence": 0.95, "margin": 0.02}
LATENCIES = st.floats(0.01, 1000.0)
PAIRS = st.lists(st.tuples(LATENCIES, LATENCIES), min_size=2, max_size=12)


def paired(
    rng: np.random.Generator, repeats: int, ratio: float, noise: float = 0.05
) -> tuple[list[float], list[float]]:
    """Latencies under two policies in the same repeats, which differ by a factor of three among themselves."""
    days = rng.uniform(10.0, 30.0, repeats)
    return list(days * ratio * rng.lognormal(0, noise, repeats)), list(days * rng.lognormal(0, noise, repeats))


# -- by hand


def test_repeats_that_differ_widely_decide_when_their_pairs_do_not() -> None:
    """Between 10 and 40 s by the day, but always a tenth less: nothing is left to chance."""
    days = [10.0, 40.0, 20.0, 15.0, 30.0]
    judged = judge_paired([0.9 * day for day in days], days, **ASKED)
    assert judged.ratio == pytest.approx(0.9)
    assert judged.interval == pytest.approx((0.9, 0.9))
    assert judged.verdict == "wins"
    assert judge_unpaired([0.9 * day for day in days], days, **ASKED).verdict == "undecided"


def test_few_repeats_have_students_interval() -> None:
    """Means 100 and 110; scaled values differ by −0.1, 0, 0.1: standard error 0.1/√3; t(2) at 97.5 % is 4.303."""
    judged = judge_paired([90.0, 100.0, 110.0], [110.0, 110.0, 110.0], **ASKED)
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert judged.ratio == pytest.approx(100 / 110)
    assert judged.interval[0] == pytest.approx(100 / 110 * math.exp(-reach), rel=1e-5)
    assert judged.interval[1] == pytest.approx(100 / 110 * math.exp(reach), rel=1e-5)
    assert judged.verdict == "undecided"


def test_one_repeat_decides_nothing() -> None:
    assert judge_paired([1.0], [2.0], **ASKED) == (0.5, (0.5, 0.5), "undecided")
    assert judge_unpaired([1.0], [2.0], **ASKED) == (0.5, (0.5, 0.5), "undecided")
    assert interval_of_mean([3.0], 0.95) == (3.0, 3.0)
    assert share_of_gain([1.0], [2.0], [0.0], 0.95) is None


def test_repeats_without_any_difference_are_as_sure_as_can_be() -> None:
    assert judge_paired([2.0] * 5, [2.0] * 5, **ASKED) == (1.0, (1.0, 1.0), "undecided")
    assert judge_paired([1.9] * 20, [2.0] * 20, **ASKED).verdict == "wins"
    assert judge_paired([1.97] * 20, [2.0] * 20, **ASKED).verdict == "undecided", "within the margin of 2 %"
    assert judge_paired([2.1] * 20, [2.0] * 20, **ASKED).verdict == "loses"
    assert interval_of_mean([2.0] * 5, 0.95) == pytest.approx((2.0, 2.0))


def test_nothing_at_all_on_a_side_needs_no_logarithm() -> None:
    assert judge_paired([0.0] * 3, [0.0] * 3, **ASKED) == (1.0, (1.0, 1.0), "undecided")
    assert judge_paired([0.0] * 3, [1.0, 2.0, 3.0], **ASKED) == (0.0, (0.0, 0.0), "wins")
    assert judge_paired([1.0, 2.0, 3.0], [0.0] * 3, **ASKED) == (math.inf, (math.inf, math.inf), "loses")
    assert interval_of_mean([0.0, 0.0], 0.95) == (0.0, 0.0)


def test_rare_events_give_a_wide_interval_and_no_error() -> None:
    """One preemption in 20 repeats: the interval of its mean reaches from next to nothing far up."""
    low, high = interval_of_mean([0.0] * 19 + [1.0], 0.95)
    assert 0 <= low < 0.05 < high
    judged = judge_paired([0.0] * 19 + [1.0], [1.0] + [0.0] * 19, **ASKED)
    assert judged.verdict == "undecided"
    assert 0 <= judged.interval[0] < 1 < judged.interval[1] < math.inf


def test_where_more_is_better_more_wins() -> None:
    more = judge_paired([0.9] * 5, [0.5] * 5, **ASKED, higher_is_better=True)
    less = judge_paired([0.5] * 5, [0.9] * 5, **ASKED, higher_is_better=True)
    assert (more.verdict, less.verdict) == ("wins", "loses")


def test_more_comparisons_make_each_interval_wider() -> None:
    values, base = paired(np.random.default_rng(3), 20, 0.9)
    one = judge_paired(values, base, **ASKED).interval
    nine = judge_paired(values, base, **ASKED, comparisons=9).interval
    assert nine[0] < one[0] < one[1] < nine[1]


def test_the_noise_floor_keeps_lucky_runs_from_deciding() -> None:
    """Two runs each, by luck a thousandth apart, 10 % from the others. Runs are known to differ by 5 %."""
    values, base = [90.0, 90.09], [100.0, 100.1]
    assert judge_unpaired(values, base, **ASKED).verdict == "wins"
    judged = judge_unpaired(values, base, **ASKED, floor=0.05)
    assert judged.verdict == "undecided"
    assert judged.interval[0] < 0.9 < judged.interval[1]


def test_the_share_of_a_gain() -> None:
    """From 100 to 60 is possible; 70 has come three quarters of the way, 120 has gone half of it backwards."""
    first, bound = [100.0, 110.0, 90.0], [60.0, 70.0, 50.0]
    share = share_of_gain([70.0, 80.0, 60.0], first, bound, 0.95)
    assert share is not None
    assert share.share == pytest.approx(0.75)
    assert share.interval == pytest.approx((0.75, 0.75))
    backwards = share_of_gain([120.0, 130.0, 110.0], first, bound, 0.95)
    assert backwards is not None
    assert backwards.share == pytest.approx(-0.5)


def test_where_the_bound_gains_nothing_for_sure_there_is_no_share() -> None:
    assert share_of_gain([1.0, 1.0], [1.0, 1.0], [1.0, 1.0], 0.95) is None
    assert share_of_gain([100.0, 90.0, 95.0], [100.0, 90.0, 95.0], [99.0, 93.0, 94.0], 0.95) is None


# -- whatever the data


@given(PAIRS, st.integers(1, 20))
def test_the_interval_contains_the_ratio_and_the_verdict_follows_from_it(
    pairs: list[tuple[float, float]], comparisons: int
) -> None:
    values, base = zip(*pairs, strict=True)
    for judged in (
        judge_paired(values, base, **ASKED, comparisons=comparisons),
        judge_unpaired(values, base, **ASKED, comparisons=comparisons, floor=0.01),
    ):
        low, high = judged.interval
        assert 0 <= low <= judged.ratio * (1 + 1e-9)
        assert judged.ratio <= high * (1 + 1e-9)
        assert high < math.inf
        expected = "wins" if high < 0.98 else "loses" if low > 1.02 else "undecided"
        assert judged.verdict == expected


@given(PAIRS)
def test_who_wins_against_another_makes_the_other_lose(pairs: list[tuple[float, float]]) -> None:
    values, base = zip(*pairs, strict=True)
    one = judge_paired(values, base, confidence=0.95, margin=0.0)
    other = judge_paired(base, values, confidence=0.95, margin=0.0)
    opposite = {"wins": "loses", "loses": "wins", "undecided": "undecided"}
    assert other.ratio == pytest.approx(1 / one.ratio)
    assert other.verdict == opposite[one.verdict]


@given(PAIRS, st.floats(0.1, 10.0))
def test_the_unit_of_time_does_not_matter(pairs: list[tuple[float, float]], unit: float) -> None:
    values, base = zip(*pairs, strict=True)
    judged = judge_paired(values, base, **ASKED)
    scaled = judge_paired([unit * value for value in values], [unit * value for value in base], **ASKED)
    assert scaled.ratio == pytest.approx(judged.ratio)
    assert scaled.interval == pytest.approx(judged.interval, rel=1e-6)


@settings(max_examples=20)
@given(PAIRS)
def test_the_same_is_said_again(pairs: list[tuple[float, float]]) -> None:
    values, base = zip(*pairs, strict=True)
    assert judge_paired(values, base, **ASKED) == judge_paired(list(values), list(base), **ASKED)


# -- how often it is wrong


def missed(repeats: int, confidence: float, studies: int, noise: float) -> float:
    """How often the interval does not contain the true ratio."""
    rng = np.random.default_rng(11)
    misses = 0
    for _ in range(studies):
        values, base = paired(rng, repeats, 0.8, noise)
        low, high = judge_paired(values, base, confidence=confidence, margin=0.0).interval
        misses += not low <= 0.8 <= high
    return misses / studies


@pytest.mark.parametrize("repeats", [3, 5, 8, 20])
def test_an_interval_of_95_percent_misses_the_truth_about_once_in_20(repeats: int) -> None:
    assert 0.015 <= missed(repeats, 0.95, 300, noise=0.1) <= 0.075


def test_percentile_intervals_of_few_repeats_miss_it_far_more_often() -> None:
    """Why they are not used."""
    rng = np.random.default_rng(11)
    misses = 0
    for _ in range(100):
        values, base = paired(rng, 5, 0.8, 0.1)
        found = stats.bootstrap(
            (values, base), _ratio, paired=True, vectorized=True, method="percentile", n_resamples=2000, rng=rng
        ).confidence_interval
        misses += not found.low <= 0.8 <= found.high
    assert misses > 12


def test_with_many_repeats_it_is_the_interval_that_scipy_finds() -> None:
    rng = np.random.default_rng(2)
    values, base = paired(rng, 200, 0.9)
    found = stats.bootstrap((values, base), _ratio, paired=True, vectorized=True, rng=rng).confidence_interval
    low, high = judge_paired(values, base, **ASKED).interval
    width = high - low
    assert low == pytest.approx(found.low, abs=0.1 * width)
    assert high == pytest.approx(found.high, abs=0.1 * width)


def _ratio(values: np.ndarray, base: np.ndarray, axis: int = -1) -> np.ndarray:
    ratio: np.ndarray = np.mean(values, axis=axis) / np.mean(base, axis=axis)
    return ratio


def test_of_ten_equal_policies_hardly_ever_one_is_called_better_or_worse() -> None:
    """200 comparisons of nine policies with a first one that is just as good: some verdict in at most 5 % of them."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(200):
        days = rng.uniform(10.0, 30.0, 20)
        policies = [list(days * rng.lognormal(0, 0.1, 20)) for _ in range(10)]
        verdicts = {
            judge_paired(one, policies[0], confidence=0.95, margin=0.0, comparisons=9).verdict for one in policies[1:]
        }
        wrong += verdicts != {"undecided"}
    assert wrong / 200 <= 0.08  # 5 % and two standard errors of so many comparisons


def test_a_tenth_is_found_in_20_repeats_that_differ_by_a_25th() -> None:
    rng = np.random.default_rng(6)
    verdicts = [
        judge_paired(*paired(rng, 20, 0.9, noise=0.04), confidence=0.95, margin=0.02, comparisons=9).verdict
        for _ in range(100)
    ]
    assert Counter(verdicts)["wins"] >= 95
    assert "loses" not in verdicts


def test_verdicts_do_not_hang_on_the_seed_of_the_resampling() -> None:
    rng = np.random.default_rng(7)
    differ = 0
    for ratio in np.linspace(0.85, 1.15, 40):
        values, base = paired(rng, 20, float(ratio))
        differ += len({_verdict(values, base, seed) for seed in range(3)}) > 1
    assert differ <= 1


def _verdict(values: Sequence[float], base: Sequence[float], seed: int) -> str:
    return judge_paired(values, base, **ASKED, comparisons=9, seed=seed).verdict
