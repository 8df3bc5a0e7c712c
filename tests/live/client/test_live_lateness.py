"""What calls took and how late they were, and when that is said in words."""

from __future__ import annotations

import pytest

from tokencake.live.client.call_latencies import CallLatencies
from tokencake.policies.runs.doubts import lateness_problem
from tokencake.traces import events as e
from tokencake.traces.apps import Hints


def arrived(call: str, at_s: float) -> e.CallArrived:
    return e.CallArrived(at_s, e.Request(call, call.partition("/")[0], "a/main", "coder", 100, 10, (), Hints()))


def test_a_call_takes_from_its_arrival_to_its_end() -> None:
    """1 and 3 s; what was aborted and what has not ended count for nothing."""
    latencies = CallLatencies()
    for fact in (
        arrived("a/1", 0.0),
        arrived("a/2", 0.5),
        arrived("a/3", 0.6),
        e.CallFinished(1.0, "a/1", 10, 7),
        e.CallAborted(1.2, "a/3"),
        arrived("a/4", 2.0),
        e.CallFinished(3.5, "a/2", 10, 7),
    ):
        latencies.add(fact)
    assert latencies.summary() == {"mean": 2.0, "p50": 2.0, "p90": 2.8, "p95": 2.9, "p99": 2.98, "max": 3.0}


def test_lateness_that_is_not_small_is_said_with_both_figures() -> None:
    said = lateness_problem({"mean": 0.0146}, {"mean": 0.1338})
    assert said is not None
    assert "14.6 ms after they were due (mean), 10.9 % of the 133.8 ms that a call took" in said
    of_nothing = lateness_problem({"mean": 0.5}, {"mean": 0.0})
    assert "500.0 ms after they were due (mean), against the 0.0 ms" in str(of_nothing)


@pytest.mark.parametrize(
    ("late_s", "took_s"),
    [(0.0, 1.0), (0.05, 1.0), (None, 1.0), (0.5, None), (None, None), (0.0, 0.0)],
)
def test_small_lateness_or_none_is_no_problem(late_s: float | None, took_s: float | None) -> None:
    assert lateness_problem({"mean": late_s}, {"mean": took_s}) is None


def test_no_calls_are_no_problem() -> None:
    assert lateness_problem({}, CallLatencies().summary()) is None
