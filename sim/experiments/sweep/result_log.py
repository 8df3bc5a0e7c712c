"""The outcomes of a sweep on disk, a line each as soon as it is there, so that nothing is played twice.

Each line ends with a checksum of itself and of the checksum before it: a line that was edited, moved or left out is
seen, and nothing of it is taken for a figure. One sweep at a time writes a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ....traces.errors import TokencakeError
from ....traces.files.fields import WrongField
from ....traces.files.input_limits import LINE_BYTES
from ....traces.files.schema import digest, free, map_of, measured, nullable, printable, record, string, whole_from
from ....traces.files.strict_json import strict_json
from ....traces.files.whole_file import unwritable
from ....traces.results.metric import run_metrics
from ..identity import differing
from ..run import Outcome

SCHEMA = "tokencake.sweep-cells/2"
OLDER = "tokencake.sweep-cells/1"  # without checksums
START = b'{"schema": "tokencake.sweep-cells/'
DIGITS = 16  # of a checksum
MOST_NAMED = 20  # differences between two sweeps in one message
REPLACED = "--fresh replaces it"

_SETTING = nullable(lambda value, field: free(value, field, 2))
_CELL = record(
    {"rate": nullable(measured), "set": map_of(_SETTING), "policy": printable(10_000), "repeat": whole_from(0)},
    optional={"policy_sha256": digest(64)},
)
_LINE = record(
    {
        "cell": _CELL,
        "metrics": nullable(run_metrics),
        "error": nullable(string(100_000)),
        "oversized": whole_from(0),
        "sha256": digest(DIGITS),
    }
)


class Result(NamedTuple):
    """What is kept of an outcome: metrics, or why there are none."""

    metrics: Mapping[str, Any] | None
    error: str | None
    oversized: int


class ResultLog:
    """A file of outcomes, read at first and then appended to. Its first line is the identity of what was played."""

    def __init__(self, path: Path, identity: Mapping[str, object], fresh: bool = False) -> None:
        """Opens the file, or begins one: also in the place of what is there if `fresh`.

        A last line that was cut off is dropped. Raises TokencakeError, in one line, if the file has another identity,
        is something else, was edited, is written by another sweep now, or cannot be read or written.
        """
        self.path = path
        self.results: dict[str, Result] = {}
        self._sum = ""  # of the last line
        if path.is_symlink():  # its name is known beforehand, and --fresh empties what is there
            raise TokencakeError(f"{path}: is in the way: expected no link")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o666), "r+b")
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            self._open(identity, fresh)
        except BaseException:
            self.close()
            raise

    def add(self, key: str, outcome: Outcome) -> None:
        """Keeps what a cell came to. Raises TokencakeError if the disk does not take it."""
        result = Result(outcome.metrics, outcome.error, outcome.oversized)
        self.results[key] = result
        self._append({"cell": json.loads(key), **result._asdict()})

    def close(self) -> None:
        with suppress(OSError):  # of a disk that is full, `add` has said so
            self._file.close()

    def _open(self, identity: Mapping[str, object], fresh: bool) -> None:
        if not _locked(self._file):
            raise TokencakeError(f"{self.path}: another sweep is writing it: expected one at a time")
        length = 0 if fresh else self._read(identity)
        try:
            self._file.truncate(length)
            self._file.seek(length)
        except OSError as error:
            raise unwritable(self.path, error) from None
        if not length:
            self._append({"schema": SCHEMA, **identity})

    def _append(self, record: Mapping[str, object]) -> None:
        content = json.dumps(record, allow_nan=False).encode()
        self._sum = _checksum(self._sum, content)
        try:
            self._file.write(content[:-1] + _ending(self._sum))
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _read(self, identity: Mapping[str, object]) -> int:
        """Takes over what is there. Returns how many bytes the whole lines have."""
        length = 0
        for number, line in enumerate(self._lines(), 1):
            if number == 1 and not (line.startswith(START) or START.startswith(line)):
                raise self._damaged(1, "")
            if not line.endswith(b"\n"):
                break
            self._take(number, line, identity)
            length += len(line)
        return length

    def _lines(self) -> Iterator[bytes]:
        try:
            while line := self._file.readline(LINE_BYTES + 1):
                yield line
        except OSError as error:
            raise TokencakeError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _take(self, number: int, line: bytes, identity: Mapping[str, object]) -> None:
        """One line that is whole."""
        try:
            said = strict_json(line)
            if number == 1:
                self._check_schema(said)
            self._check_sum(number, line)
            if number == 1:
                self._check_identity(said, identity)
            else:
                self._take_result(_LINE(said, ""))
        except WrongField as wrong:
            raise self._damaged(number, f": {wrong}") from None

    def _take_result(self, found: dict[str, Any]) -> None:
        if (found["metrics"] is None) == (found["error"] is None):
            raise WrongField("", "expected either metrics or an error")
        key = json.dumps(found["cell"], sort_keys=True)
        self.results[key] = Result(*(found[name] for name in Result._fields))

    def _check_schema(self, said: object) -> None:
        schema = said.get("schema") if isinstance(said, dict) else None
        if schema == OLDER:
            raise TokencakeError(f"{self.path}: is of an older version, whose lines have no checksums: {REPLACED}")
        if schema != SCHEMA:
            raise self._damaged(1, "")

    def _check_sum(self, number: int, line: bytes) -> None:
        """Whether the line is as it was written, and follows the one that it was written behind."""
        self._sum = _checksum(self._sum, line[:-_ENDING_BYTES] + b"}")
        if not line.endswith(_ending(self._sum)):
            raise TokencakeError(
                f"{self.path}:{number}: was edited, or what stood before it was: its checksum is wrong: {REPLACED}"
            )

    def _check_identity(self, said: object, identity: Mapping[str, object]) -> None:
        assert isinstance(said, dict)
        wanted = json.loads(json.dumps(identity))
        kept = {key: value for key, value in said.items() if key not in ("schema", "sha256")}
        if keys := differing(kept, wanted):
            more = ", …" if len(keys) > MOST_NAMED else ""
            named = ", ".join(keys[:MOST_NAMED]) + more
            raise TokencakeError(f"{self.path}: is of another sweep, which differs in {named}: {REPLACED}")

    def _damaged(self, number: int, why: str) -> TokencakeError:
        return TokencakeError(f"{self.path}:{number}: expected a line of {SCHEMA}{why}: {REPLACED}")


def _checksum(before: str, content: bytes) -> str:
    """Of a line without its checksum, behind a line with that checksum."""
    return sha256(before.encode() + content).hexdigest()[:DIGITS]


def _ending(checksum: str) -> bytes:
    """What follows a line's last field."""
    return f', "sha256": "{checksum}"}}\n'.encode()


_ENDING_BYTES = len(_ending("0" * DIGITS))


def _locked(file: BinaryIO) -> bool:
    """Whether nobody else has locked the file; it is ours then, until it is closed."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
