"""An engine is measured: probes are played on it, and their facts tell what its steps and copies took."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ...policies.controller import Sink
from ...policies.playable import Playable
from ...policies.run_settings import RunSettings
from ...traces.apps import Application
from ...traces.errors import EngineError
from ...traces.events import CallFinished
from .engine_info import MachineLimits
from .probes.applications import COPY_POLICY, copy_probes, step_probes, trace_probes
from .probes.effort import Effort
from .step_mix import Shape

WARM_TOKENS = 16_384  # the most that the contexts of one length come to while it warms up

Progress = Callable[[str, int, int], None]  # what is being measured, how many calls of it have ended, of how many


def measure(
    engine: Playable,
    limits: MachineLimits,
    effort: Effort,
    sink: Sink,
    *,
    seed: int = 0,
    link_gbps: float | None = None,
    progress: Progress = lambda label, done, total: None,
    shapes: Callable[[], Iterable[Shape]] | None = None,
) -> None:
    """Plays the probes on an engine, after a run that only warms it up; the sink gets the facts of all but that.

    `shapes` is asked, once the sink has the steps, which others are to be measured. Raises EngineError if the engine is
    too small to measure, or if its copies cannot be.
    """
    shorter = replace(effort, repeats=1, decode_steps=2, cached_tokens=min(effort.cached_tokens, WARM_TOKENS))
    warm, steps = step_probes(limits, shorter, seed), step_probes(limits, effort, seed)
    engine.play([warm], RunSettings(), [_counting("warming up", warm, progress)])
    engine.play([steps], RunSettings(steps=True), [sink, _counting("steps", steps, progress)])
    if shapes is not None and (played := trace_probes(limits, effort, shapes(), seed)) is not None:
        engine.play([played], RunSettings(steps=True), [sink, _counting("steps of the trace", played, progress)])
    copies = copy_probes(limits, effort, link_gbps)
    if copies is not None:
        settings = RunSettings(policy=COPY_POLICY)
        stats = engine.play([copies], settings, [sink, _counting("copies", copies, progress)])
        if stats.errors:
            raise EngineError(f"copies cannot be measured: {stats.errors[0]}")


def _counting(label: str, application: Application, progress: Progress) -> Sink:
    """A sink that shows how many of an application's calls have ended."""
    ended = 0

    def add(fact: object) -> None:
        nonlocal ended
        if isinstance(fact, CallFinished):
            ended += 1
            progress(label, ended, len(application.calls))

    return add
