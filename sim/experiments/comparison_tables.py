"""A comparison as tables: the policies ranked by the metric, and what the other metrics say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...traces.results.metric import shown
from ...traces.results.reports.played import played_text
from .comparison_text import BOUND, percent, verdict_of

NAME_WIDTH, CHANGE_WIDTH, GAP = 22, 14, 1  # characters: longer names are folded where there is no room
SAME = "same"  # undecided, since all that the interval leaves is within the margin
STYLES = {"wins": "green", "loses": "red", "undecided": "", "bound": "dim"}


def tables(report: Mapping[str, Any], width: int) -> Group:
    """The policies, best first; then what the other metrics say of them, in the same order.

    Where not all metrics fit side by side, they come in parts.
    """
    names = [_name(row) for row in report["policies"]]
    fitting = max(1, (width - _name_width(names) - GAP) // (CHANGE_WIDTH + GAP))
    also = report["also"]
    parts = [also[start : start + fitting] for start in range(0, len(also), fitting)]
    return Group(
        f"{played_text(report)}\n",
        f"by {report['metric']}:",
        Text(""),
        *(part for table in _ranking(report, names, width) for part in (table, Text(""))),
        *(_others(report, part, names) for part in parts),
    )


def _ranking(report: Mapping[str, Any], names: Sequence[str], width: int) -> Iterator[Table]:
    """In parts where not all columns fit beside the names."""
    metric, first = report["metric"], report["first"]
    gains = any("oracle_gain" in row for row in report["policies"])
    titles = ("mean", "", f"vs {first}", "interval", *(("gain",) if gains else ()), "verdict")
    rows: list[tuple[str | Text, ...]] = []
    for row in report["policies"]:
        gain = (_gain(row["oracle_gain"]),) if gains else ()
        rows.append((_name(row), *_mean(row, metric), *_against(row, first), *gain, _ranked(report, row)))
    if bound := report.get("lower_bound"):
        nothing = ("",) * (len(titles) - 3)
        rows.append(("lower bound" + BOUND, *_mean(bound, metric), *nothing, Text("bound", "dim")))
    widths = [max(len(title), *(len(cells[at]) for cells in rows)) for at, title in enumerate(titles, 1)]
    for part in _fitting(widths, names, width):
        table = _table("policy", (), names)
        for at in part:
            table.add_column(titles[at], justify="left" if at == len(titles) - 1 else "right", no_wrap=True)
        for cells in rows:
            table.add_row(cells[0], *(cells[at + 1] for at in part))
        yield table


def _fitting(widths: Sequence[int], names: Sequence[str], width: int) -> Iterator[list[int]]:
    """The columns of each part: as many as fit, one at least."""
    part: list[int] = []
    left = room = width - _name_width(names)
    for at, needed in enumerate(widths):
        if part and needed + GAP > left:
            yield part
            part, left = [], room
        part.append(at)
        left -= needed + GAP
    yield part


def _ranked(report: Mapping[str, Any], row: Mapping[str, Any]) -> Text:
    """What is said of a policy."""
    word = "" if row["policy"] == report["first"] else verdict_of(row)
    same = word == "undecided" and report["repeats"] > 1 and _same(row, report["margin"])
    return Text(SAME if same else word, style=STYLES.get(word, ""))


def _others(report: Mapping[str, Any], part: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Changes against the first policy, a column for each of some other metrics."""
    table = _table("also", [judged["metric"].replace(".", "\n") for judged in part], names)
    rows = [{row["policy"]: row for row in judged["policies"]} for judged in part]
    for row in report["policies"]:
        table.add_row(_name(row), *(_change(each[row["policy"]], report["first"]) for each in rows))
    table.add_row("")
    return table


def _table(what: str, titles: Sequence[str], names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(what, overflow="fold", vertical="top", min_width=_name_width(names))
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")
    return table


def _name_width(names: Sequence[str]) -> int:
    return min(NAME_WIDTH, max(map(len, names)))


def _name(row: Mapping[str, Any]) -> str:
    return str(row["policy"]) + (BOUND if row["bound"] else "")


def _mean(row: Mapping[str, Any], metric: str) -> tuple[str, str]:
    if row["mean"] is None:
        return "-", ""
    low, high = row["interval"]
    half = (high - low) / 2 / row["mean"] if row["mean"] else 0.0
    return shown(metric, row["mean"]), f"±{100 * half:.1f}%"


def _against(row: Mapping[str, Any], first: str) -> tuple[str, str]:
    against = row["against_first"]
    if row["policy"] == first or against is None or against["ratio"] is None:
        return "-", ""
    return percent(against["ratio"]), percents(against["interval"])


def _gain(gain: Mapping[str, Any] | None) -> str:
    return "-" if gain is None else f"{100 * gain['share']:.0f}%"


def _change(row: Mapping[str, Any], first: str) -> Text:
    against = row["against_first"]
    if row["policy"] == first or against is None or against["ratio"] is None:
        return Text("-")
    word = verdict_of(row)
    said = f" {word}" if word in ("wins", "loses") else ""
    return Text(percent(against["ratio"]) + said, style=STYLES[word])


def _same(row: Mapping[str, Any], margin: float) -> bool:
    """Whether all ratios that the interval leaves lie within the margin."""
    low, high = row["against_first"]["interval"] if row["against_first"] else (None, None)
    return low is not None and high is not None and 1 - margin <= low and high <= 1 + margin


def percents(interval: Sequence[float | None]) -> str:
    low, high = interval
    return "" if low is None or high is None else f"[{100 * (low - 1):+.1f}, {100 * (high - 1):+.1f}]"
