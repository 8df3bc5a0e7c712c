"""An engine is measured: probes are played on it, and a machine is fitted to what its steps and copies took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ...policies.controller import Sink
from ...policies.run_settings import RunSettings
from ...policies.runs.playable import Playable
from ...traces.apps import Application
from ...traces.errors import EngineError
from ...traces.events import CallFinished
from ...traces.files.outputs import write_whole
from ..machine.machine import Machine
from .engine_info import MachineLimits, host_load_of, limits_of, name_of
from .fit import Fit, fit_for, rough_mix
from .host_load import HostLoad
from .probes.applications import COPY_POLICY, copy_probes, step_probes, trace_probes
from .probes.effort import FULL, Effort
from .samples_file import samples_text
from .step_mix import Shape

WARM_TOKENS = 16_384  # the most that the contexts of one length come to while it warms up

Progress: TypeAlias = Callable[[str, int, int], None]  # what is measured, how many calls of it have ended, of how many


Applications: TypeAlias = Callable[[MachineLimits], Iterable[Application]]  # on an engine of such limits; asked often


class Calibration(NamedTuple):
    """An engine, and what was fitted to it."""

    engine: Mapping[str, object]  # what it tells of itself, and as `host_load` how loaded its host was
    fit: Fit

    def machine(self, name: str | None = None) -> Machine:
        """The machine for the simulator. Without a name, it has the model's."""
        return self.fit.machine(name or name_of(self.engine))


def calibrate(
    engine: Playable,
    effort: Effort = FULL,
    *,
    applications: Applications | None = None,
    seed: int = 0,
    link_gbps: float | None = None,
    samples: Path | None = None,
    progress: Progress = lambda label, done, total: None,
) -> Calibration:
    """Measure an engine that does nothing else, and fit a machine to it.

    `applications` are what will be played: their steps are measured as well, and matter most in the fit. `seed` draws
    the order of the probes and the intervals of the fit; `link_gbps` is what copies were slowed down to, if they were.
    The file `samples` keeps what was measured, even if something ends it early, for `calibration_of(*read_samples(…))`.

    Raises EngineError if the engine is too small to measure, or if its copies cannot be: a server takes no policy from
    a file. Raises MachineError if it does not tell its limits, or if too little was measured.
    """
    info, facts = dict(engine.info()), list[Any]()
    limits, began = limits_of(info), HostLoad.now()

    def shapes(played: Applications) -> list[Shape]:
        return rough_mix(facts, limits, partial(played, limits)).shapes()

    try:
        measure(
            engine,
            limits,
            effort,
            facts.append,
            seed=seed,
            link_gbps=link_gbps,
            progress=progress,
            shapes=None if applications is None else partial(shapes, applications),
        )
    finally:
        info["host_load"] = began.until(HostLoad.now())
        if samples is not None and facts:
            write_whole(samples, samples_text(info, facts))
    return calibration_of(info, facts, applications, seed)


def calibration_of(
    engine: Mapping[str, object], facts: Iterable[object], applications: Applications | None = None, seed: int = 0
) -> Calibration:
    """Fits what was measured before. Raises MachineError for too little of it, or for wrong limits."""
    limits = limits_of(engine)
    played = None if applications is None else partial(applications, limits)
    return Calibration(engine, fit_for(facts, limits, played, seed, host_load_of(engine)))


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
