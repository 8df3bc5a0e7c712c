"""What an engine's own work on the host costs, from steps of which the workers' share was timed.

Only of an engine that schedules synchronously it is known: what of a step is not the workers' is the host's. That is
fitted by the calls that were admitted and the tokens that were sampled, beside what every step takes and what a
prompt's tokens take. These two are no host's constants: they stay in the step's time, with `step_s` and
`prefill_token_s`. What the two constants explain is taken off the steps before the rest is fitted, so it counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..samples import StepSample
from .regression import Array, distinct, fit_costs
from .step_costs import CONFIDENCE, LEAST_STEPS, REDRAWN, Estimate

COLUMNS = (
    "",
    "host_token_s",
    "host_call_s",
    "",
)  # of a step: itself, its sampled tokens, admitted calls, prompt tokens
NOT_TIMED = "the host's time was not told apart from the device's"


class HostFit(NamedTuple):
    """The constants by field, and the steps: of each is said what the constants explain."""

    constants: dict[str, Estimate]
    steps: list[StepSample]


def fit_host(steps: Sequence[StepSample], seed: int = 0) -> HostFit:
    """Fits the constants; both are 0 where too few steps were timed. Intervals are of 95 %, drawn with `seed`."""
    rows = [
        (step.host.seconds, 1.0, step.host.sampled, step.host.admitted, step.prefill_tokens)
        for step in steps
        if step.host is not None
    ]
    if len(rows) < LEAST_STEPS:
        return HostFit({name: Estimate(0.0, why=NOT_TIMED) for name in COLUMNS if name}, list(steps))
    table = np.array(rows, dtype=np.float64)
    seconds, columns = table[:, 0], table[:, 1:]
    known = distinct(columns, seconds, np.ones_like(seconds))
    costs = _costs(columns, seconds, np.ones_like(seconds), known)
    drawn = _bootstrap(columns, seconds, known, np.random.default_rng(seed))
    constants = {name: _estimate(at, costs, drawn, known) for at, name in enumerate(COLUMNS) if name}
    token_s, call_s = constants["host_token_s"].value, constants["host_call_s"].value
    return HostFit(constants, [_explained(step, call_s, token_s) for step in steps])


def _explained(step: StepSample, call_s: float, token_s: float) -> StepSample:
    if step.host is None:
        return step
    return step._replace(explained_s=call_s * step.host.admitted + token_s * step.host.sampled)


def _costs(columns: Array, seconds: Array, weights: Array, known: Sequence[int]) -> Array:
    costs = np.zeros(columns.shape[1])
    costs[list(known)] = fit_costs(columns[:, list(known)], seconds, weights).costs
    return costs


def _bootstrap(columns: Array, seconds: Array, known: Sequence[int], rng: np.random.Generator) -> Array:
    """Costs of `REDRAWN` data sets, whose runs of equal steps are drawn from the measured ones: (redrawn, costs)."""
    changes = np.any(np.diff(columns, axis=0) != 0, axis=1)
    run_of = np.concatenate([[0], np.cumsum(changes)])
    runs = int(run_of[-1]) + 1
    draws = (np.bincount(rng.integers(runs, size=runs), minlength=runs) for _ in range(REDRAWN))
    return np.array([_costs(columns, seconds, times[run_of].astype(np.float64), known) for times in draws])


def _estimate(at: int, costs: Array, drawn: Array, known: Sequence[int]) -> Estimate:
    if at not in known:
        return Estimate(0.0, why="these steps cannot tell it from the host's other work")
    value = float(costs[at])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn[:, at], [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))
