"""How many runs are asked for: absurdly many are refused."""

from __future__ import annotations

from ..errors import TokencakeError

MOST_REPEATS = 1_000  # a verdict over more would need gigabytes, and say no more
MOST_RUNS = 200_000  # some 4 KB of figures each


def check_repeats(repeats: int) -> None:
    """Raises TokencakeError if so many repeats are too many."""
    if repeats > MOST_REPEATS:
        raise TokencakeError(f"--repeat: expected at most {MOST_REPEATS:,} repeats, got {repeats:,}")


def check_count(runs: int, option: str) -> None:
    """Raises TokencakeError if so many runs are too many."""
    if runs > MOST_RUNS:
        raise TokencakeError(f"{option}: expected at most {MOST_RUNS:,} runs in all, got {runs:,}")
