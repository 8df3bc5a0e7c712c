"""What a rerun came to: the records of both sides compared kind by kind, and where they part first."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ...policies.replay.replay import plain
from ...traces import events as e
from ...traces.format.events_file import Record

ADMISSIONS = "CallAdmitted"
WHEN = ("at_s", "from_s")
LIMIT = "max_running"  # of the engine: older records do not know it
# What the engine decides, or what follows from it. Not compared: what the record tells the simulator.
COMPARED = (
    e.CallAdmitted, e.CallPreempted, e.FirstToken, e.CallFinished, e.LoadStarted, e.LoadFinished, e.OffloadStarted,
    e.OffloadFinished, e.OffloadRefused, e.HostDropped, e.UploadStarted, e.UploadFinished, e.UploadTaken,
    e.UploadCancelled, e.UploadReleased, e.UploadRefused, e.StoreStarted, e.StoreFinished, e.StoreRefused, e.Stepped,
    e.Polled, e.Asked, e.AskedShared, e.Planned,
)  # fmt: skip


class Parting(NamedTuple):
    """Where the simulator first did something else: the n-th record of a kind, from 1. None: there was none."""

    number: int
    recorded: Record | None
    simulated: Record | None


@dataclass(slots=True)
class Tally:
    """The records of one kind, in their order."""

    recorded: int = 0
    simulated: int = 0
    different: int = 0
    first: Parting | None = None
    _ahead: deque[Record] = field(default_factory=deque)  # of whichever side is ahead

    @property
    def equal(self) -> bool:
        return not self.different and self.recorded == self.simulated

    def take(self, record: Record, of_simulator: bool) -> None:
        """The next record of one side."""
        leads = self.simulated - self.recorded if of_simulator else self.recorded - self.simulated
        if of_simulator:
            self.simulated += 1
        else:
            self.recorded += 1
        if leads >= 0:
            self._ahead.append(record)
            return
        other = self._ahead.popleft()
        if content(other) != content(record):
            pair = (other, record) if of_simulator else (record, other)
            self._parts(min(self.simulated, self.recorded), *pair)

    def close(self) -> None:
        """No record follows: what is left over has nothing to be compared with."""
        if self._ahead:
            record = self._ahead[0]
            number = min(self.simulated, self.recorded) + 1
            self._parts(number, *((None, record) if self.simulated > self.recorded else (record, None)))
            self.different += len(self._ahead) - 1
            self._ahead.clear()

    def _parts(self, number: int, recorded: Record | None, simulated: Record | None) -> None:
        self.different += 1
        if self.first is None:
            self.first = Parting(number, recorded, simulated)


@dataclass(slots=True)
class Agreement:
    """What the comparison came to, by kind of record. `ended`: why it could not be carried to the record's end."""

    tallies: Mapping[str, Tally]
    ended: str | None = None

    @property
    def same_admissions(self) -> bool:
        """The same calls were admitted in the same order, with the same hits."""
        return self.ended is None and self.tallies[ADMISSIONS].equal

    @property
    def equal(self) -> bool:
        return self.ended is None and all(tally.equal for tally in self.tallies.values())

    def record(self) -> dict[str, object]:
        """As a validation shows it: how many admissions and how many records of all kinds, and how many differ."""
        admissions, tallies = self.tallies[ADMISSIONS], self.tallies.values()
        return {
            "admissions": admissions.recorded,
            "admissions_different": admissions.different,
            "records": sum(tally.recorded for tally in tallies),
            "records_different": sum(tally.different for tally in tallies),
            "ended": self.ended,
        }


def content(record: Record) -> tuple[object, ...]:
    """All that is decided, but how long it took. When it was, to the last digit, says of which step it was."""
    if isinstance(record, e.Planned):
        return (record.__class__, record.at_s, plain(record.plan), record.questions)
    fields = [(name, value) for name, value in zip(record._fields, record, strict=True) if name != LIMIT]
    return (record.__class__, *(value for name, value in fields if name in WHEN or not name.endswith("_s")))
