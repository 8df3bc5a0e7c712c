"""The outcomes of a sweep on disk, a line each as soon as it is there, so that nothing is played twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ...traces.errors import TokencakeError
from ...traces.replacing import unwritable
from .cell import Outcome
from .identity import differing

SCHEMA = "tokencake.sweep-cells/1"
START = f'{{"schema": "{SCHEMA}",'.encode()


class Result(NamedTuple):
    """What is kept of an outcome: metrics, or why there are none."""

    metrics: Mapping[str, Any] | None
    error: str | None
    oversized: int


class Kept:
    """A file of outcomes, read at first and then appended to. Its first line is the identity of what was played."""

    def __init__(self, path: Path, identity: Mapping[str, object], fresh: bool = False) -> None:
        """Opens the file, or begins one: also in the place of what is there if `fresh`.

        A last line that was cut off is dropped. Raises TokencakeError, in one line, if the file has another identity,
        is something else, or cannot be read or written.
        """
        self.path = path
        self.results: dict[str, Result] = {}
        whole = b"" if fresh else self._read(identity)
        try:
            self._file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        except OSError as error:
            raise unwritable(path, error) from None
        if not whole:
            self._append({"schema": SCHEMA, **identity})

    def add(self, key: str, outcome: Outcome) -> None:
        """Keeps what a cell came to. Raises TokencakeError if the disk does not take it."""
        result = Result(outcome.metrics, outcome.error, outcome.oversized)
        self.results[key] = result
        self._append({"cell": json.loads(key), **result._asdict()})

    def close(self) -> None:
        with suppress(OSError):  # of a disk that is full, `add` has said so
            self._file.close()

    def _append(self, record: Mapping[str, object]) -> None:
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _read(self, identity: Mapping[str, object]) -> bytes:
        """Takes over what is there. Returns the bytes of the whole lines."""
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise TokencakeError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and not START.startswith(content[: len(START)]):
            raise self._damaged(1)
        for number, line in enumerate(whole.splitlines(), 1):
            record = self._record(number, line)
            if number == 1:
                self._check(record, identity)
            else:
                self._take(number, record)
        return whole

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise self._damaged(number)
        return record

    def _check(self, found: Mapping[str, Any], identity: Mapping[str, object]) -> None:
        if found.get("schema") != SCHEMA:
            raise self._damaged(1)
        wanted = json.loads(json.dumps(identity))
        kept = {key: value for key, value in found.items() if key != "schema"}
        if keys := differing(kept, wanted):
            raise TokencakeError(
                f"{self.path}: is of another sweep, which differs in {', '.join(keys)}: --fresh replaces it"
            )

    def _take(self, number: int, record: Mapping[str, Any]) -> None:
        try:
            key = json.dumps(record["cell"], sort_keys=True)
            self.results[key] = Result(*(record[name] for name in Result._fields))
        except KeyError:
            raise self._damaged(number) from None

    def _damaged(self, number: int) -> TokencakeError:
        return TokencakeError(f"{self.path}:{number}: expected a line of {SCHEMA}: --fresh replaces the file")
