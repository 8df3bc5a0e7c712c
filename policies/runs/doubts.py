"""What makes a run on an engine worth less than it looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...traces.results.reports.report import Run

SMALL = 0.05  # share of the mean call latency. Steps alone, which a call may come in the middle of, make 1 to 3 %


def doubts(run: Run) -> Iterator[str]:
    """Lines that begin with `warning: `, or with `error: ` if the policy did not last to the run's end."""
    if (problem := lateness_problem(run.more["lateness_s"], run.more["call_latency_s"])) is not None:
        yield f"warning: {run.policy}: {problem}"
    for line in run.more["disagreements"]:
        yield f"warning: {run.policy}: vLLM counts differently: {line}"
    for line in run.more["errors"]:
        yield f"error: {line}; the rest of its run was played without it"
    if again := run.more["asked_again"]:
        yield f"warning: {run.policy}: the server had to be asked again {again} times"
    if failed := run.more["failed_calls"]:
        first = run.more["failures"][0]
        calls = f"{failed} call{'s' if failed > 1 else ''}"
        yield f"error: {run.policy}: {calls} failed, and what came behind: {first}"


def lateness_problem(lateness_s: Mapping[str, float | None], latency_s: Mapping[str, float | None]) -> str | None:
    """What makes latencies doubtful, of two distributions: how late calls were, and how long they took.

    None if calls were late by no more than a 20th of what they took, mean by mean.
    """
    late_s, took_s = lateness_s.get("mean"), latency_s.get("mean")
    if late_s is None or took_s is None or late_s <= SMALL * took_s:
        return None
    share = f"{100 * late_s / took_s:.1f} % of" if took_s else "against"
    return (
        f"calls came to the engine {1000 * late_s:,.1f} ms after they were due (mean), {share} the"
        f" {1000 * took_s:,.1f} ms that a call took (mean): a slow client or a busy machine is measured, too"
    )
