"""Files that a command writes: found to be unwritable before the work starts, and never half-written."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from os.path import realpath
from pathlib import Path
from typing import NamedTuple

from ..errors import TokencakeError
from .source_file import STANDARD_INPUT, is_read_once
from .whole_file import PARTIAL, STANDARD_OUTPUT, unwritable, written


class Output(NamedTuple):
    """A file that will be written, and the option that names it."""

    option: str
    path: Path

    @property
    def is_standard(self) -> bool:
        return str(self.path) == STANDARD_OUTPUT


def outputs_of(**paths: str | Path | None) -> list[Output]:
    """Outputs by the names of their options, without those that are not asked for: `json="r.json"` is --json."""
    return [Output(f"--{option}", Path(path)) for option, path in paths.items() if path is not None]


def events_outputs(folder: Path, names: Iterable[str]) -> list[Output]:
    """The files of these names that `--events FOLDER` will write, and those in which they grow."""
    return [Output("--events", folder / f"{name}{ending}") for name in names for ending in ("", PARTIAL)]


def check_outputs(outputs: Sequence[Output], inputs: Sequence[Path] = ()) -> None:
    """Finds what cannot be written: raises TokencakeError for that, and as `check_apart`."""
    check_apart(outputs, inputs)
    for output in outputs:
        if not output.is_standard:
            check_writable(output.path)


def check_apart(outputs: Sequence[Output], inputs: Sequence[Path] = ()) -> None:
    """Raises TokencakeError if an output is an input, or lies in a folder that is one, or two are the same file.

    Files are the same if they are one file in the end, whatever they are called, or would be on some systems.
    """
    read = {_read_from(file): file for file in inputs}
    there: dict[tuple[object, ...], Output] = {}
    for output in outputs:
        identity = _identity(output.path)
        if (file := read.get(identity)) is not None:
            also = "" if output.path == file else f" {file}"
            raise TokencakeError(f"{output.path}: cannot be written: it is the input{also}")
        if (folder := read.get(_identity(Path(realpath(output.path)).parent))) is not None:
            raise TokencakeError(f"{output.path}: cannot be written: it would lie in the folder that is read, {folder}")
        if (other := there.setdefault(identity, output)) is not output:
            options = " and ".join(dict.fromkeys((other.option, output.option)))
            both = f"{output.path} twice" if output.path == other.path else f"{other.path} and {output.path}, the same"
            raise TokencakeError(f"{options}: expected two files, got {both}")


def _read_from(path: Path) -> tuple[object, ...] | None:
    """The identity of an input. None for what comes through a pipe: nobody can write over that."""
    if not is_read_once(path):
        return _identity(path)
    return _number(0 if str(path) == STANDARD_INPUT else path, regular=True)


def _identity(path: Path) -> tuple[object, ...]:
    """Equal for paths that lead to the same file; of files that are not there yet, for those that would."""
    if str(path) == STANDARD_OUTPUT:  # which a shell may have led into a file
        return _number(1, regular=True) or (STANDARD_OUTPUT,)
    end = Path(realpath(path))
    if (found := _number(end)) is not None:
        return found
    # Of two names that some systems take for the same, nobody can tell before they are there.
    name = unicodedata.normalize("NFC", end.name).casefold()
    return (*(_number(end.parent) or (str(end.parent),)), name)


def _number(path: Path | int, regular: bool = False) -> tuple[int, int] | None:
    """What a file system knows a file by, or one that is open; None if there is none, or none that is `regular`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return None if regular and not stat.S_ISREG(status.st_mode) else (status.st_dev, status.st_ino)


def check_writable(path: Path) -> None:
    """Raises TokencakeError if a file cannot be put at `path`."""
    if path.is_dir():
        raise TokencakeError(f"{path}: cannot be written: is a directory")
    if path.is_fifo():
        return
    import tempfile

    if path.exists() and not path.is_file():
        raise TokencakeError(f"{path}: cannot be written: expected a regular file, a pipe, or none yet")
    try:
        with tempfile.TemporaryFile(dir=Path(realpath(path)).parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from None


def prepare_folder(path: Path) -> None:
    """Makes a folder, if there is none, that files can be written into. Raises TokencakeError if that cannot be."""
    if str(path) == STANDARD_OUTPUT:
        raise TokencakeError(f"{path}: cannot be written: expected a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    check_writable(path / "events")


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Puts a file at `path`, at once; `-` is standard output. Raises TokencakeError if that cannot be."""
    with written(path) as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
