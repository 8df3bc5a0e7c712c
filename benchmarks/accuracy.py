"""The figures of docs/accuracy.md: what is simulated beside what was measured, and how far it moves.

    python benchmarks/accuracy.py --json FIGURES                            # plays everything: some three minutes
    python benchmarks/accuracy.py --from FIGURES --write docs/accuracy.md   # puts its tables into the document

Every table stands between two marks in the document and is written by this script, so no figure is copied by hand. The
tables of live runs are made of the files in `results/` that `live_accuracy.py` and `tokencake validate` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import measured
import published
from accuracy_tables import MEASURED_CELLS, STEP_COSTS, TOTALS, Cell, Figures, filled
from exits import exit_code
from measurements import QUANTITIES, read
from published import RATES

from tokencake import __version__
from tokencake.sim.machine.files import load_machine
from tokencake.traces.files.fields import members
from tokencake.traces.files.json_file import read_json
from tokencake.traces.files.outputs import Output, check_outputs, outputs_of, write_whole
from tokencake.traces.generate.workloads import code_writer

GROUPS = ("command", "version", "date", "runs", "fits", "cells", "settings", "spread 0.1", "spread 0.3")
DRAWS = 10
SHIPPED = "as shipped"
SETTINGS = (
    "client_s=0.05",
    "client_s=0.1",
    "copy_s=0",
    "copy_s=0.002",
    "link_gbps=20",
    "link_gbps=30",
    "asynchronous=false",
)


def main() -> None:
    """Play, or fill in tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--from", dest="figures", type=Path, help="figures of before, instead of playing")
    parser.add_argument("--write", type=Path, help="the document whose tables are to be filled in")
    arguments = parser.parse_args()
    document = [] if arguments.write is None else [Output("--write", arguments.write)]
    check_outputs([*outputs_of(json=arguments.json), *document])
    figures = played() if arguments.figures is None else read_json(arguments.figures, _figures)
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(rounded(figures)) + "\n")
    if arguments.write is not None:
        write_whole(arguments.write, filled(arguments.write.read_text("utf-8"), figures))


def _figures(value: object, field: str) -> Figures:
    return members(value, frozenset(GROUPS), GROUPS)


def played() -> dict[str, Any]:
    """All figures, by group, each said when it is there."""
    found: dict[str, Any] = {"command": "python benchmarks/accuracy.py", "version": __version__}
    found["date"] = time.strftime("%Y-%m-%d")
    for name, play in (
        ("runs", runs),
        ("fits", fits),
        ("cells", cells),
        ("settings", settings),
        ("spread 0.1", lambda: drawn(0.1)),
        ("spread 0.3", lambda: drawn(0.3)),
    ):
        began = time.perf_counter()
        found[name] = play()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return found


def runs() -> dict[str, Any]:
    """Errors of each measured run, and the calls that its simulation preempted."""
    found = {}
    for run in read([measured.HERE]):
        simulated = measured.play(run, run.machine())
        preempted = simulated[measured.PREEMPTIONS]["total"]
        found[run.name] = {"errors": measured.errors(simulated, run.measured), "preempted": preempted}
    return found


def fits() -> dict[str, Any]:
    """Mean and worst error of the means of all other runs, where four constants are fitted to one."""
    every = list(read([measured.HERE]))
    found = {}
    for fitted in every:
        factors = measured.fit(fitted)
        others = [
            abs(measured.errors(measured.play(run, run.machine(factors)), run.measured)[quantity]["mean"])
            for run in every
            if run is not fitted
            for quantity in QUANTITIES
        ]
        found[fitted.name] = {"factors": factors, "mean": fmean(others), "worst": max(others)}
    return found


def cells(**trace: Any) -> dict[str, dict[str, Cell]]:
    """All cells by configuration and rate, on the machine as it is."""
    machine = load_machine("a800-qwen2.5-14b", [])
    return {
        mode: {f"{rate:g}": published.predict(policy, code_writer(24, rate, **trace), machine) for rate in RATES}
        for mode, policy in published.POLICIES.items()
    }


def settings() -> dict[str, list[Cell]]:
    """The four measured cells with one input of the simulation changed."""
    shipped = load_machine("a800-qwen2.5-14b", [])
    changes = {change: [change] for change in SETTINGS}
    for cost in STEP_COSTS:
        changes |= {
            f"{cost} {sign}10 %": [f"{cost}={getattr(shipped, cost) * by}"] for sign, by in (("−", 0.9), ("+", 1.1))
        }
    found = {SHIPPED: _measured_cells(shipped)}
    for label, change in changes.items():
        found[label] = _measured_cells(load_machine("a800-qwen2.5-14b", change))
    found["660 shared tokens"] = _measured_cells(shipped, shared_tokens=660)
    return found


def _measured_cells(machine: Any, **trace: Any) -> list[Cell]:
    found = (
        published.predict(published.POLICIES[mode], code_writer(24, rate, **trace), machine)
        for mode, rate in MEASURED_CELLS
    )
    return [{key: cell[key] for key in TOTALS} for cell in found]


def drawn(spread: float) -> list[dict[str, dict[str, Cell]]]:
    """All cells with tasks and tool results of other lengths, drawn anew each time."""
    draws = (cells(seed=seed, spread=spread) for seed in range(DRAWS))
    return [
        {mode: {rate: {key: cell[key] for key in TOTALS} for rate, cell in row.items()} for mode, row in draw.items()}
        for draw in draws
    ]


def rounded(figures: Any) -> Any:
    """Figures to seven digits, to be kept in the repository."""
    if isinstance(figures, Mapping):
        return {key: rounded(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [rounded(value) for value in figures]
    return float(f"{figures:.7g}") if isinstance(figures, float) else figures


if __name__ == "__main__":
    sys.exit(exit_code(main))
