"""The port between an engine that plays applications in real time, and whatever compares policies on it.

`live.client` has two engines behind it: vLLM in this process, and vLLM on a server. What only needs applications to be
played on some engine is written against this port, and is tested with engines that are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from ...traces.apps import Application
from ...traces.limits import Limits
from ..controller import Sink
from ..run_settings import RunSettings

Progress: TypeAlias = Callable[[int, float], None]  # applications that ended, seconds since the run began


class PlayStats(Protocol):
    """What a run came to, beside its facts. Times are wall time."""

    @property
    def wall_s(self) -> float: ...
    @property
    def policy_s(self) -> float: ...  # spent in the policy
    @property
    def errors(self) -> Sequence[str]: ...  # what the policy raised: the engine went on without it

    def record(self) -> Mapping[str, object]:
        """What a report says of the run beside its metrics, see `live.client.in_process.LiveStats`."""
        ...


class Playable(Protocol):
    """An engine. Plays any number of runs, one after another."""

    @property
    def limits(self) -> Limits:
        """What bounds the calls that it can serve."""
        ...

    def info(self) -> Mapping[str, object]:
        """What it is: versions, model, sizes and settings, as plain data."""
        ...

    def play(
        self,
        applications: Iterable[Application],
        settings: RunSettings,
        sinks: Sequence[Sink] = (),
        journal: Sink | None = None,
        progress: Progress | None = None,
    ) -> PlayStats:
        """Run all applications to their ends under a policy, on an empty cache, and report the facts as they happen.

        The journal gets what the sinks get, and the questions and plans between. Raises `EngineError` for what the
        user can mend, `PolicyError` for a policy that is not there, and `RunError` for a run that failed in the
        engine; after any of them, and after an interrupt, it can play again, unless the engine has died.
        """
        ...
