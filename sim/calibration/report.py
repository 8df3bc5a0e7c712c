"""A calibration as tables, as a dictionary of schema `tokencake.calibration/1`, and as the head of a machine's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..machine.machine import Machine
from .costs.step_costs import Estimate, KindError
from .fit import WRONG, Fit

SCHEMA = "tokencake.calibration/1"
MEANINGS = {
    "step_s": "a step, whatever is in it",
    "floor_s": "reading the weights: the least of a step's linear layers",
    "token_s": "a token in the linear layers",
    "prefill_token_s": "a prefill token, on top",
    "attention_s": "a prefill token x a token that it attends to",
    "decode_call_s": "a decoding call, on top",
    "context_token_s": "a token of a decoding call's context",
    "host_call_s": "the engine's own work for a call that is admitted",
    "host_token_s": "the engine's own work for a token that is sampled",
    "link_gbps": "GPU to host and host to GPU, each",
    "copy_s": "a copy job, whatever its size",
}


def build(version: str, engine: Mapping[str, object], fit: Fit, machine: Machine) -> dict[str, Any]:
    """The calibration as data. Intervals are of 95 %; errors are (fitted − measured) / measured.

    `probed` is how far the steps reached that were measured, and `beyond` where a trace reaches farther.
    """
    return {
        "schema": SCHEMA,
        "version": version,
        "engine": dict(engine),
        "machine": machine.settings(),
        "constants": {name: estimate._asdict() for name, estimate in fit.constants.items()},
        "steps": {
            "all": fit.steps.overall._asdict(),
            "total": fit.steps.total,
            "kinds": [error._asdict() for error in fit.steps.kinds],
        },
        "copies": {
            name: getattr(fit.copies, name) for name in ("to_host_gbps", "to_gpu_gbps", "copies", "median", "p95")
        },
        "probed": dict(fit.probed),
        "beyond": [beyond._asdict() for beyond in fit.beyond],
        "host": {**fit.host_load, "spread": fit.spread},
        "warnings": fit.warnings(),
    }


def tables(fit: Fit) -> Group:
    """The constants with their intervals, how far the fit is from what was measured, and what that was."""
    return Group(_constants(fit), "", _errors(fit), "", Text(f"{fit.probed_words()}; beyond that it is extrapolated"))


def comments(engine: Mapping[str, object], fit: Fit, date: str) -> list[str]:
    """What stands above a fitted machine in its file."""
    overall, copies = fit.steps.overall, fit.copies
    lines = [
        f"Measured on {date}: {engine.get('model')} on vLLM {engine.get('vllm')}, tokencake {engine.get('tokencake')}.",
        f"{overall.steps} steps: error {overall.median:+.1%} (median), 95 % within {overall.p95:.1%}"
        f", {fit.steps.total:+.1%} of their time together.",
        f"{fit.probed_words()}; beyond that it is extrapolated.".capitalize(),
        f"{copies.copies} copies" + ("." if copies.p95 is None else f": 95 % within {copies.p95:.1%}."),
    ]
    for name, estimate in fit.constants.items():
        lines.append(f"{name}: {MEANINGS[name]}; {_interval(name, estimate)}")
    return [*lines, *(f"warning: {warning}" for warning in fit.warnings())]


def _constants(fit: Fit) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("constant", no_wrap=True)
    table.add_column("fitted", justify="right", no_wrap=True)
    table.add_column("95 % interval", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for name, estimate in fit.constants.items():
        table.add_row(name, shown(name, estimate.value), _interval(name, estimate), MEANINGS[name])
    return table


def _interval(name: str, estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return estimate.why or ""
    return f"{shown(name, estimate.low)} … {shown(name, estimate.high)}"


def shown(name: str, value: float) -> str:
    """A constant with the unit that suits it, three digits."""
    if name == "link_gbps":
        return f"{value:.3g} GB/s"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-12:.3g} ps" if value else "0"


def _errors(fit: Fit) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("steps", overflow="fold")
    for name in ("n", "measured", "error", "95 % within"):
        table.add_column(name, justify="right", no_wrap=True)
    for error in fit.steps.kinds:
        table.add_row(*_row(error))
    table.add_row(*_row(fit.steps.overall))
    table.add_row("their time together", "", "", f"{fit.steps.total:+.1%}", "")
    copies = fit.copies
    if copies.median is not None and copies.p95 is not None:
        table.add_row("copies", str(copies.copies), "", f"{copies.median:+.1%}", f"{copies.p95:.1%}")
    return table


def _row(error: KindError) -> tuple[str | Text, ...]:
    style = "yellow" if abs(error.median) > WRONG else ""
    return (
        error.kind,
        str(error.steps),
        shown("", error.measured_s),
        Text(f"{error.median:+.1%}", style=style),
        f"{error.p95:.1%}",
    )
