"""What a policy decided in a run, one decision after another, and where two runs part.

A decision is a plan that is not the one before it, or that moves blocks. A policy that is asked more often, and says
the same, decides the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ...policies.replay.replay import differing, plain
from ...traces.errors import TokencakeError
from ...traces.events import Planned
from ...traces.files.fields import WrongField, shown
from ...traces.files.schema import free, map_of, measured, one_of, printable, record, string, whole_from
from ...traces.files.source_file import check_file, whole
from ...traces.files.strict_json import strict_json

SCHEMA = "tokencake.decisions/1"
KEPT_CHARACTERS = 400_000  # of decisions as JSON, that a baseline keeps: some 60 KB when compressed
LARGEST_FILE_BYTES = 4_000_000
ONCE = ("offload", "upload", "cancel", "forget")  # fields of a plan that are done once: wanting them twice is not one


class Decision(NamedTuple):
    """What was wanted from some moment on: the plan's fields that are not at their defaults."""

    at_s: float
    plan: Mapping[str, Any]


class DecisionDifference(NamedTuple):
    """The first decision that is not as it was. A plan that is None: there was no such decision."""

    number: int  # from 1
    at_s: float
    old_at_s: float | None
    about: str | None  # the call or the agent at which the plans part
    old: Mapping[str, Any] | None  # the fields that differ
    new: Mapping[str, Any] | None


class StoredDecisions(NamedTuple):
    """The decisions of a run as a baseline keeps them: from the first on, as many as there is room for."""

    total: int
    decisions: tuple[Decision, ...]


class Decisions:
    """Collects the decisions of a run. `add` takes every record of its journal."""

    def __init__(self) -> None:
        self.made: list[Decision] = []
        self.digest = hashlib.sha256()  # of the plans in their order; not of their times
        self._last: Mapping[str, Any] | None = None

    def add(self, record: object) -> None:
        if type(record) is not Planned:
            return
        plan = record.plan
        if plan == self._last and not any(field in plan for field in ONCE):
            return
        self._last = plan
        self.made.append(Decision(record.at_s, plan))
        self.digest.update(_dumps(plan).encode() + b"\n")


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def first_difference(old: StoredDecisions, new: Sequence[Decision]) -> DecisionDifference | None:
    """Where two runs part; None if they do not in what was kept of the old one."""
    whole = old.total == len(old.decisions)
    for number, (was, now) in enumerate(zip_longest(old.decisions, new), start=1):
        if was is None:
            if not whole:
                return None  # what was kept ends here
            return DecisionDifference(number, now.at_s, None, _first_named(now.plan), None, now.plan)
        if now is None:
            return DecisionDifference(number, was.at_s, was.at_s, _first_named(was.plan), was.plan, None)
        if fields := differing(was.plan, now.plan):
            one = {name: pair[0] for name, pair in fields.items()}
            other = {name: pair[1] for name, pair in fields.items()}
            return DecisionDifference(number, now.at_s, was.at_s, _parting(one, other), one, other)
    return None


def _parting(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first call or agent that only one of the plans has in some place."""
    for field in old:
        one, other = list(_names(old[field])), list(_names(new[field]))
        for was, now in zip_longest(one, other):
            if was != now:
                return str((now or was)[0])
    return _first_named(new) or _first_named(old)


def _first_named(plan: Mapping[str, Any]) -> str | None:
    return next((str(item[0]) for value in plan.values() for item in _names(value)), None)


def _names(value: Any) -> Iterator[tuple[Any, ...]]:
    """The calls or agents that a field of a plan names, each with what is wanted of it."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        for item in value:
            yield tuple(item) if isinstance(item, list | tuple) else (item,)


# -- the file beside a baseline


def packed(decisions: Sequence[Decision]) -> str:
    """The text of a decisions file: a header, and a line each: its time, and the fields that are not as before."""
    lines, characters, last = list[str](), 0, dict[str, Any]()
    for decision in decisions:
        plan = plain(decision.plan)
        changed = {name: value for name, value in plan.items() if last.get(name) != value}
        gone = dict.fromkeys((name for name in last if name not in plan), None)
        line = _dumps([decision.at_s, changed | gone])
        characters += len(line) + 1
        if characters > KEPT_CHARACTERS:
            break
        lines.append(line)
        last = plan
    header = {"schema": SCHEMA, "decisions": len(decisions), "kept": len(lines)}
    return "".join(f"{line}\n" for line in (_dumps(header), *lines))


def write_bytes(text: str) -> bytes:
    """Compressed; equal texts give equal bytes."""
    return gzip.compress(text.encode(), 9, mtime=0)


def read_text(path: Path) -> str | None:
    """The text of a decisions file; None if there is no such file. Raises TokencakeError if it is damaged."""
    check_file(path, TokencakeError)
    if not path.exists():
        return None
    try:
        return whole(path, LARGEST_FILE_BYTES, TokencakeError).decode()
    except UnicodeDecodeError:
        raise TokencakeError(f"{path}: expected text in UTF-8, got other bytes") from None


def unpacked(text: str, where: str) -> StoredDecisions:
    """The decisions of a file's text. Raises TokencakeError, with `where`, for what `packed` has not written."""
    try:
        header, *lines = [strict_json(line.encode()) for line in text.split("\n")[:-1]] or [None]
        told = _HEADER(header, "header")
        if told["kept"] != len(lines) or told["decisions"] < len(lines):
            raise WrongField("header", f"expected {len(lines)} decisions that are kept, of as many or more")
        return StoredDecisions(told["decisions"], tuple(_restored(lines)))
    except WrongField as wrong:
        raise TokencakeError(
            f"{where}: expected decisions as `tokencake check --update` writes them: {wrong}"
        ) from None


def _field(value: object, field: str) -> Any:
    """A field of a plan: a switch, a time, a word, or the calls and agents that it names, each with its wishes."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            place = f"{field}[{index}]"
            _word(item[0] if isinstance(item, list) and item else item, place)
    return free(value, field, 4)


_word = string(1000)
_HEADER = record({"schema": one_of(SCHEMA), "decisions": whole_from(0), "kept": whole_from(0)})
_CHANGES = map_of(_field, key=printable(100), most=100)


def _restored(lines: Sequence[object]) -> Iterator[Decision]:
    plan: dict[str, Any] = {}
    for index, line in enumerate(lines):
        place = f"decisions[{index}]"
        if not isinstance(line, list) or len(line) != 2:
            raise WrongField(place, f"expected [seconds, fields], got {shown(line)}")
        at_s, changed = measured(line[0], place), _CHANGES(line[1], place)
        plan = {name: value for name, value in {**plan, **changed}.items() if value is not None}
        yield Decision(float(at_s), plan)
