"""A record read step by step, and what its facts are to a rerun."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from ...traces import events as e
from ...traces.apps import CallId
from ...traces.errors import TraceError
from ...traces.events import Fact
from ...traces.format.events_file import Record

World = e.AppStarted | e.AppFinished | e.CallArrived | e.ToolStarted | e.ToolReturned
CopyEnd = e.OffloadFinished | e.UploadFinished | e.UploadReleased | e.LoadFinished | e.StoreFinished
OfACall = e.LoadStarted | e.LoadFinished | e.StoreStarted | e.StoreFinished
# What a step begins with.
SCHEDULING = (e.Polled, e.CallAdmitted, e.CallPreempted, e.LoadStarted, e.StoreStarted, e.StoreRefused)
OF_THE_POLICY = (e.Polled, e.Asked, e.AskedShared, e.Planned)


class ImpossibleRecord(TraceError):
    """What a record tells cannot be after all that it told before, or in the applications that are known."""


class StepRecords(NamedTuple):
    """What is recorded up to the end of a step: first what came before its outcome, then that."""

    before: Sequence[Fact | e.Planned]
    outcome: Sequence[Fact | e.Planned]  # begins with a first token or the end of a call
    stepped: e.Stepped | None  # None behind the last step


def step_records(records: Iterable[Record]) -> Iterator[StepRecords]:
    """A record step by step. Raises `TraceError` if the steps were not recorded."""
    before: list[Fact | e.Planned] = []
    outcome: list[Fact | e.Planned] = []
    last_s = -inf
    for record in records:
        if isinstance(record, e.Stepped):
            if record.from_s < last_s:
                expected = f"{last_s} or later, as steps end in the order in which they were scheduled"
                raise ImpossibleRecord(f"Stepped: from_s: expected {expected}, got {record.from_s}")
            last_s = record.from_s
            yield StepRecords(before, outcome, record)
            before, outcome = [], []
            continue
        if isinstance(record, e.RunStarted):
            raise ImpossibleRecord("RunStarted: expected the records of one run, got a second one")
        if outcome and isinstance(record, SCHEDULING):
            break
        if not isinstance(record, e.Began):
            ended = outcome or isinstance(record, e.FirstToken | e.CallFinished)
            (outcome if ended else before).append(record)
    if outcome:
        raise ImpossibleRecord(
            "the record has outcomes of steps, but no Stepped: steps are recorded when that is asked for"
        )
    yield StepRecords(before, outcome, None)


def computes(step: e.Stepped) -> bool:
    """Whether a recorded step computed anything."""
    return bool(step.prefill_tokens or step.decode_calls)


def behind_finished(group: Iterable[Record]) -> dict[CallId, list[World]]:
    """By call that ended in a step, what of the world is told before anything else of that step."""
    behind: dict[CallId, list[World]] = {}
    last: CallId = ""
    for record in group:
        if isinstance(record, e.CallFinished):
            last = record.call
        elif isinstance(record, World):
            behind.setdefault(last, []).append(record)
    return behind
