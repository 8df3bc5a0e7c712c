"""A linear fit of positive costs to timings: non-negative, relative, and not led astray by outliers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDS = 6  # of reweighting; the weights hardly move after four
OUTLYING = 2.0  # standard deviations from which on a residual counts linearly instead of by its square (Huber)
EXACT = 1e-9  # relative residuals below this are rounding
DISTINCT = 0.02  # a column of which less than this share is no mix of the columns before it cannot be told from them


class LinearFit(NamedTuple):
    """Costs of the columns, and how far the fit is from what was measured."""

    costs: Array
    residuals: Array  # (fitted − measured) / fitted, a row
    spread: float  # the residuals' standard deviation, outliers aside


def fit_costs(columns: Array, seconds: Array, weights: Array) -> LinearFit:
    """Costs ≥ 0 so that `columns @ costs` is near `seconds`, relative to them. `columns` is (rows, costs).

    A residual is relative to the fitted time, not to the measured one, since that would favour costs that are too low.
    """
    from scipy.optimize import nnls

    used = weights > 0
    rows, measured, weight = columns[used], seconds[used], weights[used]
    size = np.abs(rows / measured[:, None]).max(axis=0)
    size[size == 0] = 1.0  # so that a nanosecond a token and a millisecond a step are solved alike well
    fitted, trust, spread = measured, np.ones_like(measured), 0.0
    costs = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        scale = np.sqrt(weight * trust) / fitted
        triangle, target = _triangle(rows / size * scale[:, None], measured * scale)
        costs = nnls(triangle, target)[0] / size
        fitted = np.maximum(rows @ costs, 0.1 * measured)
        residuals = (fitted - measured) / fitted
        spread = max(EXACT, 1.4826 * float(np.median(np.abs(residuals))))
        trust = np.minimum(1.0, OUTLYING * spread / np.maximum(np.abs(residuals), EXACT))
    everything = np.maximum(columns @ costs, 0.1 * seconds)
    return LinearFit(costs, (everything - seconds) / everything, spread)


def loss(fit: LinearFit, weights: Array, spread: float) -> float:
    """Huber's loss of a fit, in units of `spread`: the same for all the fits that are compared."""
    size = np.abs(fit.residuals) / spread
    each = np.where(size <= OUTLYING, size**2 / 2, OUTLYING * (size - OUTLYING / 2))
    return float(weights @ each)


def distinct(columns: Array, seconds: Array, weights: Array) -> list[int]:
    """The columns whose costs these rows can tell apart, the first ones preferred."""
    scaled = columns * (np.sqrt(weights) / seconds)[:, None]
    found: list[int] = []
    basis = np.zeros((len(scaled), 0))
    for index in range(scaled.shape[1]):
        column = scaled[:, index]
        rest = column - basis @ (basis.T @ column)
        if np.linalg.norm(rest) > DISTINCT * np.linalg.norm(column):
            found.append(index)
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    return found


def _triangle(rows: Array, target: Array) -> tuple[Array, Array]:
    """A system of as many rows as columns with the same least squares."""
    joined: Array = np.linalg.qr(np.column_stack([rows, target])).R
    return joined[:, :-1], joined[:, -1]
