"""What may follow what: which facts may come while an application, a call or an agent is in which status.

An engine that reports any other fact has a bug, and its policy would decide on a wrong view from then on: the ledger
raises `FactError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from ..traces import events as e
from ..traces.errors import FactError
from ..traces.events import Fact
from .interface import Status


class AppStatus(Enum):
    """Where an application is."""

    STARTED = "started"


class CallStatus(Enum):
    """Where a call is."""

    WAITING = "waiting"
    LOADING = "loading"  # waiting, too, and blocks of its prompt are copied from the host, or have been
    RUNNING = "running"

    __hash__ = object.__hash__  # an Enum's own one is slow, and every fact asks for it


S = TypeVar("S", bound=Enum)
Transitions = Mapping[type, Mapping[S | None, S | None]]  # by fact: from which status to which; None: not there

APPS: Transitions[AppStatus] = {
    e.AppStarted: {None: AppStatus.STARTED},
    e.CallArrived: {AppStatus.STARTED: AppStatus.STARTED},
    e.AppFinished: {AppStatus.STARTED: None},
}


def _call_table() -> Transitions[CallStatus]:
    waiting, loading, running = CallStatus
    # With a step in flight the tokens of a call may come after its preemption.
    stays: dict[CallStatus | None, CallStatus | None] = {status: status for status in CallStatus}
    ends: dict[CallStatus | None, CallStatus | None] = dict.fromkeys(CallStatus)
    return {
        e.CallArrived: {None: waiting},
        e.LoadStarted: {waiting: loading, loading: loading},  # what was loaded may be lost again before it is used
        e.LoadFinished: {loading: loading},
        e.CallAdmitted: {waiting: running, loading: running},
        e.FirstToken: stays,
        e.CallPreempted: {running: waiting},
        e.CallFinished: ends,
        e.CallAborted: ends,
    }


def _agent_table() -> Transitions[Status]:
    waiting, running, stalled, idle = Status
    has_call = (idle, waiting, running)  # a live agent may have several, and shows what happened last to any of them
    stays: dict[Status | None, Status | None] = {status: status for status in Status}
    return {
        e.CallArrived: dict.fromkeys((None, *Status), waiting),
        e.CallAdmitted: dict.fromkeys(has_call, running),
        e.CallPreempted: dict.fromkeys(has_call, waiting),
        e.CallFinished: dict.fromkeys(has_call, idle),
        e.CallAborted: dict.fromkeys(has_call, idle),
        e.ToolStarted: {idle: stalled},
        e.ToolReturned: {stalled: idle},
        e.OffloadStarted: stays,  # the other facts of an agent's copies may come when it has gone
        e.UploadStarted: stays,
        e.AppFinished: {idle: None, stalled: None},
    }


CALLS = _call_table()
AGENTS = _agent_table()


def out_of_place(table: Transitions[S], fact: Fact, name: str, status: S | None) -> FactError:
    """The error about a fact that has no place in the table for the status of the one that it is about."""
    kind = "application" if table is APPS else "call" if table is CALLS else "agent"
    expected = " or ".join(_words(other) for other in table[type(fact)])
    return FactError(
        f"{type(fact).__name__} at {fact.at_s:.6f} s: {kind} {name!r} is {_words(status)}: expected {expected}"
    )


def _words(status: Enum | None) -> str:
    return "not there" if status is None else str(status.value)
