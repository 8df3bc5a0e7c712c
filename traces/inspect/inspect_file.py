"""`tokencake trace inspect`: what is in a trace, printed, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from ..console.exit_codes import fail
from ..console.progress import progress_bar
from ..console.terminal import say
from ..format.reader import read_trace
from .describe import describe
from .inspection import inspect_trace


def inspect_file(file: Path, progress: bool = False) -> int:
    """Print what is in the trace, and its errors on stderr. The exit code: 2 if there are any.

    `progress`: shown even if stderr is no terminal.
    """
    source = read_trace(file)
    with progress_bar(progress) as bar:
        found = inspect_trace(source, lambda done: bar("reading", done, source.header.applications, ""))
    for line in describe(found):
        say(line)
    return max([0, *(fail(str(error)) for error in found.errors)])
