"""A cell played so that whatever goes wrong is its own outcome: a sweep goes on."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from ...traces.console.exit_codes import BUG, FAILED
from .cell import Cell, Outcome, play

OUR_BUG = "a bug in tokencake, please report: "  # how the error of a cell begins that nobody else is to blame for


def attempt(cell: Cell) -> Outcome:
    """As `play`; a bug of ours is the outcome's error, too, with the line where it happened: see `OUR_BUG`."""
    try:
        return play(cell)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        return lost(cell, f"{OUR_BUG}{type(error).__name__}: {error}{where}{notes}")


def exit_code_for(errors: Sequence[str]) -> int:
    """The exit code of a command that goes on where a cell fails: of the errors of those that did."""
    return BUG if any(error.startswith(OUR_BUG) for error in errors) else FAILED if errors else 0


def lost(cell: Cell, why: str) -> Outcome:
    """What a cell came to that could not be played."""
    return Outcome(cell, None, " ".join(why.split()), 0.0)
