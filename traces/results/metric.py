"""The figures of a run by name, and which direction is the good one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

from ..errors import TokencakeError
from ..files.fields import MAX_NAME, WrongField
from ..files.schema import Check, inner, measured, nullable, record
from .distribution import PERCENTILES
from .metrics import Metrics
from .number_formats import milliseconds, number, seconds, share, size

# More of these is better. Of all others less is, except for those that say nothing by themselves.
HIGHER = frozenset({"effective_utilisation", "prefill_tokens.gpu_hit", "prefill_tokens.host_hit", "uploads.on_time"})
SHARES = ("gpu_usage_mean", "effective_utilisation", "stalled_share")
ROUNDING = 1e-9  # relative, of a figure that was computed in another order
NEITHER = frozenset({"applications", "calls", "steps", "gpu_usage_mean", "stalled_share"})


class MetricError(TokencakeError):
    """A metric is unknown, or cannot be judged by."""


def metric_value(metrics: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of a run's metrics, `app_latency_s.p95`; None where it has no meaning there.

    Of a run's record in a report the path begins with `metrics.`.
    """
    found: Any = metrics
    for key in path.split("."):
        found = found[key]
    return None if found is None else float(found)


def higher_is_better(path: str) -> bool:
    """Whether more of it is better, and not less."""
    return path in HIGHER


def shown(metric: str, value: float | None) -> str:
    """A value of a metric in its unit."""
    name = metric.partition(".")[0]
    if value is None:
        return "no value"
    if name == "tpot_s":
        return milliseconds(value)
    if name.endswith("_s") and not name.endswith("block_s"):
        return seconds(value)
    if name.endswith("_bytes"):
        return size(value)
    return share(value) if name in SHARES else number(value) if value == int(value) else f"{value:,.1f}"


def check_metric(path: str) -> str:
    """The path, if there is such a metric. Else raises `MetricError`, naming those that are near."""
    known = metric_names()
    if path not in known:
        begun = [name for name in known if name.startswith(f"{path}.")]
        path = path[:MAX_NAME]
        near = begun or get_close_matches(path, known, n=3)
        meant = f"near are {', '.join(near)}" if near else "see docs/metrics.md, app_latency_s.mean is one"
        raise MetricError(f"unknown metric {path!r}: {meant}")
    return path


def check_judged(path: str) -> str:
    """The path, if there is such a metric and one value of it is better than another. Else raises `MetricError`."""
    if check_metric(path) in NEITHER:
        raise MetricError(f"metric {path}: neither more nor less of it is better: nobody can win by it")
    return path


def run_metrics(value: object, field: str) -> dict[str, Any]:
    """A check, see `traces.files.schema`: all metrics of a run as a report has them, and such as a run can have."""
    found: dict[str, Any] = _shape(Metrics().result())(value, field)
    for name, inside in found.items():
        if isinstance(inside, Mapping) and PERCENTILES.keys() <= inside.keys():
            _check_distribution(inside, inner(field, name))
    for name in SHARES:
        if found[name] is not None and found[name] > 1 + ROUNDING:
            raise WrongField(inner(field, name), f"expected a share, at most 1, got {found[name]}")
    return found


def _shape(values: Mapping[str, Any]) -> Check[Any]:
    """As these metrics are nested, with any values."""
    return record({name: _shape(one) if isinstance(one, Mapping) else _figure for name, one in values.items()})


_figure = nullable(measured)


def _check_distribution(found: Mapping[str, float | None], field: str) -> None:
    """All of it has values or none; percentiles rise, and neither they nor the mean are above the maximum."""
    values = {name: value for name, value in found.items() if value is not None}
    if values and len(values) < len(found):
        raise WrongField(
            inner(field, next(name for name in found if name not in values)), "expected a number, got null"
        )
    rising = [(name, values[name]) for name in (*PERCENTILES, "max") if name in values]
    for (lower, low), (upper, high) in pairwise(rising):
        if low > high * (1 + ROUNDING):
            raise WrongField(inner(field, lower), f"expected at most {upper}, {high}, got {low}")
    if values and values["mean"] > values["max"] * (1 + ROUNDING):
        raise WrongField(inner(field, "mean"), f"expected at most max, {values['max']}, got {values['mean']}")


@cache
def metric_names() -> tuple[str, ...]:
    """All of them, in the order of a report."""
    return tuple(_paths(Metrics().result()))


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield prefix + key
