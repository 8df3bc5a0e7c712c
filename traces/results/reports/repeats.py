"""The runs of a policy taken together: their means, and how far they lie apart. A run is a record of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from ..metric import metric_value


def averaged(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record for all repeats of a run: the means of their numbers, and `repeats`, the records themselves."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    seen: Counter[tuple[str, object]] = Counter()  # a policy that was asked for twice has two runs in each repeat
    for run in runs:
        asked = (run["policy"], run.get("repeat"))
        groups.setdefault((run["policy"], seen[asked]), []).append(run)
        seen[asked] += 1
    return [{**_mean(repeats), "failed": _failed(repeats), "repeats": repeats} for repeats in groups.values()]


def _failed(repeats: Sequence[Mapping[str, Any]]) -> str | None:
    """Why there are no figures of a policy: what the first of its runs that failed says."""
    for run in repeats:
        if failed := run.get("failed"):
            return f"in repeat {run['repeat']}: {failed}" if "repeat" in run else str(failed)
    return None


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: _mean_value([record[key] for record in records]) for key in records[0]}


def _mean_value(values: Sequence[Any]) -> Any:
    """The mean of numbers, and of what is in mappings; None if a number is missing; else the first value."""
    if isinstance(values[0], Mapping):
        return _mean(values)
    if any(value is None for value in values):
        return None
    if isinstance(values[0], int | float) and len(values) > 1:
        return fsum(values) / len(values)
    return values[0]


def spread(repeats: Sequence[Mapping[str, Any]], path: str) -> float:
    """How far the values of some runs lie apart, as a share of their mean; 0 if there is nothing to compare."""
    values = [value for run in repeats if (value := metric_value(run, path)) is not None]
    mean = fsum(values) / len(values) if values else 0.0
    return (max(values) - min(values)) / mean if mean else 0.0


def change(value: float | None, base: float | None) -> float | None:
    """How much more `value` is, as a share of `base`; None where that says nothing."""
    return None if value is None or not base else value / base - 1


def named(run: Mapping[str, Any]) -> str:
    """A run's policy as it is shown. What sees the future is marked wherever it appears, and so is what failed."""
    marks = [mark for mark in ("bound", "failed") if run.get(mark)]
    return f"{run['policy']} ({', '.join(marks)})" if marks else str(run["policy"])
