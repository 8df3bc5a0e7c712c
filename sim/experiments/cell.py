"""One run of many: a trace, as chance makes it in one repeat, under one policy on one machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ...policies.registry import load_policy
from ...traces.apps import Application
from ...traces.errors import TokencakeError, TraceError
from ...traces.format.reader import read_trace
from ...traces.generate.arrivals import ArrivalProcess
from ...traces.results.metrics import Metrics
from ...traces.variants.vary import AS_IT_IS, Variation, vary
from ...traces.variants.workload import Counts, Workload, nothing_to_play
from ..engine.simulate import simulate
from ..machine.machine import Machine


@dataclass(frozen=True, slots=True)
class Cell:
    """What is played. Two cells that differ in nothing but the policy play the same applications."""

    trace: Path
    machine: Machine
    policy: str  # as `load_policy` takes it
    variation: Variation = AS_IT_IS
    repeat: int = 0  # which draw of what varies
    seed: int = 0  # of all draws, and of policies that take one
    rate: float | None = None  # applications a second instead of the arrivals that the trace has
    arrivals: ArrivalProcess = "even"
    skip_oversized: bool = False


class Outcome(NamedTuple):
    """What a cell came to: metrics, or why there are none."""

    cell: Cell
    metrics: Mapping[str, Any] | None  # as `Metrics.result` has them
    error: str | None
    wall_s: float
    oversized: int = 0  # applications that were left out


def play(cell: Cell) -> Outcome:
    """Run one cell. What is wrong with it (`TokencakeError`) becomes the outcome's `error`, one line."""
    began = time.perf_counter()
    try:
        applications, counts = played(cell)
        policy = load_policy(cell.policy, seed=cell.seed + cell.repeat, applications=applications)
        metrics = Metrics()
        simulate(iter(applications), policy, cell.machine, [metrics.add])
    except TokencakeError as error:
        return Outcome(cell, None, " ".join(str(error).split()), time.perf_counter() - began)
    return Outcome(cell, metrics.result(), None, time.perf_counter() - began, counts.oversized)


def played(cell: Cell) -> tuple[tuple[Application, ...], Counts]:
    """The applications of a cell as they are played, whatever its policy. `TraceError` if none is left."""
    counts = Counts()
    written = _written(cell.trace)
    base = _base(replace(cell, policy="", variation=AS_IT_IS, repeat=0), written)
    counts.applications, counts.calls, counts.oversized = base.counts
    if not base.applications:
        raise TraceError(nothing_to_play(counts))
    return _varied(replace(cell, policy=""), written), counts


class _Base(NamedTuple):
    applications: tuple[Application, ...]
    counts: tuple[int, int, int]


@lru_cache(maxsize=8)
def _base(cell: Cell, written: tuple[int, int] | None) -> _Base:
    """What cells have in common, read once a process, and again if the file was `written` anew."""
    counts = Counts()
    workload = Workload(read_trace(cell.trace), cell.seed, cell.rate, cell.arrivals, cell.skip_oversized)
    applications = tuple(workload.play(cell.machine, counts))
    return _Base(applications, (counts.applications, counts.calls, counts.oversized))


@lru_cache(maxsize=2)
def _varied(cell: Cell, written: tuple[int, int] | None) -> tuple[Application, ...]:
    """What a repeat plays, whatever the policy: policies of a repeat follow each other."""
    base = _base(replace(cell, variation=AS_IT_IS, repeat=0), written)
    return vary(base.applications, cell.variation, cell.seed, cell.repeat)


def _written(trace: Path) -> tuple[int, int] | None:
    """When a file was written last, and how long it is; None if it cannot be told."""
    try:
        status = trace.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def cells(cell: Cell, policies: tuple[str, ...], repeats: int) -> Iterator[Cell]:
    """The cell under each policy in each repeat, all policies of a repeat together."""
    for repeat in range(repeats):
        for policy in policies:
            yield replace(cell, policy=policy, repeat=repeat)
