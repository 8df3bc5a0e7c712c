"""New baselines, and what of the old ones they change."""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum

from ...traces.errors import TokencakeError
from ...traces.results.metric import shown
from .baseline import (
    NOTHING_WRITTEN,
    Baseline,
    baseline_file,
    check_baseline_files,
    decisions_file,
    old_baseline,
    write_baselines,
)
from .check import Progress, causes_of, run_suite
from .suite.suite import Case, Suite


def update_suite(suite: Suite, workers: int | None = None, progress: Progress | None = None) -> list[str]:
    """Runs all cases, and then writes all of their baselines. What changed, a line or more a case.

    Raises TokencakeError if a case cannot be run or a file cannot be written: then the baselines are as they were.
    """
    for case in suite.cases:
        check_baseline_files(suite, case)
    try:
        came = run_suite(suite, workers, progress)
        lines = [line for case, new in came for line in _changes(suite, case, new)]
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(NOTHING_WRITTEN)
        raise
    write_baselines(suite, came)
    return lines


def _changes(suite: Suite, case: Case, new: Baseline) -> Iterator[str]:
    if not baseline_file(suite, case).exists():
        yield f"{case.name}: new"
        return
    try:
        old = old_baseline(suite, case)
    except TokencakeError as error:
        yield f"{case.name}: replaced ({error})"
        return
    differences = [*causes_of(old.inputs, new.inputs), *_behaviour(old, new), *_metrics(case, old, new)]
    if old.decisions is None:
        differences.append(f"{decisions_file(suite, case)} was missing")
    yield f"{case.name}: {'changed' if differences else 'as it was'}"
    yield from (f"  {line}" for line in differences)


def _behaviour(old: Baseline, new: Baseline) -> Iterator[str]:
    if any(one.events != other.events for one, other in zip(old.digests, new.digests, strict=True)):
        yield "behaviour changed"


def _metrics(case: Case, old: Baseline, new: Baseline) -> Iterator[str]:
    """Those that are gated, one by one; the others are in the files."""
    gated = {gate.metric for gate in case.gates}
    others = 0
    for path in new.metrics:
        before = old.metrics.get(path, ())
        if before == new.metrics[path]:
            continue
        was, now = _mean(before), _mean(new.metrics[path])
        if path not in gated:
            others += 1
            continue
        percent = f" ({100 * (now / was - 1):+.1f}%)" if was and now is not None else ""
        repeats = "" if len(new.digests) == 1 or was != now else ", otherwise in some repeats"
        yield f"{path}: {shown(path, was)} -> {shown(path, now)}{percent}{repeats}"
    if others:
        yield f"and {others} metric{'' if others == 1 else 's'} that {'is' if others == 1 else 'are'} not gated"


def _mean(values: tuple[float | None, ...]) -> float | None:
    """Of the repeats that have a value."""
    there = [value for value in values if value is not None]
    return fsum(there) / len(there) if there else None
