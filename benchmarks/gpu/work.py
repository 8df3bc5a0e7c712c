"""What a phase is given, and how it says that its time is spent."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import results
from .plan import Phase

if TYPE_CHECKING:
    from tokencake.live.client.in_process import InProcess

GRACE_S = 4.0  # before the limit, in which a phase that is late writes down what it has


class OutOfTime(Exception):
    """The phase's time is spent. What it noted is kept."""


class Work:
    """What a phase is given: where it writes, what it is to be, and how much time it has."""

    def __init__(self, out: Path, dry: bool, variant: str, session_end_s: float) -> None:
        self.out = out
        self.dry = dry
        self.variant = variant
        self.closing = ExitStack()  # of the process: what its phases share
        self.engine: InProcess | None = None  # that they share
        self.session_end_s = session_end_s  # by `time.monotonic`
        self._end_s = session_end_s
        self._result: results.Result = {}

    def begin(self, phase: Phase) -> None:
        self._end_s = min(time.monotonic() + phase.at_most_s(self.dry), self.session_end_s) - GRACE_S
        self._result = results.fresh(phase, results.RUNNING, variant=self.variant or None, found={})
        results.write(self.out, self._result)

    def end(self, status: str, seconds: float, **more: object) -> None:
        self._result |= {"status": status, "seconds": round(seconds, 2), **more}
        results.write(self.out, self._result)

    def note(self, **found: object) -> None:
        """Add to what was found, and write it down: it stays whatever comes."""
        self._result["found"] |= found
        results.write(self.out, self._result)

    def noted(self, name: str) -> Any:
        """What this phase has found by that name; None if nothing yet."""
        return self._result["found"].get(name)

    @property
    def left_s(self) -> float:
        """Until this phase has to be through."""
        return self._end_s - time.monotonic()

    def watch(self, applications: int, at_s: float) -> None:
        """Progress of a live run. Raises `OutOfTime`."""
        if self.left_s < 0:
            raise OutOfTime(f"stopped after {at_s:.0f} s, when {applications} applications had ended")

    def folder(self, name: str) -> Path:
        """A folder of its own for files that a phase needs."""
        path = self.out / "files" / name
        path.mkdir(parents=True, exist_ok=True)
        return path
