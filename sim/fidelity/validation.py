"""Did the simulator say what the engine did? Live runs beside simulated ones: errors, parity of decisions, verdicts.

All of it is made of metrics (`traces.results.metrics`) and of what replays came to; this file plays nothing. A policy
wins only by more than the repeats of live runs differ from each other; the same margin is laid on the simulated
difference, so that both sides speak of the same thing. A policy that failed in a live run has no verdict, and the
others none against it: the engine went on without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any, NamedTuple

from ...traces.results.metric import metric_value

SCHEMA = "tokencake.validation/1"
WON, LOST, OPEN = "wins", "loses", "cannot be told apart"
LEAST_CHANGE = 0.0005  # relative; nobody wins by less
TOLD_MARGIN = 0.05  # relative; within a wider one no difference says little

Metrics = Mapping[str, Any]


class Criterion(NamedTuple):
    """A metric on which policies are compared. Less is better."""

    path: str  # keys of the metrics, joined by dots
    label: str


CRITERIA = (Criterion("app_latency_s.mean", "mean application latency"), Criterion("makespan_s", "makespan"))

# Student's t, 97.5 %, by degrees of freedom from 1 on.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
T_975_MANY = 2.042  # for more: a bit too careful


@dataclass(slots=True)
class Trial:
    """One policy: what was simulated, and what each live run came to."""

    policy: str
    simulated: Metrics
    live: list[Metrics] = field(default_factory=list)
    parity: list[Mapping[str, Any]] = field(default_factory=list)  # by live run: counts, and `ended`
    failed: str | None = None  # why the live runs are not the policy's: it did not last to the end of one

    def values(self, path: str) -> list[float]:
        """A metric of every live run that has it."""
        found = (metric_value(metrics, path) for metrics in self.live)
        return [value for value in found if value is not None]


def build(
    about: Mapping[str, object], trials: Sequence[Trial], cut_off: Sequence[Mapping[str, object]] = ()
) -> dict[str, Any]:
    """The validation as data: `about` says what was played and on what. Trials without a live run are left out.

    `cut_off`: records of live runs that something ended early. They are told, and nothing is compared with them.
    `error` is (simulated − live) / live, by metric; None where live is 0 and simulated is not. `spread` is (largest −
    smallest) / mean of the live runs.
    """
    finished = [trial for trial in trials if trial.live]
    return {
        "schema": SCHEMA,
        **about,
        "runs": [_run(trial) for trial in finished],
        "verdict": _verdict(finished),
        **({"partial": list(cut_off)} if cut_off else {}),
    }


def _run(trial: Trial) -> dict[str, Any]:
    live = _mean(trial.live)
    paths = [path for path, _ in _leaves(live)]
    return {
        "policy": trial.policy,
        "failed": trial.failed,
        "simulated": dict(trial.simulated),
        "live": live,
        "repeats": [dict(metrics) for metrics in trial.live],
        "error": {path: error_of(metric_value(trial.simulated, path), metric_value(live, path)) for path in paths},
        "spread": {path: _spread(trial.values(path)) for path in paths},
        "parity": _summed(trial.parity),
    }


def _mean(runs: Sequence[Metrics]) -> dict[str, Any]:
    """Metrics of which each number is the mean of the runs' own; None if not all have it."""
    mean: dict[str, Any] = {}
    for key, value in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(value, Mapping):
            mean[key] = _mean(values)
        else:
            mean[key] = None if None in values else fmean(values)
    return mean


def _leaves(metrics: Metrics, prefix: str = "") -> Iterator[tuple[str, float | None]]:
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def error_of(simulated: float | None, live: float | None) -> float | None:
    """(simulated − live) / live."""
    if simulated is None or live is None:
        return None
    if simulated == live:
        return 0.0
    return (simulated - live) / live if live else None


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = fmean(values)
    return (max(values) - min(values)) / mean if mean else 0.0 if max(values) == min(values) else None


def _summed(parity: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of all live runs; of what ended a comparison early, the first."""
    summed: dict[str, Any] = {}
    for record in parity:
        for key, value in record.items():
            if isinstance(value, int) and summed.get(key, 0) is not None:
                summed[key] = summed.get(key, 0) + value
            elif summed.get(key) is None:
                summed[key] = value
    return summed


# -- who wins


def _verdict(trials: Sequence[Trial]) -> dict[str, Any]:
    """For each policy after the first and each judged metric: its change on both sides, and what that means."""
    simulated: dict[str, Any] = {}
    live: dict[str, Any] = {}
    for trial in trials[1:]:
        if trial.failed or trials[0].failed:
            continue
        simulated[trial.policy], live[trial.policy] = {}, {}
        for criterion in CRITERIA:
            noise = margin(trial.values(criterion.path), trials[0].values(criterion.path))
            changes = _changes(trial, trials[0], criterion.path)
            for side, change in zip((simulated, live), changes, strict=True):
                side[trial.policy][criterion.path] = {
                    "outcome": outcome(change, noise),
                    "change": change,
                    "margin": noise,
                }
    return {"simulated": simulated, "live": live, "agree": _agree(_said(simulated), _said(live))}


def _said(side: Mapping[str, Mapping[str, Metrics]]) -> list[Metrics]:
    return [said for policy in side.values() for said in policy.values()]


def _agree(simulated: Sequence[Metrics], live: Sequence[Metrics]) -> bool | None:
    """Whether both sides say the same; None if there is nothing to say, or if noise kept both from saying anything."""
    if not simulated or all(map(_drowned, (*simulated, *live))):
        return None
    return [said["outcome"] for said in simulated] == [said["outcome"] for said in live]


def _drowned(said: Metrics) -> bool:
    """Whether a difference that somebody would want to know of may hide in the noise of the repeats."""
    return said["outcome"] == OPEN and (said["margin"] or 0.0) > TOLD_MARGIN


def _changes(trial: Trial, first: Trial, path: str) -> tuple[float | None, float | None]:
    """How much more than the first policy's: simulated, and live."""
    live, base = trial.values(path), first.values(path)
    simulated = error_of(metric_value(trial.simulated, path), metric_value(first.simulated, path))
    return simulated, error_of(fmean(live), fmean(base)) if live and base else None


def margin(values: Sequence[float], base: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the difference of two means, as a share of the base's (Welch).

    None if one of them was measured once: then nobody knows.
    """
    if len(values) < 2 or len(base) < 2 or not fmean(base):
        return None
    parts = variance(values) / len(values), variance(base) / len(base)
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(values) - 1) + parts[1] ** 2 / (len(base) - 1))
    at = max(0, int(freedom + 1e-9) - 1)
    t = T_975[at] if at < len(T_975) else T_975_MANY
    return t * math.sqrt(sum(parts)) / abs(fmean(base))


def outcome(change: float | None, noise: float | None) -> str:
    """What a change of a metric means of which less is better."""
    if change is None or abs(change) <= max(noise or 0.0, LEAST_CHANGE):
        return OPEN
    return WON if change < 0 else LOST
