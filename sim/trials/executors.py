"""Who plays the cells: this process, processes beside it, or what else can be handed cells. The same call for all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice

from .attempt import attempt
from .cell import Cell, Outcome
from .workers import Workers, cores

AHEAD = 2  # cells a worker that are handed out before their turn, so that no worker waits


def run_here(cells: Iterable[Cell]) -> Iterator[Outcome]:
    """One after another, in order."""
    return map(attempt, cells)


def run_in_processes(cells: Iterable[Cell], workers: int | None = None) -> Iterator[Outcome]:
    """On `workers` processes (None: as many as there are cores), in the order in which they finish."""
    count = workers or cores()
    return run_here(cells) if count == 1 else run_on_workers(cells, count)


def run_on_workers(cells: Iterable[Cell], count: int) -> Generator[Outcome, None, None]:
    """On so many processes, even if it is one, so that what kills a process is a failed cell."""
    pool = Workers(count)
    try:
        yield from run_on(pool, attempt, cells, count)
    finally:
        pool.shutdown(wait=False)


def run_on(pool: Executor, act: Callable[[Cell], Outcome], cells: Iterable[Cell], workers: int) -> Iterator[Outcome]:
    """Hand cells to the pool, never many more than it can work on, and give back what is finished."""
    coming = iter(cells)
    waiting: set[Future[Outcome]] = {pool.submit(act, cell) for cell in islice(coming, AHEAD * workers)}
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            for cell in islice(coming, 1):
                waiting.add(pool.submit(act, cell))
            yield future.result()
