"""Runs of a workload on an engine, as a report has them: those that finished, and one that something ended early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...traces.errors import TokencakeError
from ...traces.format.events_file import EventsWriter
from ...traces.results.metrics import Metrics
from ...traces.results.reports.report import Run
from ...traces.results.reports.run_report import report_of
from ...traces.variants.workload import Counts, Workload
from ..registry import options_of
from ..run_settings import RunSettings
from .playable import Playable, Progress


class RunTurn(NamedTuple):
    """One run of several policies' repeats."""

    run_index: int  # of all runs, from 0
    policy: str
    repeat: int  # of the policy, from 1


def turns(policies: Sequence[str], repeats: int) -> Iterator[RunTurn]:
    """Each policy once, then each once more: what drifts drifts for all of them."""
    for index, policy in enumerate([*policies] * repeats):
        yield RunTurn(index, policy, index // len(policies) + 1)


class WorkloadRuns:
    """Runs of one workload on one engine. Each run comes with what it has played.

    Raises EngineError for an application that the engine can never serve, and TraceError if there is none to play: the
    whole trace is read first.
    """

    def __init__(self, engine: Playable, workload: Workload) -> None:
        self._info = dict(engine.info())
        workload.check_playable(engine.limits)
        self._engine = engine
        self._workload = workload
        self.finished: list[tuple[Run, Counts]] = []
        self.cut_off: list[tuple[Run, Counts]] = []

    def play(
        self,
        settings: RunSettings,
        *,
        repeat: int | None = None,
        events: Path | None = None,
        progress: Progress | None = None,
    ) -> Run:
        """Play the workload once. The run says which `repeat` it is; `events` is a file for what happens.

        Raises what `Playable.play` raises. Then, and after an interrupt, the run is one of `cut_off`, if a call of it
        had ended.
        """
        counts, metrics = Counts(), Metrics()
        spec, began_s = settings.policy, time.monotonic()
        label = {} if repeat is None else {"repeat": repeat}

        def run(wall_s: float, policy_s: float | None, more: Mapping[str, object]) -> Run:
            found = metrics.result()
            return Run(spec, options_of(spec), settings.seed, wall_s, policy_s, found, {**label, **more})

        try:
            with EventsWriter(events) if events else nullcontext() as writer:
                journal = writer.add if writer else None
                applications = self._workload.play(self._engine.limits, counts)
                stats = self._engine.play(applications, settings, [metrics.add], journal, progress)
        except (TokencakeError, KeyboardInterrupt) as error:
            so_far = metrics.result()
            if so_far["calls"] or so_far["aborted_calls"]:
                why = str(error) if isinstance(error, TokencakeError) else "interrupted"
                self.cut_off.append((run(time.monotonic() - began_s, None, {"partial": why}), counts))
            raise
        finished = run(stats.wall_s, stats.policy_s, stats.record())
        self.finished.append((finished, counts))
        return finished

    def play_in_turns(
        self,
        policies: Sequence[str],
        settings: RunSettings,
        repeats: int = 1,
        *,
        events: Callable[[int, str], Path | None] = lambda index, policy: None,
        progress: Callable[[int], Progress] | None = None,
    ) -> None:
        """Play the workload `repeats` times under each policy.

        `events` and `progress` are asked before each run, by its index, from 0: for its file, and for what is told how
        far it has come. Errors as `play`.
        """
        for turn in turns(policies, repeats):
            self.play(
                replace(settings, policy=turn.policy),
                repeat=turn.repeat if repeats > 1 else None,
                events=events(turn.run_index, turn.policy),
                progress=progress(turn.run_index) if progress else None,
            )

    def report(self) -> dict[str, Any]:
        """What `tokencake live` reports, schema `tokencake.report/1`. One run at least has finished, or was cut off."""
        sizes = {name: value for name, value in self._info.items() if name not in ("vllm", "model")}
        engine = {"name": "vllm", "version": self._info["vllm"]}
        machine = {"name": self._info["model"], **sizes}
        return report_of(self.finished, self._workload, machine, engine, self.cut_off)
