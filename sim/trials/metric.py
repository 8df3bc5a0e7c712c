"""The figures of a run by name, and which direction is the good one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from ...traces.errors import TokencakeError
from ...traces.fields import MAX_NAME
from ...traces.metrics import Metrics
from ..report import milliseconds, number, seconds, share, size

# More of these is better. Of all others less is, except for those that say nothing by themselves.
HIGHER = frozenset({"effective_utilisation", "prefill_tokens.gpu_hit", "prefill_tokens.host_hit", "uploads.on_time"})
SHARES = ("gpu_usage_mean", "effective_utilisation", "stalled_share")
NEITHER = frozenset({"applications", "calls", "steps", "gpu_usage_mean", "stalled_share"})


class MetricError(TokencakeError):
    """A metric is unknown, or cannot be judged by."""


def metric_value(metrics: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of a run's metrics, `app_latency_s.p95`; None where it has no meaning there."""
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
