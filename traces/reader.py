"""Reads a trace: JSON lines, a header and then one application a line. The format is described in docs/trace-format.md.

A trace is read as a stream, one line at a time, every time that it is iterated over: memory does not grow with it,
except for ids that do not continue a numbered series.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import NoReturn

from .apps import Application
from .errors import TraceError
from .fields import WrongField
from .header import FORMAT, Header, parse_header
from .input_limits import LINE_BYTES
from .order import ApplicationOrder
from .parser import parse_application
from .strict_json import strict_json

GZIP_MAGIC = b"\x1f\x8b"


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
        faultless = True
        for line, data in _lines(self.path):
            if line == 1:
                continue  # the header
            try:
                application = parse_application(strict_json(data))
                order.check(application)
            except WrongField as wrong:
                faultless = False
                yield TraceError(f"{self.path}:{line}: {wrong}")
            else:
                yield application
        expected = self.header.applications
        if faultless and expected not in (None, order.applications):
            yield TraceError(
                f"{self.path}:1: applications: expected {order.applications}, as there are, got {expected}"
            )


def read_trace(path: str | Path) -> Trace:
    """Opens a trace and reads its header; the applications are read when the result is iterated over.

    `path` is a file of JSON lines, plain or compressed with gzip. Raises TraceError with one line that names the file,
    the line, the field and what was expected there.
    """
    path = Path(path)
    for line, data in _lines(path):
        try:
            return Trace(path, parse_header(strict_json(data)))
        except WrongField as wrong:
            raise TraceError(f"{path}:{line}: {wrong}") from None
    raise TraceError(f'{path}: expected a header {{"format": "{FORMAT}", …}} in the first line, got an empty file')


def trace_digest(path: str | Path) -> str:
    """SHA-256 of the file as it lies there, in hexadecimal: what `sha256sum` prints."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _refuse(Path(path), error)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; the first line always."""
    try:
        with _open(path) as file:
            number = 0
            while data := file.readline(LINE_BYTES + 1):
                number += 1
                if len(data) > LINE_BYTES:
                    raise TraceError(f"{path}:{number}: expected a line of at most {LINE_BYTES} bytes")
                if number == 1 or not data.isspace():
                    yield number, data
    except (OSError, EOFError, zlib.error) as error:
        _refuse(path, error)


def _open(path: Path) -> BufferedIOBase:
    with open(path, "rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    return gzip.open(path) if compressed else open(path, "rb")


def _refuse(path: Path, error: Exception) -> NoReturn:
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        raise TraceError(f"{path}: expected a whole gzip file, got one that is cut off or damaged ({error})") from None
    reason = error.strerror if isinstance(error, OSError) else None
    raise TraceError(f"{path}: cannot be read: {reason or error}") from None
