"""How many runs are asked for: absurdly many are refused, and of very many it is said how long they may take."""

from __future__ import annotations

from ...traces.errors import TokencakeError

MOST_REPEATS = 100_000
MOST_RUNS = 1_000_000  # more is a slip of the pen
MANY_RUNS = 10_000  # more are announced


def check_count(runs: int, option: str) -> None:
    """Raises TokencakeError if so many runs are too many."""
    if runs > MOST_RUNS:
        raise TokencakeError(f"{option}: expected at most {MOST_RUNS:,} runs in all, got {runs:,}")
