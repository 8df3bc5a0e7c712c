"""The events file of a server's own run. What goes wrong with it is no reason to stop serving."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from ....traces.errors import RunError, TokencakeError
from ....traces.files.whole_file import PARTIAL
from ....traces.format.events_file import EventsWriter

logger = logging.getLogger(__name__)


class EventsLog:
    """Writes into PATH, or into 2-PATH and so on if that has the events of a run before it: a file holds one run.

    Each line is written at once: vLLM's server kills its engine. Raises `TraceError` if the file cannot be begun.
    """

    def __init__(self, path: Path) -> None:
        self._writer: EventsWriter | None = EventsWriter(_new_file(path), at_once=True)
        self._writer.__enter__()

    def add(self, record: Any) -> None:
        """A sink. A disk that is full ends the file: what is written stays, as a part."""
        writer = self._writer
        if writer is not None and not _guarded(lambda: writer.add(record)):
            self._writer = None
            _guarded(lambda: writer.__exit__(RunError, None, None))

    def close(self) -> None:
        """The run has ended, and the file is whole."""
        writer, self._writer = self._writer, None
        if writer is not None:
            _guarded(lambda: writer.__exit__(None, None, None))

    def give_up(self, error: BaseException) -> None:
        """The run came to nothing. Raises what writing raises."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(type(error), error, None)


def _guarded(write: Callable[[], None]) -> bool:
    try:
        write()
    except TokencakeError as error:
        logger.error("tokencake: events are not written any more: %s", error)
        return False
    return True


def _new_file(path: Path) -> Path:
    """The first of these names that no run has."""
    for number in count(1):
        one = path if number == 1 else path.with_name(f"{number}-{path.name}")
        if not any(os.path.lexists(there) for there in (one, one.with_name(one.name + PARTIAL))):
            break
    return one
