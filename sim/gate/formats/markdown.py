"""A check's report in markdown, for `$GITHUB_STEP_SUMMARY` or a comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....traces.files.escaping import for_markdown, for_markdown_block, for_markdown_code
from ....traces.results.metric import shown
from .words import about, allowed, budget, change, details, headline, interval, missing_file, next_step, summary


def markdown(report: Mapping[str, Any]) -> str:
    """A heading, a table of the cases, and a section for each that is not as it was."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"## tokencake check: {'good' if report['good'] else 'failed'}"
    yield ""
    yield headline(report)
    yield ""
    if over := budget(report):
        yield from (f"**{for_markdown(over)}**", "")
    yield from ("| | case | run | result |", "|---|---|---|---|")
    for case in report["cases"]:
        mark = "❌" if case["fails"] else "✅" if case["state"] == "good" else "⚠️"
        result = "; ".join(filter(None, (summary(case), missing_file(case))))
        yield f"| {mark} | {for_markdown(case['name'])} | {for_markdown(about(case))} | {for_markdown(result)} |"
    for case in report["cases"]:
        if case["state"] != "good":
            yield from _section(case)
    if step := next_step(report):
        yield from ("", f"`{for_markdown_code(step)}`")


def _section(case: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {for_markdown(case['name'])}: {case['state']}", "")
    if case["error"] is not None:
        yield for_markdown(case["error"])
    if lines := details(case):
        yield from ("```", *map(for_markdown_block, lines), "```", "")
    if case["metrics"]:
        yield "| metric | against | was | is | change | allowed | |"
        yield "|---|---|--:|--:|--:|--:|---|"
        yield from (_row(one) for one in case["metrics"])


def _row(one: Mapping[str, Any]) -> str:
    was, now = (shown(one["metric"], one[key]) for key in ("base", "value"))
    verdict = one["verdict"] if one["verdict"] == "good" else f"**{one['verdict']}**"
    cells = (
        f"`{for_markdown_code(one['metric'])}`",
        for_markdown(one["against"]),
        was,
        now,
        change(one),
        allowed(one),
        verdict + interval(one),
    )
    return f"| {' | '.join(cells)} |"
