"""The report of policies' runs of a trace, simulated or on an engine: made of the runs, and published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...console.terminal import say
from ...variants.workload import Counts, Workload
from ...version import __version__
from .played import played_record, played_text
from .publishing import Outputs
from .report import Run, build, csv_text
from .report_text import cut_off_lines, verdict

if TYPE_CHECKING:
    from rich.console import RenderableType


def report_of(
    finished: Sequence[tuple[Run, Counts]],
    workload: Workload,
    machine: Mapping[str, object],
    engine: Mapping[str, object] | None = None,
    cut_off: Sequence[tuple[Run, Counts]] = (),
) -> dict[str, Any]:
    """The report of runs, one at least; each comes with what it has played. The arguments are those of `build`."""
    _, counts = [*finished, *cut_off][0]
    how = (workload.rate, workload.arrivals, workload.time_scale, workload.shrink)
    played = played_record(workload.trace.path, counts, *how)
    return build(__version__, played, machine, [run for run, _ in finished], engine, [run for run, _ in cut_off])


def publish_report(report: Mapping[str, Any], outputs: Outputs) -> None:
    """Write and print it. Without a run that came to its end there is no CSV, and there are no tables."""
    played, runs = report["trace"], report["runs"]
    if left_out := played["oversized"]:
        everything = played["applications"] + left_out
        say(f"left out: {left_out} of {everything} applications, larger than the engine", err=True)
    lines = [*verdict(report), *cut_off_lines(report)]
    if runs:
        outputs.publish(report, lines, partial(_tables, report), partial(csv_text, report))
    else:
        outputs.publish(report, lines)


def _tables(report: Mapping[str, Any], width: int) -> RenderableType:
    from rich.console import Group

    from .report_tables import tables

    return Group(f"{played_text(report)}\n", tables(report, width))
