"""Opens whatever the program reads: every reader gets the same bytes from it, however they are wrapped.

A file is plain, or compressed with gzip, xz or zstandard, which its first bytes tell and never its name. A byte order
mark is passed over. `-` is standard input. What can be read only once (a pipe, `<(…)`, standard input) is kept in a
private temporary file while it is read, so that it can be read again, and by other processes, see `handed_over`; it
stays what it was for as long as the process lives, or until `forget`. Messages have the name that the user gave.
"""

from __future__ import annotations

import atexit
import io
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import SEEK_CUR, SEEK_END, SEEK_SET
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from ..errors import TokencakeError, TraceError
from .input_limits import BLANK_BYTES, LINE_BYTES

STANDARD_INPUT = "-"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MOST_DECODER_BYTES = 2**28  # what an xz file may ask for; `xz -9` asks for 65 MiB
WIDEST_WINDOW_BYTES = 2**27  # the same of zstandard, whose own limit this is unless --long is given
BUFFER_BYTES = 2**16
DIGEST_BYTES = 2**20  # at a time

Wrong = type[TokencakeError]

_OWN_TO_A_PROCESS = ("/dev/stdin", "/dev/fd/", "/proc/self/")  # another process finds something else there


@contextmanager
def opened(path: str | Path, error: Wrong = TraceError) -> Iterator[BinaryIO]:
    """The content, as a stream of bytes: decompressed, without a byte order mark.

    Raises `error`, in one line, if it cannot be read, or is compressed and damaged or cut off: also while it is read.
    Memory does not grow with it, however well it is compressed.
    """
    with _raw(path, error) as raw:
        kind = _compression(raw, path, error)
        content = _Content(raw, path, error) if kind is None else _Decompressed(raw, kind, path, error)
        content.pass_over(BYTE_ORDER_MARK)
        yield io.BufferedReader(content, BUFFER_BYTES)


def lines(path: str | Path, error: Wrong = TraceError, longest_bytes: int = LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """The lines of the content with their ends, and their numbers, from 1. Raises as `opened`.

    Also for a line above `longest_bytes`, and if more than `BLANK_BYTES` are blank lines.
    """
    blank_bytes = 0
    with opened(path, error) as content:
        number = 0
        while line := content.readline(longest_bytes + 1):
            number += 1
            if len(line) > longest_bytes:
                raise error(f"{path}:{number}: expected a line of at most {longest_bytes} bytes")
            if line.isspace():
                blank_bytes += len(line)
                if blank_bytes > BLANK_BYTES:
                    raise error(f"{path}:{number}: expected at most {BLANK_BYTES} bytes of blank lines")
            yield number, line


def whole(path: str | Path, largest_bytes: int, error: Wrong = TraceError) -> bytes:
    """The content, at most `largest_bytes`. Raises as `opened`, and if it is more than that."""
    with opened(path, error) as content:
        if len(found := content.read(largest_bytes + 1)) > largest_bytes:
            raise error(f"{path}: expected at most {largest_bytes} bytes")
    return found


def digest(path: str | Path, error: Wrong = TraceError) -> str:
    """SHA-256 of the file as it lies there, in hexadecimal: what `sha256sum` prints.

    Of text, line ends of Windows count as those of the others: a checkout may have changed them, and they say nothing.
    """
    import hashlib

    found = hashlib.sha256()
    with _raw(path, error) as raw:
        text = _compression(raw, path, error) is None
        held = b""  # a CR, of which the next piece says whether it ends a line
        try:
            while more := raw.read(DIGEST_BYTES):
                piece = held + more
                held = b"\r" if text and piece.endswith(b"\r") else b""
                piece = piece.removesuffix(held)
                found.update(piece.replace(b"\r\n", b"\n") if text and b"\r" in piece else piece)
        except OSError as problem:
            raise error(f"{path}: {_unreadable(problem)}") from None
        found.update(held)
    return found.hexdigest()


def is_read_once(path: str | Path) -> bool:
    """Whether it is a pipe, or what else cannot be opened a second time, or not by another process."""
    if str(path) == STANDARD_INPUT or str(path).startswith(_OWN_TO_A_PROCESS):
        return True
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False  # opening it says what is wrong
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_file(path: str | Path, error: Wrong = TraceError) -> None:
    """Raises `error`, in one line, if it is there and no plain file: a pipe, say, which would be waited for."""
    kind = "standard input" if str(path) == STANDARD_INPUT else _kind_of(path)
    if kind is not None:
        raise error(f"{path}: expected a file, got {kind}")


def _kind_of(path: str | Path) -> str | None:
    """What lies there instead of a file; None if nothing does, or nobody can say: opening it tells what is wrong."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else _KINDS_OF_FILES.get(stat.S_IFMT(mode), "something else")


_KINDS_OF_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def at_hand(path: str | Path) -> Path:
    """Where the bytes of `path` lie, as it is: a file that any process of this user can read.

    Raises TraceError if it can be read only once and that fails.
    """
    if not is_read_once(path) or (text := str(path)) in _adopted:
        return Path(_adopted.get(str(path), path))
    with _raw(text, TraceError) as raw:
        while raw.read(BUFFER_BYTES):
            pass
    return Path(_spools[text].file.name)


# -- what can be read only once, between processes


def handed_over() -> dict[str, str]:
    """For `adopt` in another process: what was read here and can be read only once, and the file in which it lies."""
    return {**_adopted, **{path: str(at_hand(path)) for path in _spools}}


def adopt(files: Mapping[str, str]) -> None:
    """Reads what another process has read, see `handed_over`, from its files."""
    _adopted.update(files)


def forget() -> None:
    """Removes the temporary files: what comes through a pipe of the same name is something new."""
    while _spools:
        _spools.popitem()[1].close()


_adopted: dict[str, str] = {}


class _Spool:
    """What can be read only once, in a file as far as it has been read."""

    def __init__(self, source: io.BufferedReader) -> None:
        import tempfile

        self._source: io.BufferedReader | None = source
        self.file = tempfile.NamedTemporaryFile(prefix="tokencake-")  # noqa: SIM115

    def read(self, start: int, count: int) -> bytes:
        """At most `count` bytes from `start` on; none at the end."""
        self.file.seek(start)
        if (found := self.file.read(count)) or self._source is None:
            return found
        if found := self._source.read1(count):
            self.file.seek(0, SEEK_END)
            self.file.write(found)
            self.file.flush()
        else:
            self._end()
        return found

    def close(self) -> None:
        self._end()
        self.file.close()

    def _end(self) -> None:
        if self._source is not None and self._source is not getattr(sys.stdin, "buffer", None):
            self._source.close()
        self._source = None


_spools: dict[str, _Spool] = {}
atexit.register(forget)


class _Spooled(io.RawIOBase):
    """A spool from its start on."""

    def __init__(self, spool: _Spool) -> None:
        self._spool = spool
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        self._position = offset + {SEEK_SET: 0, SEEK_CUR: self._position}[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        found = self._spool.read(self._position, len(buffer))
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


# -- streams


@contextmanager
def _raw(path: str | Path, error: Wrong) -> Iterator[io.BufferedReader]:
    """The bytes as they lie there. Raises `error` if they cannot be reached."""
    try:
        raw = _open(str(path))
    except (OSError, ValueError) as problem:  # ValueError: a path with a NUL
        raise error(f"{path}: {_unreadable(problem)}") from None
    with raw:
        yield raw


def _open(path: str) -> io.BufferedReader:
    if path in _adopted:
        return open(_adopted[path], "rb")
    if not is_read_once(path):
        return open(path, "rb")
    if path not in _spools:
        _spools[path] = _Spool(_standard_input() if path == STANDARD_INPUT else open(path, "rb"))  # noqa: SIM115
    return io.BufferedReader(_Spooled(_spools[path]))


def _standard_input() -> io.BufferedReader:
    if sys.stdin is None:
        raise OSError(None, "standard input is closed")
    return cast(io.BufferedReader, sys.stdin.buffer)


def _compression(raw: io.BufferedReader, path: str | Path, error: Wrong) -> _Kind | None:
    """How a file is compressed, by its first bytes."""
    try:
        start = raw.read(LONGEST_MAGIC)
        raw.seek(0)
    except OSError as problem:
        raise error(f"{path}: {_unreadable(problem)}") from None
    return next((kind for kind in _KINDS if start.startswith(kind.magics)), None)


def is_compressed(start: bytes) -> bool:
    """Whether a file that begins so is compressed in a way that is known here."""
    return any(start.startswith(kind.magics) for kind in _KINDS)


def _unreadable(problem: Exception) -> str:
    return f"cannot be read: {getattr(problem, 'strerror', None) or problem}"


class _Content(io.RawIOBase):
    """The bytes of a file; what is wrong while they are read is an error of ours."""

    def __init__(self, raw: io.BufferedReader, path: str | Path, error: Wrong) -> None:
        self._raw, self._path, self._error = raw, path, error
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            self._ready = self._ready or memoryview(self._more())
        except OSError as problem:
            raise self._error(f"{self._path}: {_unreadable(problem)}") from None
        found, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(found)] = found
        return len(found)

    def pass_over(self, mark: bytes) -> None:
        """Leaves out `mark` if the content begins with it."""
        start = b""
        while len(start) < len(mark) and (more := self.read(len(mark) - len(start))):
            start += more
        if start != mark:
            self._ready = memoryview(start + self._ready)

    def _more(self) -> bytes:
        """What comes next; nothing at the end."""
        return self._raw.read(BUFFER_BYTES)


class _Decoder(Protocol):
    """What zlib, lzma and zstandard have in common: one compressed stream, of which a file may have several."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Kind(NamedTuple):
    """A compression. `fed_bytes` at a time become some 16 MB at most."""

    name: str
    magics: tuple[bytes, ...]
    decoder: Callable[[], _Decoder]
    fed_bytes: int


def _xz() -> _Decoder:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_DECODER_BYTES)


def _zstandard() -> _Decoder:
    import zstandard

    decoder: _Decoder = zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW_BYTES).decompressobj()
    return decoder


# A file of zstandard may begin with a frame that is to be skipped.
_ZSTANDARD = (b"\x28\xb5\x2f\xfd", *(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60)))
_KINDS = (
    _Kind("gzip", (b"\x1f\x8b",), lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), 16_384),
    _Kind("xz", (b"\xfd7zXZ\x00",), _xz, 1024),
    _Kind("zstandard", _ZSTANDARD, _zstandard, 512),
)


LONGEST_MAGIC = 6


class _Decompressed(_Content):
    """What one compressed stream after another says."""

    def __init__(self, raw: io.BufferedReader, kind: _Kind, path: str | Path, error: Wrong) -> None:
        super().__init__(raw, path, error)
        self._kind = kind
        self._decoder: _Decoder | None = None  # None: between two streams
        self._fed = b""  # what no decoder has been given yet

    def _more(self) -> bytes:
        while True:
            self._fed = self._fed or self._raw.read(self._kind.fed_bytes)
            if not self._fed and self._decoder is None:
                return b""
            if not self._fed:
                raise self._damaged("it ends too early")
            if found := self._decoded():
                return found

    def _decoded(self) -> bytes:
        """What becomes of what is to be fed, up to the end of the stream."""
        if self._decoder is None:
            self._fed = self._fed.lstrip(b"\0")  # padding between streams
            if not self._fed:
                return b""
            self._decoder = self._kind.decoder()
        try:
            found = self._decoder.decompress(self._fed)
        except Exception as problem:  # each library has errors of its own
            raise self._damaged(str(problem)) from None
        self._fed = b""
        if self._decoder.eof:
            self._fed, self._decoder = self._decoder.unused_data, None
        return found

    def _damaged(self, problem: str) -> TokencakeError:
        kind = self._kind.name
        return self._error(
            f"{self._path}: expected a whole {kind} file, got one that is cut off or damaged ({problem})"
        )
