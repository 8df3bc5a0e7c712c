"""A check's report for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ....traces.console.printing import printing
from ....traces.results.metric import shown
from ..check import FAILING
from .words import about, allowed, budget, change, details, findings, headline, name, next_step, sentence, summary

STYLES = {
    "failed": "red",
    "regressed": "red",
    "uncertain": "yellow",
    "improved": "cyan",
    "changed": "yellow",
    "good": "green",
}
STATE_WIDTH = 10  # characters
INDENT = 2
UNLIMITED = 10_000


def print_text(report: Mapping[str, Any], console: Console) -> None:
    """A line a case, and what is to be said of it below. Long lines are the terminal's to wrap."""
    for case in report["cases"]:
        for part in _case(case, console):
            console.print(part, soft_wrap=isinstance(part, Text))
    console.print()
    for line in (headline(report), budget(report), next_step(report)):
        if line is not None:
            console.print(line, soft_wrap=True)


def plain_text(report: Mapping[str, Any], width: int) -> str:
    """The same without colours, for a file."""
    file = io.StringIO()  # which holds every sign, whatever a terminal does
    print_text(report, printing(file=file, width=width, no_color=True, force_terminal=False))
    return file.getvalue()


def _case(case: Mapping[str, Any], console: Console) -> Iterator[Text | Padding]:
    first = Text(f"{case['state']:<{STATE_WIDTH}}", style=STYLES[case["state"]])
    first.append(case["name"], style="bold default").append(f"  {about(case)}", style="not bold default")
    if case["fails"] and case["state"] not in FAILING:
        first.append("  (fails: --strict)", style="not bold red")
    yield first
    told = findings(case)
    for line in details(case) if told or case["state"] == "good" else [*details(case), summary(case)]:
        yield Text(f"{'':{INDENT}}{line}")
    if not told:
        return
    table = Padding(_table(told), (0, 0, 0, INDENT), expand=False)
    if Measurement.get(console, console.options.update(max_width=UNLIMITED), table).maximum <= console.width:
        yield table
    else:  # squeezed, it would lose figures
        yield from (Text(f"{'':{INDENT}}{sentence(one)}") for one in told)


def _table(told: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("metric", no_wrap=True)
    for title in ("was", "is", "change", "allowed"):
        table.add_column(title, justify="right")
    table.add_column("")
    for one in told:
        values = (shown(one["metric"], one[key]) for key in ("base", "value"))
        verdict = Text(one["verdict"], style=STYLES[one["verdict"]])
        table.add_row(name(one), *values, change(one), allowed(one), verdict)
    return table
