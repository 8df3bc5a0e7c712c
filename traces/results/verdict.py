"""Who wins, and how sure that is: what the intervals of means and of their ratios allow to say, see `intervals.py`.

What the intervals are made with takes a while to load, and is loaded when the first is asked for: not before the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from .intervals import Interval, Share

Word: TypeAlias = Literal["wins", "loses", "undecided"]


class MeanComparison(NamedTuple):
    """How a mean compares with another. The interval is a point where there is one repeat, or none differs."""

    ratio: float
    interval: Interval
    verdict: Word


def interval_of_mean(values: Sequence[float], confidence: float, seed: int = 0) -> Interval:
    """Where the mean lies that infinitely many repeats would have. `values` are not negative, one for each repeat."""
    from .intervals import of_mean

    return of_mean(values, confidence, seed)


def judge_paired(
    values: Sequence[float],
    base: Sequence[float],
    *,
    confidence: float,
    margin: float,
    comparisons: int = 1,
    higher_is_better: bool = False,
    seed: int = 0,
) -> MeanComparison:
    """Compares means of the same repeats, in the same order: what varies for both alike takes no part.

    `wins` if the whole interval of mean(values) / mean(base) is more than `margin` on the good side of 1, `loses` if it
    is so on the bad side, else `undecided`: which says that too little is known, or that they are as good as equal.
    One repeat leaves everything undecided. Values are not negative.
    """
    from .intervals import of_paired_ratio

    found = of_paired_ratio(values, base, confidence, comparisons, seed)
    return _judged(*found, len(values), margin, higher_is_better)


def judge_unpaired(
    values: Sequence[float],
    base: Sequence[float],
    *,
    confidence: float,
    margin: float,
    comparisons: int = 1,
    floor: float = 0.0,
    higher_is_better: bool = False,
    seed: int = 0,
) -> MeanComparison:
    """Compares means of runs that have nothing to do with each other, as those of a real engine.

    `floor` is the noise floor: the relative standard deviation that a run has at least. Two or three runs that lie
    closer together do so by luck. Otherwise as `judge_paired`.
    """
    from .intervals import of_unpaired_ratio

    found = of_unpaired_ratio(values, base, floor, confidence, comparisons, seed)
    return _judged(*found, min(len(values), len(base)), margin, higher_is_better)


def share_of_gain(
    values: Sequence[float], base: Sequence[float], bound: Sequence[float], confidence: float, seed: int = 0
) -> Share | None:
    """How much of the way from the mean of `base` to that of `bound` the mean of `values` has come; paired.

    None if it is not sure that there is a way: if the interval of the whole gain contains 0, or there is one repeat.
    """
    from .intervals import of_gained_share

    return of_gained_share(values, base, bound, confidence, seed)


def noise_floor(groups: Sequence[Sequence[float]]) -> float:
    """The relative standard deviation of runs of the same policy, pooled over all policies; 0 if none ran twice."""
    from .intervals import pooled_deviation

    return pooled_deviation(groups)


def _judged(ratio: float, interval: Interval, repeats: int, margin: float, higher_is_better: bool) -> MeanComparison:
    if repeats < 2:
        return MeanComparison(ratio, (ratio, ratio), "undecided")
    low, high = interval
    below, above = high < 1 - margin, low > 1 + margin
    if not (below or above):
        return MeanComparison(ratio, interval, "undecided")
    return MeanComparison(ratio, interval, "wins" if above == higher_is_better else "loses")
