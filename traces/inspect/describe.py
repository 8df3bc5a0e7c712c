"""What is in a trace, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from .inspection import Inspection, Summary

MOST_TYPES = 12  # agent types that are named; the rest is counted


def describe(inspection: Inspection) -> Iterator[str]:
    """A line for each thing worth knowing: its name, and the figures."""
    lines = list(_lines(inspection))
    width = max(len(label) for label, _ in lines)
    for label, figures in lines:
        yield f"{label:<{width}}  {figures}"


def _lines(seen: Inspection) -> Iterator[tuple[str, str]]:
    yield "applications", f"{seen.applications:,}, arriving over {seen.span_s:,.1f} s"
    yield "calls", f"{seen.calls:,} of {seen.agents:,} agents; an application: {_summary(seen.calls_an_application)}"
    yield "prompt tokens", f"{seen.total_prompt_tokens:,}; a call: {_summary(seen.prompt_tokens)}"
    yield "output tokens", f"{seen.total_output_tokens:,}; a call: {_summary(seen.output_tokens)}"
    yield "peak context", f"{seen.peak_context_tokens:,} tokens"
    inside, across = f"{seen.shared_inside:.1%}", f"{seen.shared_across:.1%}"
    yield "prefix sharing", f"{inside} of prompt tokens inside applications, {across} more across them"
    yield "agent types", _types(seen.agent_types)
    for kind, gaps in seen.tool_gaps.items():
        yield f"tool {kind}", f"{gaps.count:,}, {gaps.declared_share:.0%} declared; s: {_summary(gaps.duration_s)}"
    if seen.pauses:
        yield "pauses", f"{seen.pauses:,}; s: {_summary(seen.pauses_s)}"


def _summary(summary: Summary) -> str:
    return " ".join(f"{name} {_figure(summary[name])}" for name in ("mean", "p50", "p90", "p99", "max"))


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.2f}"


def _types(calls: dict[str, int]) -> str:
    frequent = sorted(calls.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} {count:,}" for name, count in frequent[:MOST_TYPES])
    return f"{named}, and {len(frequent) - MOST_TYPES} more" if len(frequent) > MOST_TYPES else named or "-"
