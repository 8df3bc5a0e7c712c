"""One run of many: a trace, as chance makes it in one repeat, under one policy on one machine."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ...policies.registry import load_policy
from ...traces.apps import Application
from ...traces.console.exit_codes import BUG, FAILED
from ...traces.errors import TokencakeError, TraceError
from ...traces.format.reader import Trace, read_trace
from ...traces.generate.arrivals import ArrivalProcess
from ...traces.results.metrics import Metrics
from ...traces.variants.vary import AS_IT_IS, Repeats, Variation
from ...traces.variants.workload import Counts, Workload, nothing_to_play
from ..engine.simulate import simulate
from ..machine.machine import Machine

OUR_BUG = "a bug in tokencake, please report: "  # how the error of a run begins that nobody else is to blame for


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What is played. Two runs that differ in nothing but the policy play the same applications."""

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
    """What a run came to: metrics, or why there are none."""

    spec: RunSpec
    metrics: Mapping[str, Any] | None  # as `Metrics.result` has them
    error: str | None
    wall_s: float
    oversized: int = 0  # applications that were left out
    lower: Mapping[str, Any] | None = None  # what no policy can better, as `lower_bounds` has it, if that was asked for


def play(spec: RunSpec) -> Outcome:
    """Play one run. What is wrong with it (`TokencakeError`) becomes the outcome's `error`, one line."""
    began = time.perf_counter()
    try:
        applications, counts = applications_of(spec)
        policy = load_policy(spec.policy, seed=spec.seed + spec.repeat, applications=applications)
        metrics = Metrics()
        simulate(iter(applications), policy, spec.machine, [metrics.add])
    except TokencakeError as error:
        return Outcome(spec, None, " ".join(str(error).split()), time.perf_counter() - began)
    return Outcome(spec, metrics.result(), None, time.perf_counter() - began, counts.oversized)


def attempt(spec: RunSpec) -> Outcome:
    """As `play`; a bug of ours is the outcome's error, too, with the line where it happened: see `OUR_BUG`."""
    try:
        return play(spec)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        return lost(spec, f"{OUR_BUG}{type(error).__name__}: {error}{where}{notes}")


def exit_code_for(errors: Sequence[str]) -> int:
    """The exit code of a command that goes on where a run fails: of the errors of those that did."""
    return BUG if any(error.startswith(OUR_BUG) for error in errors) else FAILED if errors else 0


def lost(spec: RunSpec, why: str) -> Outcome:
    """What a run came to that could not be played."""
    return Outcome(spec, None, " ".join(why.split()), 0.0)


class Written(NamedTuple):
    """A trace, and all that is in it."""

    trace: Trace
    applications: tuple[Application, ...]


def read_once(trace: Path) -> Written:
    """Reads a trace once in a process and its copies, and again if the file was written anew. Errors as `Trace`."""
    return _read(trace, _written(trace))


def applications_of(spec: RunSpec) -> tuple[tuple[Application, ...], Counts]:
    """The applications of a run as they are played, whatever its policy. `TraceError` if none is left."""
    counts = Counts()
    written = _written(spec.trace)
    base = _base(replace(spec, policy="", variation=AS_IT_IS, repeat=0), written)
    counts.applications, counts.calls, counts.oversized = base.counts
    if not base.applications:
        raise TraceError(nothing_to_play(counts))
    return _varied(replace(spec, policy=""), written), counts


class _Base(NamedTuple):
    applications: tuple[Application, ...]
    counts: tuple[int, int, int]


@lru_cache(maxsize=2)
def _read(path: Path, written: tuple[int, int] | None) -> Written:
    trace = read_trace(path)
    return Written(trace, tuple(trace))


@lru_cache(maxsize=8)
def _base(spec: RunSpec, written: tuple[int, int] | None) -> _Base:
    """What runs of one load on one machine have in common."""
    counts = Counts()
    trace, applications = _read(spec.trace, written)
    workload = Workload(trace, spec.seed, spec.rate, spec.arrivals, spec.skip_oversized)
    applications = tuple(workload.play(spec.machine, counts, applications))
    return _Base(applications, (counts.applications, counts.calls, counts.oversized))


@lru_cache(maxsize=8)
def _repeats(spec: RunSpec, written: tuple[int, int] | None) -> Repeats:
    """What all repeats come from."""
    return Repeats(_base(replace(spec, variation=AS_IT_IS), written).applications, spec.variation)


@lru_cache(maxsize=2)
def _varied(spec: RunSpec, written: tuple[int, int] | None) -> tuple[Application, ...]:
    """What a repeat plays, whatever the policy: policies of a repeat follow each other."""
    return _repeats(replace(spec, repeat=0), written).of(spec.seed, spec.repeat)


def _written(trace: Path) -> tuple[int, int] | None:
    """When a file was written last, and how long it is; None if it cannot be told."""
    try:
        status = trace.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def run_specs(spec: RunSpec, policies: tuple[str, ...], repeats: int) -> Iterator[RunSpec]:
    """The run under each policy in each repeat, all policies of a repeat together."""
    for repeat in range(repeats):
        for policy in policies:
            yield replace(spec, policy=policy, repeat=repeat)
