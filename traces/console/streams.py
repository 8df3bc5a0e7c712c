"""The standard streams of a process that others have started: closed ones, and ones that nobody reads any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def open_stderr() -> None:
    """To nowhere: whoever started us has closed it. Else the next file that is opened would get its number."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != 2:
        os.dup2(nowhere, 2)
        os.close(nowhere)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def to_nowhere(stream: TextIO) -> None:
    """Keeps Python from complaining when it flushes at the end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
