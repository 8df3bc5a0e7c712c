"""The machine that stands for an engine where both play the same."""

from __future__ import annotations

from ...policies.runs.playable import Playable
from ...traces.console.progress import Bar
from ...traces.console.terminal import say
from ...traces.variants.workload import Counts, Workload
from ..machine.machine import Machine
from .calibrate import calibrate
from .engine_info import limits_of, with_limits
from .probes.effort import QUICK


def twin_of(
    engine: Playable, workload: Workload, machine: Machine | None, bar: Bar, link_gbps: float | None = None
) -> Machine:
    """The `machine` with the engine's own limits; None: one that is fitted to it now, and for the workload.

    Says on stderr what is doubtful about the fit. Errors as `calibrate`.
    """
    if machine is not None:
        return with_limits(machine, limits_of(engine.info()))
    calibration = calibrate(
        engine,
        QUICK,
        applications=lambda limits: workload.play(limits, Counts()),
        seed=workload.seed,
        link_gbps=link_gbps,
        progress=lambda label, done, total: bar(label, done, total, ""),
    )
    for warning in calibration.fit.warnings():
        say(f"warning: {warning}", err=True)
    return calibration.machine()
