"""Reads a trace: JSON lines, a header and then one application a line. The format is described in docs/trace-format.md.

A trace is read as a stream, one line at a time, every time that it is iterated over: memory does not grow with it,
except for ids that do not continue a numbered series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..apps import Application
from ..errors import TraceError
from ..files.fields import WrongField
from ..files.source_file import digest, lines
from ..files.strict_json import strict_json
from .application_line import ApplicationLines
from .header import FORMAT, Header, parse_header
from .stream_checks import ApplicationOrder


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace in a file. Iterating reads the file anew, and raises TraceError at the first thing that is wrong."""

    path: Path
    header: Header

    def __iter__(self) -> Iterator[Application]:
        for outcome in self.outcomes():
            if isinstance(outcome, TraceError):
                raise outcome
            yield outcome

    def outcomes(self) -> Iterator[Application | TraceError]:
        """The application of each line, or what is wrong with the line; goes on after it while the file can be read."""
        order = ApplicationOrder()
        applications = ApplicationLines()
        faultless = True
        for line, data in _lines(self.path):
            if line == 1:
                continue  # the header
            try:
                application = applications.read(data)
                order.check(application)
            except WrongField as wrong:
                faultless = False
                yield TraceError(f"{self.path}:{line}: {wrong}")
            else:
                yield application
        promised = self.header.applications
        if faultless and promised is not None and promised != order.applications:
            yield TraceError(f"{self.path}: {_miscounted(promised, order.applications)}")


def read_trace(path: str | Path) -> Trace:
    """Opens a trace and reads its header; the applications are read when the result is iterated over.

    `path` is JSON lines, in any wrapping that `source_file` opens. Raises TraceError with one line that names the
    file, the line, the field and what was expected there.
    """
    path = Path(path)
    for line, data in _lines(path):
        try:
            return Trace(path, parse_header(strict_json(data)))
        except WrongField as wrong:
            raise TraceError(f"{path}:{line}: {wrong}") from None
    raise TraceError(f'{path}: expected a header {{"format": "{FORMAT}", …}} in the first line, got an empty file')


def _miscounted(promised: int, found: int) -> str:
    """What is wrong with a file whose header counts otherwise."""
    what = "ends early" if found < promised else "goes on behind its last application"
    return f"the file {what}: it holds {found} application{'' if found == 1 else 's'}, its header says {promised}"


def trace_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal: see `source_file.digest`. Raises TraceError if it cannot be read."""
    return digest(path)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; the first line always."""
    for number, data in lines(path):
        if number == 1 or not data.isspace():
            yield number, data
