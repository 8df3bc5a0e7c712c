"""What else the computer did while something was measured: a figure that says whether to believe the times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SCHEDULED = Path("/proc/thread-self/schedstat")  # of Linux: ns on a CPU, ns ready and waiting for one, turns
CPUS = Path("/proc/stat")
STOLEN_COLUMN = 8  # of the first line of /proc/stat: what a hypervisor gave to other machines
COLUMNS = 9  # up to then, with the line's name; what follows is counted in these
LOADED = 0.05  # share of a thread's time that it waited, or of the CPUs' that was stolen, from which on it is said


@dataclass(frozen=True, slots=True)
class HostLoad:
    """Since when: what the thread that made it has waited, and what all CPUs have done, so far."""

    ran_ns: int | None
    waited_ns: int | None
    stolen: int | None
    ticks: int | None

    @classmethod
    def now(cls, scheduled: Path = SCHEDULED, cpus: Path = CPUS) -> Self:
        """The counters of this thread and of the computer; None what it does not tell."""
        ran, waited = _numbers(scheduled, 0, 2) or (None, None)
        ticks = _numbers(cpus, 1, COLUMNS)
        return cls(
            ran, waited, None if ticks is None else ticks[STOLEN_COLUMN - 1], None if ticks is None else sum(ticks)
        )

    def until(self, later: HostLoad) -> dict[str, float | None]:
        """What came between the two.

        `waited_share`: of the time that this thread had something to do, how much it waited for a CPU that others had.
        `stolen_share`: of all CPUs' time, how much other virtual machines took. None: the system does not tell.
        """
        return {
            "waited_share": _share(
                _between(self.waited_ns, later.waited_ns), _between(self.ran_ns, later.ran_ns), beside=True
            ),
            "stolen_share": _share(_between(self.stolen, later.stolen), _between(self.ticks, later.ticks)),
        }


def loaded_words(host_load: Mapping[str, float | None]) -> list[str]:
    """What to say of a host's load while an engine's times were taken, as `HostLoad.until` tells it; nothing of a quiet
    one."""
    found = []
    if (waited := host_load.get("waited_share") or 0.0) > LOADED:
        found.append(
            f"the host was loaded: for {waited:.0%} of the time in which the engine had something to do it waited"
            " for a CPU; measure where nothing else runs"
        )
    if (stolen := host_load.get("stolen_share") or 0.0) > LOADED:
        found.append(f"the host was loaded: other virtual machines took {stolen:.0%} of its CPUs' time")
    return found


def _numbers(path: Path, first: int, end: int) -> tuple[int, ...] | None:
    """Columns of a file's first line; None if they are not there."""
    try:
        found = tuple(int(word) for word in path.read_text().splitlines()[0].split()[first:end])
    except (OSError, ValueError, IndexError):
        return None
    return found if len(found) == end - first else None


def _between(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _share(part: int | None, whole: int | None, beside: bool = False) -> float | None:
    """A part of a whole, or of the two together if the part is beside it."""
    if part is None or whole is None:
        return None
    whole += part if beside else 0
    return part / whole if whole > 0 else None
