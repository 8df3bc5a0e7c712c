"""A cell played so that whatever goes wrong is its own outcome: a sweep goes on."""

from __future__ import annotations

import traceback
from pathlib import Path

from .cell import Cell, Outcome, play


def attempt(cell: Cell) -> Outcome:
    """As `play`; an error in a policy's own code is the outcome's error, too, with the line where it happened."""
    try:
        return play(cell)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        return lost(cell, f"{type(error).__name__}: {error}{where}")


def lost(cell: Cell, why: str) -> Outcome:
    """What a cell came to that could not be played."""
    return Outcome(cell, None, " ".join(why.split()), 0.0)
