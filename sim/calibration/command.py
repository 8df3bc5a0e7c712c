"""`tokencake calibrate`: a machine out of an engine that is measured now, or out of what was measured before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import NamedTuple

from ...policies.runs.playable import Playable
from ...traces.console.progress import progress_bar
from ...traces.errors import MachineError, TokencakeError
from ...traces.files.json_file import json_text
from ...traces.files.outputs import check_outputs, outputs_of
from ...traces.files.whole_file import STANDARD_OUTPUT
from ...traces.limits import Limits
from ...traces.results.reports.publishing import publish, show
from ...traces.variants.workload import Counts, Workload, WorkloadOptions
from ...traces.version import __version__
from ..machine.files import inputs_of, machine_toml
from ..machine.machine import RULES
from .calibrate import Applications, Calibration, calibrate, calibration_of
from .engine_info import limits_of
from .probes.effort import Effort
from .report import build, comments, tables
from .samples_file import read_samples

AS_IT_IS = WorkloadOptions()


class CalibrationOutputs(NamedTuple):
    """Where a calibration goes, and what its machine is called."""

    machine_file: Path | None = None
    json_file: str | None = None
    samples: Path | None = None  # what was measured
    name: str | None = None  # None: the model's

    def check(self, *inputs: Path | None) -> None:
        """Finds what cannot be written before the work is done."""
        if self.name is not None and (problem := RULES["name"].problem(self.name)):
            raise TokencakeError(f"--name: {problem}")
        outputs = outputs_of(output=self.machine_file, samples=self.samples, json=self.json_file)
        check_outputs(outputs, inputs_of(*inputs))

    def publish(self, calibration: Calibration) -> None:
        """Write the machine and the report; people get tables and warnings, unless standard output is taken."""
        engine, fit = calibration
        machine = calibration.machine(self.name)

        def people() -> None:
            if str(self.samples) != STANDARD_OUTPUT:
                show([f"warning: {warning}" for warning in fit.warnings()], lambda width: tables(fit))

        publish(
            (
                (self.machine_file, lambda: machine_toml(machine, comments(engine, fit, str(date.today())))),
                (self.json_file, lambda: json_text(build(__version__, engine, fit, machine))),
            ),
            people,
        )


def run_calibrate(
    start: Callable[[], AbstractContextManager[Playable]],
    effort: Effort,
    outputs: CalibrationOutputs,
    trace: Path | None = None,
    workload: WorkloadOptions = AS_IT_IS,
    *,
    link_gbps: float | None = None,
    progress: bool = False,
) -> None:
    """Measure an engine, and for a trace, if there is one, also the steps that it is made of.

    `link_gbps` is what the engine's copies are slowed down to; `progress`: shown even if stderr is no terminal. Raises
    TokencakeError for whatever a user can mend: before the engine starts, if it can be found then.
    """
    played = _checked(outputs, trace, workload, None)
    with start() as engine, progress_bar(progress) as bar:
        calibration = calibrate(
            engine,
            effort,
            applications=_applications(played, engine.limits),
            seed=workload.seed,
            link_gbps=link_gbps,
            samples=outputs.samples,
            progress=lambda label, done, total: bar(label, done, total, ""),
        )
    outputs.publish(calibration)


def run_calibrate_from(
    recorded: Path,
    outputs: CalibrationOutputs,
    trace: Path | None = None,
    workload: WorkloadOptions = AS_IT_IS,
) -> None:
    """The same from a file of samples, without an engine. Its mistakes are named with it."""
    played = _checked(outputs, trace, workload, recorded)
    try:
        engine, facts = read_samples(recorded)
        applications = None if played is None else _applications(played, limits_of(engine))
        calibration = calibration_of(engine, facts, applications, workload.seed)
        calibration.machine(outputs.name)
    except MachineError as error:
        raise MachineError(f"{recorded}: {error}") from None
    outputs.publish(calibration)


def _checked(
    outputs: CalibrationOutputs, trace: Path | None, workload: WorkloadOptions, recorded: Path | None
) -> Workload | None:
    """What will be played, if that is known."""
    workload.check()
    outputs.check(recorded, trace)
    return None if trace is None else workload.of(trace)


def _applications(workload: Workload | None, limits: Limits) -> Applications | None:
    if workload is None:
        return None
    workload.check_playable(limits)
    return lambda of_engine: workload.play(of_engine, Counts())
