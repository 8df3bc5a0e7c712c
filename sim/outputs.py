"""Files that a command writes: found to be unwritable before the work starts, and never half-written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..traces.errors import TokencakeError
from ..traces.events_io import unwritable
from ..traces.replacing import replacing


def check_writable(path: Path, but_not: Path | None = None) -> None:
    """Raises TokencakeError if a file cannot be put at `path`, or if it is the file `but_not`."""
    if path.is_dir():
        raise TokencakeError(f"{path}: cannot be written: is a directory")
    if path.exists() and not path.is_file():
        raise TokencakeError(f"{path}: cannot be written: expected a regular file, or none yet")
    if but_not and path.exists() and but_not.exists() and path.samefile(but_not):
        raise TokencakeError(f"{path}: cannot be written: it is the input")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from None


def prepare_folder(path: Path) -> None:
    """Makes a folder, if there is none, that files can be written into. Raises TokencakeError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    check_writable(path / "events")


def write_whole(path: Path, text: str) -> None:
    """Puts a file of `text` at `path`, at once. Raises TokencakeError if that cannot be, and leaves nothing then."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise unwritable(path, error) from None
