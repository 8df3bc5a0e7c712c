"""Events files: what happened in a run, one JSON object a line, the kind of fact first.

    {"fact":"FirstToken","at_s":1.25,"call":"a0/plan"}

Beside the facts of `events` there are two more kinds of record: `Began`, which comes first, and `Planned`. The same
facts give the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import NoneType, TracebackType, UnionType
from typing import IO, Any, Self, get_args, get_origin, get_type_hints

from ..errors import RunError, TraceError
from ..events import Began, CallArrived, Fact, Planned, Request
from ..files.fields import WrongField, flag, items, members, shown, whole
from ..files.schema import free_object, string
from ..files.source_file import is_compressed, lines
from ..files.strict_json import strict_json
from ..files.whole_file import PARTIAL, compressing, hold, unwritable

Record = Fact | Planned | Began

_BEGIN = b'{"fact":'
LARGEST_WHOLE = 2**63 - 1

_KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Record)}


class EventsWriter:
    """Writes an events file. A context manager whose `add` is a sink of a simulation.

    What is written goes to `PATH.partial`, which becomes `PATH` when the block ends well. After an interrupt, or when
    the engine failed, it stays as `PATH.partial`, made of whole lines; after another error nothing stays. The file is
    compressed as its name says. Raises `TraceError` when it cannot be written: also if what lies at `PATH.partial` is
    no events file, or is being written by another run.

    `at_once`: each line is handed to the system as it comes, so that none is lost if this process is killed; xz gathers
    them all the same. Else they are gathered, which is faster and compresses better.
    """

    def __init__(self, path: str | Path, *, at_once: bool = False) -> None:
        self.path = Path(path)
        self._at_once = at_once
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self._file: IO[str] | None = None
        self._held: int | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        try:
            with ExitStack() as opening:
                _make_room(self.partial)
                raw = opening.enter_context(open(self.partial, "xb"))  # x: never through a link
                self._held = hold(raw)
                content = opening.enter_context(compressing(raw, self.path))
                text = io.TextIOWrapper(content, encoding="ascii", newline="\n", line_buffering=self._at_once)
                self._file = opening.enter_context(text)
                self._closing = opening.pop_all()
        except OSError as error:
            raise unwritable(self.path, error) from None
        return self

    def add(self, record: Record) -> None:
        assert self._file is not None, "add is for the inside of the with block"
        try:
            line = encode(record)
        except ValueError:
            raise TraceError(f"{self.path}: {record!r} has a number that is not finite") from None
        try:
            self._file.write(line + "\n")
        except OSError as error:
            raise unwritable(self.path, error) from None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        stays = kind is not None and (issubclass(kind, RunError) or not issubclass(kind, Exception))
        try:
            self._closing.close()
            if kind is None:
                os.replace(self.partial, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from None
        finally:
            if not stays:
                self.partial.unlink(missing_ok=True)
            if self._held is not None:
                os.close(self._held)


def _make_room(partial: Path) -> None:
    """Removes what an interrupted run has left. Raises TraceError for anything else, and if it is being written."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return
    except OSError as error:
        if partial.is_symlink():
            raise TraceError(f"{partial}: is in the way: expected no link") from None
        raise error
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _is_ours(file.read(len(_BEGIN))):
            raise TraceError(f"{partial}: is in the way: expected nothing, or events of a run that was interrupted")
        try:
            held = hold(file)
        except BlockingIOError:
            raise TraceError(f"{partial}: another run is writing it") from None
        partial.unlink()
        if held is not None:
            os.close(held)


def _is_ours(start: bytes) -> bool:
    """Whether a file that begins so is one of events, perhaps compressed or with nothing in it yet."""
    return _BEGIN.startswith(start) or is_compressed(start)


def encode(record: Record) -> str:
    """One line without its end. Raises ValueError for a number that JSON cannot hold (NaN, infinity)."""
    fields: dict[str, object] = {"fact": type(record).__name__}
    fields.update(zip(record._fields, record, strict=True))
    if isinstance(record, CallArrived):
        fields["request"] = _request_fields(record.request)
    elif isinstance(record, Began):
        fields["costs"] = record.costs._asdict()
    return _dumps(fields)


_dumps = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def _request_fields(request: Request) -> dict[str, object]:
    tools = [tool._asdict() for tool in request.tools]
    return request._asdict() | {"tools": tools, "hints": request.hints._asdict()}


def read_events(path: str | Path) -> Iterator[Record]:
    """The records of an events file, one at a time.

    Raises `TraceError`, in one line that names file, line and field, for whatever is not as `EventsWriter` writes it.
    """
    for number, line in lines(path):
        yield decode(line, f"{path}:{number}")


def decode(line: bytes, where: str) -> Record:
    """The record of one line; `where` starts the message of the `TraceError` if it holds none."""
    if not line.endswith(b"\n"):
        raise TraceError(f"{where}: the line is cut off: expected a JSON object and the end of the line")
    try:
        return _tagged_record(strict_json(line))
    except WrongField as error:
        raise TraceError(f"{where}: {error}") from None


def _tagged_record(fields: object) -> Record:
    if not isinstance(fields, dict):
        raise WrongField("", f"expected an object, got {shown(fields)}")
    name = fields.pop("fact", None)
    if not isinstance(name, str) or name not in _KINDS:
        raise WrongField("fact", f"expected one of {', '.join(_KINDS)}, got {shown(name)}")
    try:
        record: Record = _record(_KINDS[name], fields)
    except WrongField as error:
        raise error.inside(name) from None
    return record


@cache
def _fields_of(kind: type) -> Mapping[str, object]:
    return get_type_hints(kind)


def _record(kind: type, value: object) -> Any:
    """A fact, or one of the records in it, with exactly the fields that it has in Python.

    One that has a default may be missing: it came later than files that are still read.
    """
    hints = _fields_of(kind)
    defaults = getattr(kind, "_field_defaults", {})
    found = members(value, hints.keys(), required=tuple(name for name in hints if name not in defaults))
    return kind(**{name: _value(hint, found[name], name) for name, hint in hints.items() if name in found})


def _value(hint: object, value: object, field: str) -> object:
    if isinstance(hint, UnionType):
        (kind,) = (arm for arm in get_args(hint) if arm is not NoneType)
        return None if value is None else _value(kind, value, field)
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        return tuple(_value(kind, item, f"{field}[{index}]") for index, item in enumerate(items(value, field)))
    if not isinstance(hint, type):
        return free_object(value, field)  # a plan
    if hint in _SCALARS:
        return _SCALARS[hint](value, field)
    try:
        return _record(hint, value)
    except WrongField as error:
        raise error.inside(field) from None


def _count(value: object, field: str) -> int:
    return whole(value, field, 0, LARGEST_WHOLE)


def _real(value: object, field: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE:
        return float(value)
    raise WrongField(field, f"expected a finite number, got {shown(value)}")


_SCALARS: Mapping[type, Callable[[object, str], object]] = {str: string(), bool: flag, int: _count, float: _real}
