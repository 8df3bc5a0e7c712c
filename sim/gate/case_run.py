"""Plays a run, and keeps what tells whether the next one behaves alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from ...policies.registry import load_policy, owner
from ...traces.errors import PolicyError, PolicyFault, TokencakeError
from ...traces.events import Asked, AskedShared, CallArrived, Planned, Polled
from ...traces.format.events_file import encode
from ...traces.results.metrics import Metrics
from ..engine.simulate import simulate
from ..experiments.executors import agenda_of
from ..experiments.preflight import SeededPolicy, make_once
from ..experiments.processes.agenda import Agenda
from ..experiments.processes.workers import Workers
from ..experiments.run import RunSpec, applications_of
from .decisions import Decision, Decisions

DIGITS = 16  # of a digest: enough to tell runs apart, and short enough for a diff
NO_BEHAVIOUR = (Polled, Planned, Asked, AskedShared)  # what the policy was asked, asked and said: nothing that happened


class Digests(NamedTuple):
    """The beginnings of SHA-256 digests of a run, seen from three distances."""

    events: str  # what happened, and when
    order: str  # what happened, in which order, whenever
    decisions: str  # what the policy wanted


class CaseRun(NamedTuple):
    """What a run came to: metrics, digests and decisions, or why there are none."""

    spec: RunSpec
    metrics: dict[str, Any] | None = None
    digests: Digests | None = None
    decisions: tuple[Decision, ...] = ()
    error: str | None = None
    mendable: bool = False  # whether the error is in what was asked for, and not in the policy


def run_case(spec: RunSpec) -> CaseRun:
    """Play one run of a case. What is wrong with it becomes its `error`, one line."""
    metrics, digest, decisions = Metrics(), _Digest(), Decisions()

    def journal(record: object) -> None:
        digest.add(record)
        decisions.add(record)

    try:
        applications, _ = applications_of(spec)
        policy = load_policy(spec.policy, seed=spec.seed + spec.repeat, applications=applications)
        simulate(iter(applications), policy, spec.machine, [metrics.add], journal=journal)
    except TokencakeError as error:
        mendable = not isinstance(error, PolicyError)
        return CaseRun(spec, error=" ".join(str(error).split()), mendable=mendable)
    digests = Digests(*digest.result(), short(decisions.digest))
    return CaseRun(spec, metrics.result(), digests, tuple(decisions.made))


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


class Players:
    """Plays runs, `workers` at a time, each in a process that its policy may leave or keep as it likes.

    0 workers: here, where a policy can end this process; for tests of what is built of this.
    """

    def __init__(self, workers: int, policy_timeout_s: float | None) -> None:
        self._pool = Workers(workers, policy_timeout_s, lambda item: owner(item.policy)) if workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.end()

    def preflight(self, policies: Iterable[SeededPolicy]) -> Mapping[SeededPolicy, PolicyError]:
        """Makes each policy once: what is wrong with those that cannot be made."""
        wanted = list(dict.fromkeys(policies))
        if self._pool is None:
            found = {seeded: _fault_of(seeded) for seeded in wanted}
        else:
            found = dict(self._pool.play(_fault_of, Agenda(wanted), _died))
        return {seeded: fault for seeded, fault in found.items() if fault is not None}

    def play(self, specs: Iterable[RunSpec]) -> Iterator[CaseRun]:
        """What each run comes to, as they finish. A policy that did something wrong once is not asked again."""
        todo = list(specs)
        failed: dict[str, CaseRun] = {}
        played: set[RunSpec] = set()
        for one in self._played(agenda_of(todo, lambda spec: spec.policy not in failed)):
            if one.error is not None and not one.mendable:
                failed.setdefault(one.spec.policy, one)
            played.add(one.spec)
            yield one
        yield from (failed[spec.policy]._replace(spec=spec) for spec in todo if spec not in played)

    def _played(self, agenda: Agenda[RunSpec]) -> Iterator[CaseRun]:
        if self._pool is not None:
            yield from (one for _, one in self._pool.play(run_case, agenda, lost))
            return
        while (spec := agenda.draw(self)) is not None:
            yield run_case(spec)


def lost(spec: RunSpec, why: str) -> CaseRun:
    """What a run came to whose process has died."""
    return CaseRun(spec, error=f"policy {spec.policy}: {why}")


def _fault_of(seeded: SeededPolicy) -> PolicyError | None:
    """What is wrong with a policy that cannot be made."""
    try:
        make_once(seeded)
    except PolicyError as error:
        return type(error)(str(error))
    return None


def _died(seeded: SeededPolicy, why: str) -> PolicyError:
    return PolicyFault(f"policy {seeded.policy}: {why}")
