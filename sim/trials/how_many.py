"""How many runs are asked for: absurdly many are refused, and of very many it is said how long they may take."""

from __future__ import annotations

from ...traces.errors import TokencakeError
from .cell import Cell
from .executors import run_on_workers

MOST_REPEATS = 1_000  # a verdict over more would need gigabytes, and say no more
MOST_RUNS = 200_000  # some 4 KB of figures each
MANY_RUNS = 10_000  # more are announced


def check_repeats(repeats: int) -> None:
    """Raises TokencakeError if so many repeats are too many."""
    if repeats > MOST_REPEATS:
        raise TokencakeError(f"--repeat: expected at most {MOST_REPEATS:,} repeats, got {repeats:,}")


def check_count(runs: int, option: str) -> None:
    """Raises TokencakeError if so many runs are too many."""
    if runs > MOST_RUNS:
        raise TokencakeError(f"{option}: expected at most {MOST_RUNS:,} runs in all, got {runs:,}")


def announced(runs: int, first: Cell, workers: int, policy_timeout_s: float | None = None) -> str | None:
    """How many runs there are and how long they take, if they are many. Plays the first for that, in a process."""
    if runs <= MANY_RUNS:
        return None
    (outcome,) = run_on_workers([first], 1, policy_timeout_s)
    hours, minutes = divmod(round(outcome.wall_s * runs / workers / 60), 60)
    return f"{runs:,} runs; the first took {outcome.wall_s:.2g} s: about {hours} h {minutes} min on {workers} processes"
