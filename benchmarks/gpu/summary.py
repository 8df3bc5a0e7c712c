"""All that a session has found in one file, and in one text."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from tokencake import __version__
from tokencake.sim.fidelity import validation, validation_text
from tokencake.sim.machine.machine import Switch
from tokencake.traces.files.escaping import one_line
from tokencake.traces.files.schema import list_of, map_of, record, ruled, string

from . import results
from .plan import PLAYED, Process
from .results import CALIBRATED, PREDICTIONS

FILE = "session.json"
WIDTH = 120
DRY = "A dry run on a CPU: its figures mean nothing."

_CALL = record({"began": string(), "command": string(100_000)})
SESSION = record({"commands": list_of(_CALL)}, {"dry": ruled(Switch().problem)}, others=results.anything)
_OF_POLICIES = record(dict.fromkeys(PLAYED, map_of(results.anything)), others=results.anything)
PREDICTED = record(
    {"predictions": map_of(_OF_POLICIES), "written": string(), "machines": map_of(results.anything)},
    others=results.anything,
)


def write(out: Path, processes: Sequence[Process], *, command: str, dry: bool, began: str) -> None:
    """The phases as they are now. Of each call of the command, when it began and which it was."""
    before = results.read_json(out / FILE, SESSION) or {"commands": []}
    calls = [call for call in before["commands"] if call["began"] != began]
    content = {
        "schema": results.SCHEMA,
        "tokencake": __version__,
        "dry": dry,
        "commands": [*calls, {"began": began, "command": command}],
        "written": results.utc(),
        "phases": results.all_results(out, processes),
        "predictions": results.read_json(out / PREDICTIONS, PREDICTED),
        "validation": compared(out),
    }
    results.write_json(out / FILE, content)


def text(out: Path, found: list[results.Result]) -> str:
    """The table of phases, what they warn of, then what was predicted beside what came; if dry, no verdicts."""
    dry = was_dry(out)
    lines = [results.table(found)]
    warnings = [f"{phase['phase']}: {said}" for phase in found for said in phase.get("found", {}).get("warnings", [])]
    if warnings:
        lines += ["", *(f"warning: {one_line(warning)}" for warning in warnings)]
    report = compared(out)
    if report is not None and report["runs"]:
        screen = Console(file=StringIO(), width=WIDTH, highlight=False, markup=False, emoji=False)
        screen.print(validation_text.tables(report, WIDTH))
        for line in validation_text.words(report, verdicts=not dry):
            screen.print(line, soft_wrap=True)
        assert isinstance(screen.file, StringIO)
        lines += ["", screen.file.getvalue().rstrip()]
    if dry:
        lines += ["", DRY]
    return "\n".join(lines)


def was_dry(out: Path) -> bool | None:
    """Whether the session in a folder plays stand-ins; None if nothing is written of one."""
    session = results.read_json(out / FILE, SESSION)
    return None if session is None else session.get("dry")


def compared(out: Path) -> dict[str, Any] | None:
    """Live runs that were played to their ends beside what the calibrated machine, or else the preset, said before."""
    said = results.read_json(out / PREDICTIONS, PREDICTED)
    if said is None:
        return None
    name = CALIBRATED if CALIBRATED in said["predictions"] else next(iter(said["predictions"]))
    trials = []
    for policy in PLAYED:
        live = (results.read(out, f"live-{policy}") or {}).get("found", {})
        if "live" in live and "parity" in live:
            trial = validation.Trial(policy, said["predictions"][name][policy], failed=live["stats"]["failed"])
            trial.live.append(live["live"])
            trial.parity.append(live["parity"])
            trials.append(trial)
    return validation.build({"predicted_by": name, "predicted": said["written"]}, trials)
