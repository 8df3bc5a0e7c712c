"""Figures of a run by name."""

from __future__ import annotations

import pytest

from tokencake.traces.results.metric import (
    HIGHER,
    NEITHER,
    MetricError,
    check_judged,
    check_metric,
    higher_is_better,
    metric_names,
    metric_value,
)

METRICS = {"makespan_s": 12, "app_latency_s": {"mean": 3.5, "p95": 4.0}, "tpot_s": {"mean": None}}


def test_a_figure_is_found_by_its_path() -> None:
    assert metric_value(METRICS, "makespan_s") == 12.0
    assert metric_value(METRICS, "app_latency_s.p95") == 4.0
    assert metric_value(METRICS, "tpot_s.mean") is None


def test_latencies_are_better_low_and_hits_are_better_high() -> None:
    assert not higher_is_better("app_latency_s.mean")
    assert higher_is_better("effective_utilisation")
    assert set(metric_names()) >= HIGHER | NEITHER


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("app_latency_s", "app_latency_s.mean, app_latency_s.p50"),
        ("app_latency.p95", "app_latency_s.p95"),
        ("makespan", "makespan_s"),
        ("happiness", "see docs/metrics.md"),
    ],
)
def test_a_figure_that_is_not_there_is_named_with_those_that_are_near(path: str, near: str) -> None:
    with pytest.raises(MetricError) as caught:
        check_metric(path)
    assert f"unknown metric '{path}'" in str(caught.value)
    assert near in str(caught.value)


def test_nobody_wins_by_the_number_of_steps() -> None:
    assert check_metric("steps") == "steps"
    with pytest.raises(MetricError, match="neither more nor less"):
        check_judged("steps")
    assert check_judged("ttft_s.p99") == "ttft_s.p99"
