"""Metrics are one fold over facts: small stories whose numbers can be checked by hand."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.traces.apps import Hints
from tokencake.traces.errors import TraceError
from tokencake.traces.events import (
    AppFinished,
    AppStarted,
    CallAdmitted,
    CallArrived,
    CallFinished,
    CallPreempted,
    Fact,
    FirstToken,
    LoadStarted,
    Occupied,
    OffloadStarted,
    Planned,
    Request,
    RunStarted,
    ToolStarted,
    UploadCancelled,
    UploadStarted,
    UploadTaken,
)
from tokencake.traces.results.distribution import EXACT_VALUES, RELATIVE_ERROR, Distribution
from tokencake.traces.results.metrics import Metrics

MACHINE = RunStarted(0.0, block_tokens=16, gpu_blocks=100, host_blocks=50, block_bytes=1000)


def measured(*facts: Fact | Planned) -> dict[str, Any]:
    metrics = Metrics()
    for fact in (MACHINE, *facts):
        metrics.add(fact)
    return metrics.result()


def arrived(at_s: float, call: str, prompt_tokens: int = 100, critical: bool = False) -> CallArrived:
    app = call.split("/")[0]
    request = Request(call, app, f"{app}/main", "main", prompt_tokens, 50, (), Hints(critical_path=critical))
    return CallArrived(at_s, request)


def admitted(at_s: float, call: str, gpu: int = 0, host: int = 0, resumed: int = 0) -> CallAdmitted:
    return CallAdmitted(at_s, call, gpu, host, resumed)


def test_one_call_by_hand() -> None:
    result = measured(
        AppStarted(10.0, "a"),
        arrived(10.5, "a/x", prompt_tokens=100),
        admitted(12.0, "a/x", gpu=32, host=16),
        FirstToken(13.0, "a/x"),
        CallFinished(15.0, "a/x", output_tokens=5, context_blocks=6),
        AppFinished(16.0, "a"),
        Occupied(16.0, used_block_s=300.0, stalled_block_s=60.0, held_block_s=30.0, busy_s=3.0, steps=7),
    )
    assert (result["applications"], result["calls"], result["steps"]) == (1, 1, 7)
    assert result["makespan_s"] == 6.0
    assert result["app_latency_s"]["mean"] == 6.0
    assert result["queue_s"]["max"] == 1.5
    assert result["ttft_s"]["p50"] == 2.5
    assert result["tpot_s"]["p99"] == 0.5  # two seconds for the four tokens after the first
    assert result["prefill_tokens"] == {"computed": 52, "gpu_hit": 32, "host_hit": 16}
    assert result["gpu_usage_mean"] == 300.0 / 600.0
    assert result["effective_utilisation"] == 270.0 / 600.0
    assert result["stalled_share"] == 60.0 / 600.0


def test_nothing_happened_is_none_and_not_nan() -> None:
    result = measured()
    absent = {"mean": None, "p50": None, "p90": None, "p95": None, "p99": None, "max": None}
    assert result["ttft_s"] == result["app_latency_s"] == absent
    assert result["makespan_s"] is result["gpu_usage_mean"] is result["steps"] is None
    assert result["calls"] == result["preemptions"] == 0


def test_a_call_of_one_token_has_no_time_between_tokens() -> None:
    finished = (FirstToken(1.0, "a/x"), CallFinished(1.0, "a/x", output_tokens=1, context_blocks=6))
    result = measured(arrived(0.0, "a/x"), admitted(0.0, "a/x"), *finished)
    assert result["tpot_s"]["mean"] is None
    assert result["ttft_s"]["mean"] == 1.0


def test_recomputation_after_a_preemption_is_told_apart_from_the_first_prefill() -> None:
    result = measured(
        arrived(0.0, "a/x", prompt_tokens=100),
        admitted(1.0, "a/x", gpu=48),
        FirstToken(2.0, "a/x"),
        CallPreempted(3.0, "a/x", generated_tokens=20),
        admitted(9.0, "a/x", gpu=96, resumed=120),
        CallFinished(10.0, "a/x", output_tokens=30, context_blocks=8),
    )
    assert result["prefill_tokens"] == {"computed": 52, "gpu_hit": 48, "host_hit": 0}
    assert result["recomputed_tokens"] == 24
    assert result["preemptions"] == 1
    assert result["queue_s"]["max"] == 1.0  # to the first admission


def test_bytes_and_jobs_of_copies() -> None:
    result = measured(
        OffloadStarted(0.0, "a/main", blocks=5, upto_blocks=9),
        UploadStarted(1.0, "a/main", blocks=4),
        arrived(2.0, "a/x"),
        LoadStarted(2.0, "a/x", blocks=3, gpu_hit_blocks=1),
    )
    assert (result["offload_bytes"], result["offload_jobs"]) == (5000, 1)
    assert (result["upload_bytes"], result["upload_jobs"], result["load_jobs"]) == (7000, 1, 1)


def test_uploads_are_early_on_time_late_or_cancelled() -> None:
    result = measured(
        UploadTaken(1.0, "a/early", blocks=10, held_s=2.0, late_s=0.0),
        UploadTaken(1.0, "a/just", blocks=10, held_s=0.1, late_s=0.0),
        UploadTaken(1.0, "a/late", blocks=10, held_s=0.0, late_s=0.01),
        UploadCancelled(1.0, "a/never", blocks=4, held_s=3.0),
    )
    assert result["uploads"] == {"early": 1, "on_time": 1, "late": 1, "cancelled": 1}
    assert result["upload_idle_block_s"] == 10 * 2.0 + 10 * 0.1 + 4 * 3.0


class TestCriticalInversions:
    """A call that matters less goes first, or is spared."""

    def test_admitted_before_a_critical_call_that_came_earlier(self) -> None:
        came = (arrived(0.0, "a/critical", critical=True), arrived(1.0, "b/other"))
        assert measured(*came, admitted(2.0, "b/other"))["critical_inversions"] == 1

    def test_first_come_first_served_is_none(self) -> None:
        came = (arrived(0.0, "b/other"), arrived(1.0, "a/critical", critical=True))
        assert measured(*came, admitted(2.0, "b/other"))["critical_inversions"] == 0

    def test_a_critical_call_that_runs_already_is_not_overtaken(self) -> None:
        came = (arrived(0.0, "a/critical", critical=True), arrived(1.0, "b/other"))
        assert measured(*came, admitted(2.0, "a/critical"), admitted(3.0, "b/other"))["critical_inversions"] == 0

    def test_a_critical_call_whose_blocks_are_loading_has_its_room(self) -> None:
        came = (arrived(0.0, "a/critical", critical=True), arrived(1.0, "b/other"))
        loading = LoadStarted(1.5, "a/critical", blocks=3, gpu_hit_blocks=0)
        assert measured(*came, loading, admitted(2.0, "b/other"))["critical_inversions"] == 0

    def test_preempted_while_another_runs(self) -> None:
        came = (arrived(0.0, "a/critical", critical=True), admitted(0.0, "a/critical"))
        preempted = CallPreempted(2.0, "a/critical", generated_tokens=3)
        assert measured(*came, preempted)["critical_inversions"] == 0
        other = (arrived(1.0, "b/other"), admitted(1.0, "b/other"))
        assert measured(*came, *other, preempted)["critical_inversions"] == 1

    def test_a_preempted_critical_call_waits_again(self) -> None:
        facts = (
            arrived(0.0, "a/critical", critical=True),
            admitted(0.0, "a/critical"),
            CallPreempted(2.0, "a/critical", generated_tokens=3),
            arrived(3.0, "b/other"),
            admitted(4.0, "b/other"),
        )
        assert measured(*facts)["critical_inversions"] == 1

    def test_nobody_is_left_running_after_the_end(self) -> None:
        other = (arrived(0.0, "b/other"), admitted(0.0, "b/other"), FirstToken(1.0, "b/other"))
        ended = CallFinished(2.0, "b/other", output_tokens=2, context_blocks=6)
        critical = (arrived(2.0, "a/critical", critical=True), admitted(2.0, "a/critical"))
        preempted = CallPreempted(3.0, "a/critical", generated_tokens=3)
        assert measured(*other, ended, *critical, preempted)["critical_inversions"] == 0


def test_what_no_metric_needs_is_passed_over() -> None:
    assert measured(ToolStarted(1.0, "a/x", "a/main"), Planned(1.0, {"skip": True})) == measured()


def test_a_fact_about_an_unknown_call_names_it() -> None:
    with pytest.raises(TraceError, match="FirstToken: 'a/x' is not in flight"):
        measured(FirstToken(1.0, "a/x"))


def test_memory_does_not_grow_with_finished_calls() -> None:
    metrics = Metrics()
    for index in range(1000):
        call = f"a/{index}"
        metrics.add(arrived(float(index), call, critical=index % 2 == 0))
        metrics.add(admitted(float(index), call))
        metrics.add(CallFinished(index + 0.5, call, output_tokens=1, context_blocks=6))
    assert len(metrics._calls) == len(metrics._oldest_critical) == len(metrics._waiting_critical) == 0


def summary_of(values: list[float]) -> dict[str, float | None]:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    return distribution.summary()


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200))
def test_few_values_are_summed_up_exactly_as_numpy_does(values: list[float]) -> None:
    summary = summary_of(values)
    shares = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    for name, share in shares.items():
        assert summary[name] == pytest.approx(np.percentile(values, share), rel=1e-12, abs=1e-12)
    assert summary["mean"] == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_many_values_are_within_the_documented_error(sigma: float) -> None:
    rng = random.Random(7)
    values = [0.0] * 100 + [rng.lognormvariate(0, sigma) for _ in range(EXACT_VALUES)]
    distribution = Distribution()
    for index, value in enumerate(values):
        distribution.add(value)
        if index % 20_000 == 0:
            distribution.fold()
    summary = distribution.summary()
    for name, share in {"p50": 50, "p90": 90, "p95": 95, "p99": 99}.items():
        assert summary[name] == pytest.approx(np.percentile(values, share), rel=1.01 * RELATIVE_ERROR)
    assert summary["max"] == max(values)
    assert summary["mean"] == pytest.approx(np.mean(values), rel=1e-12)


def test_many_values_take_little_room() -> None:
    rng = random.Random(8)
    distribution = Distribution()
    for index in range(3 * EXACT_VALUES):
        distribution.add(rng.expovariate(1.0))
        if index % EXACT_VALUES == 0:
            distribution.fold()
    distribution.fold()
    assert len(distribution._values) <= EXACT_VALUES
    assert len(distribution._buckets) < 10_000


def test_equal_values_beyond_the_exact_ones_keep_their_value() -> None:
    assert summary_of([0.25] * (EXACT_VALUES + 1)) == dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), 0.25)
