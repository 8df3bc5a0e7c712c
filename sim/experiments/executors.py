"""Who plays the runs: processes beside this one, or what else can be handed runs. The same call for all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice
from typing import TypeVar

from ...policies.registry import owner
from .run import Outcome, RunSpec, attempt, lost
from .workers import Died, Workers

Result = TypeVar("Result")

MANY_RUNS = 10_000  # more are announced
AHEAD = 2  # runs a worker that are handed out before their turn, so that no worker waits


def run_on_workers(
    specs: Iterable[RunSpec], count: int, policy_timeout_s: float | None = None
) -> Generator[Outcome, None, None]:
    """On so many processes, even if it is one, so that what kills a process is a failed run."""
    pool = Workers(count, policy_timeout_s, lambda spec: owner(spec.policy))
    try:
        yield from run_on(pool, attempt, specs, count, lost)
    finally:
        pool.shutdown(wait=False)


def run_on(
    pool: Executor,
    act: Callable[[RunSpec], Result],
    specs: Iterable[RunSpec],
    workers: int,
    lost: Callable[[RunSpec, str], Result],
) -> Iterator[Result]:
    """Hand runs to the pool, never many more than it can work on, and give back what is finished.

    `lost` makes a result for a run whose process has died, and why.
    """
    coming = iter(specs)
    waiting: dict[Future[Result], RunSpec] = {pool.submit(act, spec): spec for spec in islice(coming, AHEAD * workers)}
    while waiting:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            spec = waiting.pop(future)
            for following in islice(coming, 1):
                waiting[pool.submit(act, following)] = following
            try:
                yield future.result()
            except Died as died:
                yield lost(spec, str(died))


def announced(runs: int, first: RunSpec, workers: int, policy_timeout_s: float | None = None) -> str | None:
    """How many runs there are and how long they take, if they are many. Plays the first for that, in a process."""
    if runs <= MANY_RUNS:
        return None
    (outcome,) = run_on_workers([first], 1, policy_timeout_s)
    hours, minutes = divmod(round(outcome.wall_s * runs / workers / 60), 60)
    return f"{runs:,} runs; the first took {outcome.wall_s:.2g} s: about {hours} h {minutes} min on {workers} processes"
