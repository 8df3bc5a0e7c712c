"""Plays runs on processes beside this one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace

from ...policies.registry import owner
from .processes.agenda import Agenda
from .processes.workers import Workers
from .run import Outcome, RunSpec, attempt, lost

MANY_RUNS = 10_000  # more are announced


def run_on_workers(
    specs: Iterable[RunSpec],
    count: int,
    policy_timeout_s: float | None = None,
    wanted: Callable[[RunSpec], bool] = lambda spec: True,
    act: Callable[[RunSpec], Outcome] = attempt,
) -> Generator[Outcome, None, None]:
    """On so many processes, even if it is one, so that what kills a process is a failed run. As `Workers.play`."""
    pool = Workers(count, policy_timeout_s, lambda spec: owner(spec.policy))
    try:
        for _, outcome in pool.play(act, agenda_of(specs, wanted), lost):
            yield outcome
    finally:
        pool.end()


def agenda_of(specs: Iterable[RunSpec], wanted: Callable[[RunSpec], bool] = lambda spec: True) -> Agenda[RunSpec]:
    """Runs that follow each other and play the same applications are played by the same process."""
    return Agenda(specs, lambda spec: replace(spec, policy=""), lambda spec: spec.policy, wanted)


def announced(runs: int, first: RunSpec, workers: int, policy_timeout_s: float | None = None) -> str | None:
    """How many runs there are and how long they take, if they are many. Plays the first for that, in a process."""
    if runs <= MANY_RUNS:
        return None
    (outcome,) = run_on_workers([first], 1, policy_timeout_s)
    hours, minutes = divmod(round(outcome.wall_s * runs / workers / 60), 60)
    return f"{runs:,} runs; the first took {outcome.wall_s:.2g} s: about {hours} h {minutes} min on {workers} processes"
