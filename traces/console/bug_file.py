"""A bug of ours: what is needed to mend it goes to a file, and one line says so."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import SUSPECT, WorkerBug
from ..version import __version__


def bug_message(error: BaseException, arguments: Sequence[str]) -> str:
    """Says that the error is ours, and keeps what is needed to mend it in a file that nobody else can read.

    `arguments`: of the command. To be called while the error is handled.
    """
    import tempfile
    import traceback

    trace = str(error) if isinstance(error, WorkerBug) else traceback.format_exc()
    about = f"tokencake {__version__}, Python {sys.version}\n{list(arguments)}\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="tokencake-bug-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write(f"{about}\n{trace}")
        where = f"the traceback is in {file.name}"
    except OSError as problem:
        where = f"the traceback could not be written: {problem.strerror}"
    *_, before, last = "", *trace.strip().splitlines()
    if last.startswith(SUSPECT):
        last = f"{before}, {last}"
    return f"a bug in tokencake, please report: {last}: {where}"
