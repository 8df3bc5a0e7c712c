"""A file is complete or it is not there: what is written takes its place at once, at the end."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from typing import IO, cast

from ..errors import TraceError

if sys.platform != "win32":
    import fcntl

STANDARD_OUTPUT = "-"
PARTIAL = ".partial"  # of a name: a file that grows as things happen, and is not complete

_TEMPORARY = (".tokencake-", ".part")
_YOUNG_S = 60.0


@contextmanager
def written(path: str | Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is complete, and is gone if something goes wrong.

    It is compressed if its name ends in `.gz`, `.xz` or `.zst`: equal contents make equal files. `-` is standard
    output, which like a pipe gets what there is at once. Raises TraceError, in one line, if it cannot be written.
    """
    try:
        with _place(Path(path)) as file, compressing(file, path) as content:
            yield content
    except BrokenPipeError:
        raise  # who reads our output has gone, which is no fault of a file
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path | str, error: OSError) -> TraceError:
    return TraceError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}")


def _place(path: Path) -> AbstractContextManager[IO[bytes]]:
    if str(path) == STANDARD_OUTPUT:
        return _standard_output()
    if path.is_fifo():
        return open(path, "wb")
    if path.exists() and not path.is_file():
        raise OSError(None, "expected a file, a pipe, or a name that is free")
    return replacing(path)


@contextmanager
def _standard_output() -> Iterator[IO[bytes]]:
    if sys.stdout is None:
        raise OSError(None, "standard output is closed")
    sys.stdout.flush()  # what was printed before comes before
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def compressing(file: IO[bytes], path: str | Path) -> Iterator[IO[bytes]]:
    """What goes into a file of this name, compressed as its ending says. Leaves `file` open."""
    ending = Path(path).suffix
    if ending == ".gz":
        import gzip

        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # no name or time: equal files
            yield cast(IO[bytes], packed)
    elif ending == ".xz":
        import lzma

        with lzma.open(file, "wb") as packed:
            yield cast(IO[bytes], packed)
    elif ending == ".zst":
        import zstandard

        with zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as packed:
            yield cast(IO[bytes], packed)
    else:
        yield file


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """As `written`, for a file and as it is. Raises OSError if it cannot be written.

    It is written under a name that nobody can know beforehand. What a killed process has left beside it is removed.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    _clear(path.parent)
    temporary = path.with_name(os.urandom(8).hex().join(_TEMPORARY))
    held: int | None = None
    try:
        with open(temporary, "xb") as file:  # x: never what is there already, and never through a link
            held = hold(file)
            yield file
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # after its renaming there is none, and without a folder there never was
            temporary.unlink()
        if held is not None:
            os.close(held)


def hold(file: IO[bytes]) -> int | None:
    """Marks a file as being written until the descriptor that this returns is closed, at the latest by our death.

    None where that cannot be. Raises BlockingIOError if it is marked already.
    """
    if sys.platform == "win32":
        return None
    held = os.dup(file.fileno())
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a file system without locks
    return held


def _clear(folder: Path) -> None:
    """Removes temporary files of this user that nobody writes any more: whoever did was killed."""
    begin, end = _TEMPORARY
    with suppress(OSError), os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if entry.name.startswith(begin) and entry.name.endswith(end)]
        for temporary in left:
            with suppress(OSError):
                _remove_unless_held(temporary)


def _remove_unless_held(temporary: Path) -> None:
    if sys.platform == "win32":
        return  # nothing there says whether somebody writes it
    descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        # Nobody writes before holding, so an empty one may be somebody's who has not come to hold it yet.
        young = status.st_size == 0 and time.time() < status.st_mtime + _YOUNG_S
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not young:
            held = hold(file)
            if held is not None:
                temporary.unlink()
                os.close(held)
