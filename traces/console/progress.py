"""A bar that shows how far a command has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ..files.escaping import one_line

QUIET_S = 1.0  # what is done sooner needs no progress bar

Bar = Callable[[str, int, int | None, str], None]  # what is being done, how much of it is done, of how much, a note
Item = TypeVar("Item")


def no_bar(label: str, done: int, total: int | None, note: str) -> None:
    """A `Bar` that shows nothing."""


@contextmanager
def progress_bar(forced: bool, quiet: bool = False) -> Iterator[Bar]:
    """A bar that appears when something has taken longer than a second, if stderr is a terminal or it is `forced`."""
    if not forced and (quiet or not sys.stderr.isatty()):
        yield no_bar
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .printing import printing

    what, note = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[note]}"))
    columns = (what, BarColumn(), MofNCompleteColumn(), note, TimeElapsedColumn())
    bar = Progress(*columns, console=printing(stderr=True, force_terminal=forced or None), transient=True)
    tasks: dict[str, Any] = {}
    started = time.monotonic()

    def update(label: str, done: int, total: int | None, note: str) -> None:
        if time.monotonic() - started < QUIET_S:
            return
        label, note = one_line(label), one_line(note)
        if label not in tasks:
            bar.start()
            for task in tasks.values():
                bar.remove_task(task)
            tasks.clear()
            tasks[label] = bar.add_task(label, total=total, note=note)
        bar.update(tasks[label], completed=done, note=note)

    try:
        yield update
    finally:
        bar.stop()


def runs_watched(
    bar: Bar, policies: Sequence[str], applications: int | None, done: str
) -> Callable[[int], Callable[[int, float], None]]:
    """For each run, from 0, what shows how far it has come: so many of the `applications`, and seconds that are `done`.

    `policies`: one for each run.
    """

    def of_run(index: int) -> Callable[[int, float], None]:
        label = f"{index + 1}/{len(policies)} {policies[index]}"
        return lambda finished, at_s: bar(label, finished, applications, f"{at_s:,.0f} s {done}")

    return of_run


def watched(items: Iterable[Item], bar: Bar, label: str, total: int | None) -> Iterator[Item]:
    """The same items; the bar shows how many have been taken, of `total` if that is known. Lazy."""
    for index, item in enumerate(items):
        bar(label, index, total, "")
        yield item
