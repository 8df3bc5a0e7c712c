"""The plot of a sweep. The one file that imports matplotlib, which is an extra: `pip install 'tokencake[plot]'`.

One row of panels for each axis that has numbers: the metric against that axis, a panel for each combination of the
others. Policies differ by marker and by line, so that a print without colours shows as much. The same report gives the
same file, byte for byte, with the same matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

from ....traces.arithmetic import div_ceil
from ....traces.errors import TokencakeError
from ....traces.files.escaping import one_line
from .grid import QPS, Axis, Value, written

ENDINGS = (".png", ".svg", ".pdf")
MOST_PANELS = 4  # side by side; of more combinations these many are shown, the first and the last among them
WIDE = 8.0  # a range whose end is so many times its start is drawn on a logarithmic axis

# Dark enough for paper; the lightness differs, too. After Okabe and Ito's palette for the colour-blind.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#8a3f6d", "#7f7f7f")
LINES = ("solid", "dashed", "dashdot", "dotted", (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5)))
MARKERS = "osD^vXP<>*"
STYLE: Mapping[str, object] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.5,
    "grid.linewidth": 0.5,
    "savefig.dpi": 150,
    "svg.hashsalt": "tokencake",  # else ids are drawn anew each time
    "text.parse_math": False,  # two $ in a name are no formula
}
METADATA: Mapping[str, Mapping[str, None]] = {  # what would say when and by whom
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

METRIC_LABELS = {
    "app_latency_s": "application latency",
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "queue_s": "queueing",
    "makespan_s": "makespan",
    "prefill_tokens.computed": "prompt tokens computed",
    "recomputed_tokens": "recomputed tokens",
    "effective_utilisation": "effective utilisation",
}
AXIS_LABELS = {
    QPS: "load (applications a second)",
    "block_tokens": "tokens a block",
    "host_gib": "host memory (GiB)",
    "kv_bytes_per_token": "KV cache of a token (bytes)",
    "link_gbps": "link (GB/s)",
    "max_running": "calls in a step",
    "step_budget_tokens": "tokens in a step",
}


def check_plot(path: Path, axes: Sequence[Axis]) -> None:
    """Finds what would keep a plot from being drawn at the end. Raises TokencakeError, in one line."""
    if path.suffix.lower() not in ENDINGS:
        raise TokencakeError(f"--plot {path}: expected a file that ends in {', '.join(ENDINGS)}")
    if not axes:
        raise TokencakeError("--plot: expected something that is swept: --rate or --set with several values")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise TokencakeError("--plot: matplotlib is not installed: pip install 'tokencake[plot]'") from None
    return matplotlib


def plotted(report: Mapping[str, Any], ending: str) -> bytes:
    """The plot of a report of `tokencake.sweep/1`, as a file with this ending."""
    matplotlib = _matplotlib()
    content = BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own settings are
        matplotlib.rcParams.update(STYLE)
        figure = _figure(report)
        kind = ending.lower()
        figure.savefig(content, format=kind[1:], metadata=dict(METADATA[kind]), bbox_inches="tight")
    return content.getvalue()


class Panel(NamedTuple):
    """The points that differ in one axis alone."""

    axis: Axis
    fixed: Mapping[str, Value]

    def title(self) -> str:
        return ", ".join(f"{key} = {written(value)}" for key, value in self.fixed.items())


def rows_of(axes: Sequence[Axis]) -> list[list[Panel]]:
    """A row for each axis of numbers; where there is none, for each axis."""
    along = [axis for axis in axes if _numeric(axis)] or list(axes)
    return [_spread([Panel(axis, fixed) for fixed in _combinations(axes, axis)]) for axis in along]


def _numeric(axis: Axis) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in axis.values)


def _combinations(axes: Sequence[Axis], without: Axis) -> Iterator[dict[str, Value]]:
    others = [axis for axis in axes if axis.key != without.key]
    for values in product(*(axis.values for axis in others)):
        yield {axis.key: value for axis, value in zip(others, values, strict=True)}


def _spread(panels: list[Panel]) -> list[Panel]:
    """At most so many, evenly spread."""
    if len(panels) <= MOST_PANELS:
        return panels
    return [panels[index * (len(panels) - 1) // (MOST_PANELS - 1)] for index in range(MOST_PANELS)]


class Series(NamedTuple):
    """A policy's line in a panel: where it has a mean, and how far its interval goes below and above."""

    at: list[Value]
    means: list[float]
    below: list[float]
    above: list[float]


def series(report: Mapping[str, Any], panel: Panel, index: int) -> Series:
    """The line of the policy at `index`."""
    line = Series([], [], [], [])
    for point in report["points"]:
        found = point["policies"][index]["metrics"][report["metric"]]
        if found["mean"] is None or any(point["at"][key] != value for key, value in panel.fixed.items()):
            continue
        low, high = found["interval"] or (found["mean"], found["mean"])
        line.at.append(point["at"][panel.axis.key])
        line.means.append(found["mean"])
        line.below.append(max(0.0, found["mean"] - low))
        line.above.append(max(0.0, high - found["mean"]))
    return line


def _figure(report: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure

    axes = [Axis(axis["key"], tuple(axis["values"])) for axis in report["axes"]]
    rows = rows_of(axes)
    columns = max(map(len, rows))
    figure = Figure(figsize=(max(5.6, 3.3 * columns), 3.1 * len(rows) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    for row, panels in zip(grid, rows, strict=True):
        for place, panel in zip(row, [*panels, *[None] * (columns - len(panels))], strict=True):
            if panel is None:
                place.set_axis_off()
            else:
                _draw(place, report, panel)
        row[0].set_ylabel(metric_label(report["metric"]))
        row[0].set_ylim(bottom=0)  # of the whole row, and once all of it is drawn
    figure.suptitle(_title(report), fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * columns), handlelength=4)
    return figure


def _title(report: Mapping[str, Any]) -> str:
    """What was played, and what the bars are."""
    repeats = report["repeats"]
    sure = f"means of {repeats} repeats, {100 * report['confidence']:g} % intervals" if repeats > 1 else "one repeat"
    return one_line(f"{Path(report['trace']['path']).name} on {report['machine']['name']}: {sure}")


def _draw(place: Any, report: Mapping[str, Any], panel: Panel) -> None:
    numeric = _numeric(panel.axis)
    policies = report["points"][0]["policies"]
    for index, (policy, colour, line, marker) in enumerate(
        zip(policies, cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
    ):
        found = series(report, panel, index)
        place.errorbar(
            found.at if numeric else [panel.axis.values.index(value) for value in found.at],
            found.means,
            yerr=(found.below, found.above),
            label=_name(policy),
            color=colour,
            linestyle=line,
            linewidth=1.3,
            marker=marker,
            markersize=5,
            markerfacecolor="white" if index % 2 or policy["bound"] else colour,
            capsize=2.5,
            elinewidth=0.8,
        )
    place.set_title(panel.title())
    place.set_xlabel(axis_label(panel.axis.key, report))
    if not numeric:
        place.set_xticks(range(len(panel.axis.values)), [written(value) for value in panel.axis.values])
    elif 0 < WIDE * min(panel.axis.values) <= max(panel.axis.values):  # type: ignore[operator]
        _logarithmic(place, panel.axis)


def _name(policy: Mapping[str, Any]) -> str:
    """A legend leaves out what begins with an underscore, so it does not."""
    name = one_line(policy["policy"]) + (" (bound)" if policy["bound"] else "")
    return f" {name}" if name.startswith("_") else name


def _logarithmic(place: Any, axis: Axis) -> None:
    """Ticks at the values themselves, if they are few enough to be read."""
    place.set_xscale("log")
    place.minorticks_off()
    step = div_ceil(len(axis.values), 6)
    place.set_xticks(axis.values[::step], [f"{value:,}" for value in axis.values[::step]])


def metric_label(metric: str) -> str:
    """`app_latency_s.p95` is "application latency, p95 (s)"."""
    name, _, part = metric.partition(".")
    if metric in METRIC_LABELS:
        return METRIC_LABELS[metric] + _unit(name)
    return f"{METRIC_LABELS.get(name, name)}{f', {part}' if part else ''}{_unit(name)}"


def _unit(name: str) -> str:
    if name.endswith("_block_s"):
        return " (block-s)"
    return " (s)" if name.endswith("_s") else " (bytes)" if name.endswith("_bytes") else ""


def axis_label(key: str, report: Mapping[str, Any]) -> str:
    """What is swept, with its unit. Blocks say how much memory they are, if all are of one size."""
    if key == "gpu_blocks":
        sizes = ("block_tokens", "kv_bytes_per_token")
        if any(axis["key"] in sizes for axis in report["axes"]):
            return "GPU blocks"
        gib = 1000 * math.prod(report["machine"][size] for size in sizes) / 2**30
        return f"GPU blocks (1,000 are {gib:.3g} GiB)"
    name = key.removeprefix("beliefs.")
    believed = "believed " if name != key else ""
    return believed + AXIS_LABELS.get(name, f"{name}{_unit(name)}")
