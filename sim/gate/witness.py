"""Plays a cell, and keeps what tells whether the next one behaves alike."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from ...policies.registry import load_policy
from ...traces.errors import PolicyError, RunError, TokencakeError
from ...traces.events import Asked, AskedShared, CallArrived, Planned, Polled
from ...traces.events_io import encode
from ...traces.metrics import Metrics
from ..simulate import simulate
from ..trials.cell import Cell, played
from .decisions import Decision, Decisions

DIGITS = 16  # of a digest: enough to tell runs apart, and short enough for a diff
NO_BEHAVIOUR = (Polled, Planned, Asked, AskedShared)  # what the policy was asked, asked and said: nothing that happened


class Digests(NamedTuple):
    """The beginnings of SHA-256 digests of a run, seen from three distances."""

    events: str  # what happened, and when
    order: str  # what happened, in which order, whenever
    decisions: str  # what the policy wanted


class Witness(NamedTuple):
    """What a cell came to: metrics, digests and decisions, or why there are none."""

    cell: Cell
    metrics: dict[str, Any] | None = None
    digests: Digests | None = None
    decisions: tuple[Decision, ...] = ()
    error: str | None = None
    mendable: bool = False  # whether the error is in what was asked for, and not in the policy


def witness(cell: Cell) -> Witness:
    """Run one cell. What is wrong with it becomes the witness's `error`, one line."""
    metrics, digest, decisions = Metrics(), _Digest(), Decisions()

    def journal(record: object) -> None:
        digest.add(record)
        decisions.add(record)

    try:
        applications, _ = played(cell)
        policy = load_policy(cell.policy, seed=cell.seed + cell.repeat, applications=applications)
        simulate(iter(applications), policy, cell.machine, [metrics.add], journal=journal)
    except TokencakeError as error:
        mendable = not isinstance(error, PolicyError)
        return Witness(cell, error=" ".join(str(error).split()), mendable=mendable)
    digests = Digests(*digest.result(), short(decisions.digest))
    return Witness(cell, metrics.result(), digests, tuple(decisions.made))


class _Digest:
    """Of what happened: with times, and without."""

    def __init__(self) -> None:
        self._events = hashlib.sha256()
        self._order = hashlib.sha256()

    def add(self, record: Any) -> None:
        if isinstance(record, NO_BEHAVIOUR):
            return
        self._events.update(f"{encode(record)}\n".encode())
        self._order.update(f"{_timeless(record)}\n".encode())

    def result(self) -> tuple[str, str]:
        return short(self._events), short(self._order)


def short(digest: Any) -> str:
    return str(digest.hexdigest()[:DIGITS])


def _timeless(record: Any) -> str:
    if isinstance(record, CallArrived):
        return f"CallArrived {record.request.id}"
    return f"{type(record).__name__} {[value for value in record if not isinstance(value, float)]}"


def witnesses(cells: Sequence[Cell], workers: int) -> Iterator[Witness]:
    """Play the cells, on so many processes, and give back what is finished.

    Raises RunError if one of the processes dies, as when memory runs out.
    """
    if workers == 1:
        yield from map(witness, cells)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy what threads of this process hold
    pool = ProcessPoolExecutor(workers, context, initializer=_leave_interrupts)
    try:
        for future in as_completed([pool.submit(witness, cell) for cell in cells]):
            yield future.result()
    except BrokenProcessPool:
        raise RunError("a process that played a case has died: try --workers 1") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C ends the command, and the command ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
