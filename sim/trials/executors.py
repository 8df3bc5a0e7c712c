"""Who plays the cells: this process, processes beside it, or a Ray cluster. The same call for all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from itertools import islice

from .cell import Cell, Outcome, play

AHEAD = 2  # cells a worker that are handed out before their turn, so that no worker waits


def run_here(cells: Iterable[Cell]) -> Iterator[Outcome]:
    """One after another, in order."""
    return map(play, cells)


def run_in_processes(cells: Iterable[Cell], workers: int | None = None) -> Iterator[Outcome]:
    """On `workers` processes (None: as many as there are cores), in the order in which they finish."""
    count = workers or os.process_cpu_count() if hasattr(os, "process_cpu_count") else workers or os.cpu_count() or 1
    return run_here(cells) if count == 1 else _run_in_processes(cells, count)


def _run_in_processes(cells: Iterable[Cell], workers: int) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")  # a fork would copy what threads of this process hold
    pool = ProcessPoolExecutor(workers, context, initializer=_leave_interrupts)
    try:
        yield from run_on(pool, play, cells, workers)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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


def _leave_interrupts() -> None:
    """Ctrl-C ends the command, and the command ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
