"""How sure means and their ratios are, from few repeats: intervals, and the resamples that they come from.

They are studentised bootstrap intervals ("bootstrap-t": Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 12), of the logarithm of a mean or of a ratio of means. Percentile and BCa intervals are too short for
samples of this size: with 20 repeats and nine comparisons they missed the truth two to seven times as often as they
claimed, with 5 repeats fifteen times and more. An end is no nearer than Student's interval has it: resamples of few
repeats know little of the far tails that several comparisons ask for. Fewer than 8 repeats are not resampled at all.

Several comparisons at once, each at a confidence of 1 − a, would together be wrong more often than a. So each is made
at 1 − a / comparisons (Bonferroni): all intervals hold at once with at least the confidence that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, log, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

Interval: TypeAlias = tuple[float, float]

RESAMPLES = 9_999
LEAST_REPEATS = 8  # fewer are not resampled
LEAST_ERROR = 0.25  # a resample's standard error, as a share of the sample's: one of equal values would have none
LEAST_MEAN = 1e-6  # a resample's mean, as a share of the sample's: one of zeros has no logarithm
EQUAL = 1e-9  # relative standard errors below are those of arithmetic


class Share(NamedTuple):
    """A part of a gain, as a share of the whole."""

    share: float
    interval: Interval


class _Estimate(NamedTuple):
    """A number, its standard error, and both again for each resample, if there are any."""

    value: float
    error: float
    degrees: float  # of freedom, of the error
    values: Floats | None = None
    errors: Floats | None = None


def of_mean(values: Sequence[float], confidence: float, seed: int) -> Interval:
    """Where the mean lies: see `verdict.interval_of_mean`."""
    mean = float(np.mean(values))
    if mean <= 0 or len(values) < 2:
        return mean, mean
    return of_paired_ratio(values, [1.0] * len(values), confidence, 1, seed)[1]


def of_paired_ratio(
    values: Sequence[float], base: Sequence[float], confidence: float, comparisons: int, seed: int
) -> tuple[float, Interval]:
    """mean(values) / mean(base), and where it lies: see `verdict.judge_paired`."""
    one, other = np.asarray(values, float), np.asarray(base, float)
    if (found := _without_logarithm(one, other)) is not None:
        return found
    estimate = _log_ratio(one, other, seed)
    return exp(estimate.value), _exp(_interval(estimate, confidence, comparisons))


def of_unpaired_ratio(
    values: Sequence[float], base: Sequence[float], floor: float, confidence: float, comparisons: int, seed: int
) -> tuple[float, Interval]:
    """mean(values) / mean(base), and where it lies: see `verdict.judge_unpaired`."""
    one, other = np.asarray(values, float), np.asarray(base, float)
    if (found := _without_logarithm(one, other)) is not None:
        return found
    first, second = _log_mean(one, floor, seed), _log_mean(other, floor, seed + 1)
    return exp(first.value - second.value), _exp(_interval(_difference(first, second), confidence, comparisons))


def of_gained_share(
    values: Sequence[float], base: Sequence[float], bound: Sequence[float], confidence: float, seed: int
) -> Share | None:
    """A part of a gain, and where it lies: see `verdict.share_of_gain`."""
    first = np.asarray(base, float)
    part, whole = first - np.asarray(values, float), first - np.asarray(bound, float)
    if len(whole) < 2 or _contains_0(whole, confidence, seed):
        return None
    ratio = float(part.mean() / whole.mean())
    off = part - ratio * whole
    error = _error(off) / abs(float(whole.mean()))
    if error <= EQUAL:
        return Share(ratio, (ratio, ratio))
    estimate = _Estimate(ratio, error, len(whole) - 1)
    if len(whole) >= LEAST_REPEATS:
        parts, wholes = part[_indices(len(whole), seed)], whole[_indices(len(whole), seed)]
        means = wholes.mean(1)
        means = np.where(np.abs(means) < LEAST_MEAN * abs(whole.mean()), LEAST_MEAN * whole.mean(), means)
        ratios = parts.mean(1) / means
        errors = _errors(parts - ratios[:, None] * wholes) / np.abs(means)
        estimate = estimate._replace(values=ratios, errors=errors)
    return Share(ratio, _interval(estimate, confidence, 1))


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float:
    """See `verdict.noise_floor`."""
    squares, degrees = 0.0, 0
    for values in groups:
        mean = float(np.mean(values))
        if len(values) > 1 and mean:
            squares += sum((value / mean - 1) ** 2 for value in values)
            degrees += len(values) - 1
    return sqrt(squares / degrees) if degrees else 0.0


# -- estimates


def _log_ratio(one: Floats, other: Floats, seed: int) -> _Estimate:
    """The logarithm of the ratio of two means of pairs. Its error by the delta method."""
    scaled = one / one.mean(), other / other.mean()
    estimate = _Estimate(log(one.mean() / other.mean()), _error(scaled[0] - scaled[1]), len(one) - 1)
    if len(one) < LEAST_REPEATS:
        return estimate
    first, second = _resamples(tuple(scaled[0]), seed), _resamples(tuple(scaled[1]), seed)
    logarithms = estimate.value + np.log(first.means / second.means)
    return estimate._replace(values=logarithms, errors=_errors(first.shares - second.shares))


def _log_mean(values: Floats, floor: float, seed: int) -> _Estimate:
    """The logarithm of a mean, whose values deviate by the share `floor` at least."""
    scaled = values / values.mean()
    least = floor / sqrt(len(values))
    estimate = _Estimate(log(values.mean()), max(_error(scaled), least), max(len(values) - 1, 1))
    if len(values) < LEAST_REPEATS:
        return estimate
    found = _resamples(tuple(scaled), seed)
    errors = np.maximum(_errors(found.shares), least)
    return estimate._replace(values=estimate.value + np.log(found.means), errors=errors)


def _difference(one: _Estimate, other: _Estimate) -> _Estimate:
    """Of two numbers that have nothing to do with each other. The degrees of freedom are Welch's (1947)."""
    error = sqrt(one.error**2 + other.error**2)
    if not error:
        return _Estimate(one.value - other.value, 0.0, 1)
    degrees = error**4 / (one.error**4 / one.degrees + other.error**4 / other.degrees)
    estimate = _Estimate(one.value - other.value, error, degrees)
    if one.values is None or other.values is None or one.errors is None or other.errors is None:
        return estimate
    return estimate._replace(values=one.values - other.values, errors=np.hypot(one.errors, other.errors))


def _contains_0(values: Floats, confidence: float, seed: int) -> bool:
    error = _error(values)
    if error <= EQUAL * float(np.abs(values).max()):
        return not float(np.abs(values).max())
    estimate = _Estimate(float(values.mean()), error, len(values) - 1)
    if len(values) >= LEAST_REPEATS:
        drawn = values[_indices(len(values), seed)]
        estimate = estimate._replace(values=drawn.mean(1), errors=_errors(drawn))
    low, high = _interval(estimate, confidence, 1)
    return low <= 0 <= high


def _error(values: Floats) -> float:
    """The standard error of a mean; 0 of a single value."""
    return float(values.std(ddof=1) / sqrt(len(values))) if len(values) > 1 else 0.0


def _errors(rows: Floats) -> Floats:
    errors: Floats = rows.std(axis=1, ddof=1) / sqrt(rows.shape[1])
    return errors


class _Resamples(NamedTuple):
    """Of values that are shares of their mean: of each resample its mean, and its values as shares of that."""

    means: Floats
    shares: Floats


@lru_cache(maxsize=6)  # a policy, those that it is held against, and 1
def _resamples(values: tuple[float, ...], seed: int) -> _Resamples:
    drawn = np.asarray(values)[_indices(len(values), seed)]
    means = np.maximum(drawn.mean(1), LEAST_MEAN)
    return _Resamples(means, drawn / means[:, None])


@lru_cache(maxsize=8)
def _indices(repeats: int, seed: int) -> NDArray[Any]:
    """Which repeats each resample consists of: the same for all figures, so that equal data give equal answers."""
    return np.random.default_rng(seed).integers(0, repeats, (RESAMPLES, repeats))


# -- intervals


def _interval(estimate: _Estimate, confidence: float, comparisons: int) -> Interval:
    """Around the estimate, as many errors as it takes for this confidence."""
    if estimate.error <= EQUAL:
        return estimate.value, estimate.value
    from scipy.special import stdtrit  # takes a while to load, and few need it

    tail = (1 - confidence) / comparisons / 2
    student = float(stdtrit(estimate.degrees, 1 - tail))
    low, high = -student, student
    if estimate.values is not None and estimate.errors is not None:
        errors = np.maximum(estimate.errors, LEAST_ERROR * estimate.error)
        tails = np.quantile((estimate.values - estimate.value) / errors, (tail, 1 - tail))
        low, high = min(low, float(tails[0])), max(high, float(tails[1]))
    return estimate.value - high * estimate.error, estimate.value - low * estimate.error


def _without_logarithm(one: Floats, other: Floats) -> tuple[float, Interval] | None:
    """The ratio and its interval where all of one side is 0."""
    if not one.any() and not other.any():
        return 1.0, (1.0, 1.0)
    if not one.any():
        return 0.0, (0.0, 0.0)
    return None if other.any() else (inf, (inf, inf))


def _exp(interval: Interval) -> Interval:
    low, high = interval
    return exp(min(low, 700.0)), exp(min(high, 700.0))  # beyond, it would be more than a number can hold
