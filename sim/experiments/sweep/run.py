"""The work of `tokencake sweep`: what is checked before it, said during it, and written after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ....policies.registry import DEFAULT_POLICIES
from ....traces.console.progress import Bar, progress_bar
from ....traces.console.terminal import say
from ....traces.files.json_file import json_text
from ....traces.files.outputs import Output, check_outputs, outputs_of, write_whole
from ....traces.files.whole_file import STANDARD_OUTPUT
from ....traces.results.metric import check_judged
from ....traces.variants.vary import EVERYTHING, parse_variation
from ....traces.variants.workload import WorkloadOptions
from ...machine.files import DEFAULT_MACHINE, inputs_of
from ..executors import announced
from ..processes.workers import cores
from ..run import Outcome, RunSpec, exit_code_for
from .grid import Point, make_grid
from .plan import Play, Progress, Sweep, play_sweep, players
from .plot import check_plot, plotted
from .report import build, csv_text, point_line, problems
from .result_log import ResultLog

LOG_ENDING = ".cells.jsonl"

Say = Callable[[str], None]


class Files(NamedTuple):
    """Where a sweep's results go."""

    csv: Path
    json: Path | None = None
    plot: Path | None = None

    @property
    def log(self) -> Path | None:
        """What is played again only if something is different. None: standard output has no place for it."""
        return None if str(self.csv) == STANDARD_OUTPUT else self.csv.with_name(self.csv.name + LOG_ENDING)

    @property
    def to_standard_output(self) -> bool:
        return STANDARD_OUTPUT in (str(self.csv), str(self.json))


class SweepOptions(NamedTuple):
    """As they are given."""

    rates: str | None = None  # as `make_grid` takes them
    settings: tuple[str, ...] = ()
    machine_name: str | None = None
    specs: tuple[str, ...] = ()  # policies as `load_policy` takes them; none: `DEFAULT_POLICIES`
    repeat: int = 5
    vary: str | None = None  # as `parse_variation` takes it; None: everything
    metric: str = "app_latency_s.mean"
    policy_timeout: float | None = None
    workers: int | None = None
    on_cluster: bool = False
    ray_address: str | None = None
    fresh: bool = False  # whether what an earlier sweep left is played again
    quiet: bool = False

    def sweep(self, trace: Path, workload: WorkloadOptions) -> Sweep:
        """What is played. Errors as `parse_variation` and `make_grid`."""
        variation = EVERYTHING if self.vary is None else parse_variation(self.vary)
        grid = make_grid(self.rates, self.settings, self.machine_name or DEFAULT_MACHINE)
        policies = self.specs or DEFAULT_POLICIES
        how = (workload.seed, workload.arrivals, workload.skip_oversized)
        return Sweep(trace, grid, policies, self.repeat, variation, *how, self.policy_timeout)


def run_sweep(
    trace: Path, options: SweepOptions, workload: WorkloadOptions, files: Files, progress: bool = False
) -> int:
    """Play the trace at each point of a grid, and write what is there, also at an interrupt.

    The rates are the grid's, whatever the workload's is. The exit code is 1 if runs failed. `progress`: shown even if
    stderr is no terminal. Raises TokencakeError for whatever a user can mend, before the work begins.
    """
    play = players(options.on_cluster, options.ray_address, options.workers, options.policy_timeout)
    sweep = options.sweep(trace, workload)
    check(sweep, files, options.metric, options.machine_name)
    # Before a bar takes over what is written to a terminal.
    said_to = sys.stderr if files.to_standard_output else None if sys.stdout.isatty() else sys.stdout
    with progress_bar(progress, options.quiet) as bar:
        failed = run(
            sweep,
            files,
            options.metric,
            play,
            options.fresh,
            lambda line: None if options.quiet else say(line, file=said_to),
            lambda line: say(line, err=True),
            bar,
        )
    return exit_code_for(failed)


class Watcher(Progress):
    """Says a line a point, and a line for each new way in which a cell fails."""

    def __init__(self, sweep: Sweep, log: ResultLog, metric: str, say: Say, warn: Say, bar: Bar) -> None:
        self._sweep, self._log, self._metric = sweep, log, metric
        self._say, self._warn, self._bar = say, warn, bar
        self._warned: set[tuple[Point, str, str]] = set()

    def begin(self, todo: Sequence[RunSpec]) -> None:
        if line := announced(len(todo), todo[0], cores()):
            self._warn(line)

    def cell(self, point: Point, outcome: Outcome, done: int) -> None:
        cell, error = outcome.spec, outcome.error
        if error is not None and (point, cell.policy, error) not in self._warned:
            self._warned.add((point, cell.policy, error))
            self._warn(f"failed: {point.label()}: {cell.policy}, repeat {cell.repeat}: {error}")
        self._bar("playing", done, self._sweep.count(), point.label())

    def point(self, point: Point) -> None:
        self._say(point_line(self._sweep, self._log.results, point, self._metric))


def check(sweep: Sweep, files: Files, metric: str, machine_name: str | None = None) -> None:
    """Finds whatever can be found before the first cell. Raises TokencakeError, in one line."""
    check_judged(metric)
    if files.plot is not None:
        check_plot(files.plot, sweep.grid.axes)
    outputs = [Output("-o", file) for file in (files.csv, files.log) if file is not None]
    outputs += outputs_of(json=files.json, plot=files.plot)
    check_outputs(outputs, inputs_of(sweep.trace, machine=machine_name, policies=sweep.policies))
    sweep.check()


def run(sweep: Sweep, files: Files, metric: str, play: Play, fresh: bool, say: Say, warn: Say, bar: Bar) -> list[str]:
    """Plays what is missing and writes what is there, also at an interrupt. Returns the errors of failed cells."""
    with (
        TemporaryDirectory(prefix="tokencake-") as nowhere,
        closing(ResultLog(files.log or Path(nowhere) / "cells", sweep.identity(), fresh)) as log,
    ):
        if log.results:
            say(f"{files.log}: {len(log.results)} cells are there from before")
        try:
            play_sweep(sweep, log, play, Watcher(sweep, log, metric, say, warn, bar))
        finally:
            failed = _publish(sweep, log, files, metric, warn) if log.results else []
    return failed


def _publish(sweep: Sweep, log: ResultLog, files: Files, metric: str, warn: Say) -> list[str]:
    report = build(sweep, log.results, metric)
    write_whole(files.csv, csv_text(report))
    if files.json is not None:
        write_whole(files.json, json_text(report))
    if files.plot is not None:
        write_whole(files.plot, plotted(report, files.plot.suffix))
    for line in problems(report):
        warn(line)
    return [str(failure["error"]) for failure in report["failures"]]
