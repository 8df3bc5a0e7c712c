"""Quantiles of Student's distribution. SciPy has them, too, and takes longer to load than many a comparison to play."""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, log, log1p, pi

TINY = 1e-300  # instead of a 0 in a denominator
ROUNDING = 1e-15
MOST_STEPS = 10_000


@lru_cache(maxsize=64)
def upper_quantile(tail: float, degrees: float) -> float:
    """What is exceeded with a probability of `tail`, from above 0 to 1/2, at so many degrees of freedom.

    By Newton's method from the middle: the tail's probability is convex there, so no step goes too far.
    """
    value = 0.0
    for _ in range(MOST_STEPS):
        step = (_tail(value, degrees) - tail) / _density(value, degrees)
        value += step
        if abs(step) <= ROUNDING * value:
            break
    return value


def _density(value: float, degrees: float) -> float:
    scale = lgamma((degrees + 1) / 2) - lgamma(degrees / 2) - 0.5 * log(degrees * pi)
    return exp(scale - (degrees + 1) / 2 * log1p(value * value / degrees))


def _tail(value: float, degrees: float) -> float:
    """The probability that a value, not negative, is exceeded: half an incomplete beta function."""
    if value == 0.0:
        return 0.5
    square = value * value
    far, near = degrees / (degrees + square), square / (degrees + square)
    a, b = degrees / 2, 0.5
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(far) + b * log(near))
    if far < (a + 1) / (a + b + 2):
        return 0.5 * front * _fraction(a, b, far) / a
    return 0.5 - 0.5 * front * _fraction(b, a, near) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (Numerical Recipes, 6.4), by Lentz's method."""
    numerator, denominator = 1.0, 1.0 / _not_0(1.0 - (a + b) * x / (a + 1))
    found = denominator
    for m in range(1, MOST_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            denominator = 1.0 / _not_0(1.0 + term * denominator)
            numerator = _not_0(1.0 + term / numerator)
            factor = numerator * denominator
            found *= factor
        if abs(factor - 1.0) <= ROUNDING:
            break
    return found


def _not_0(value: float) -> float:
    return value or TINY
