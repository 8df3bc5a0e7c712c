"""The tables of docs/accuracy.md, made of the figures that `accuracy.py` played and of those that live runs left."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import published
from measurements import QUANTILES, QUANTITIES

from tokencake.traces.errors import TraceError

RESULTS = Path(__file__).parent / "results"
MEASURED_CELLS = (("base", 0.1), ("base", 1.0), ("offload", 0.1), ("agent_offload", 1.0))
STEP_COSTS = ("step_s", "prefill_token_s", "context_token_s", "decode_call_s")
ENGINES = {  # what a row of the table of measured runs is called, and its engine
    "rtx4090-llama-3.1-8b": ("RTX 4090, Llama-3.1-8B, 300 calls at 10/s", "vLLM 0.19.0"),
    "rtxpro6000-llama-3.1-8b": ("RTX PRO 6000, the same at 128 running calls", "vLLM 0.19.0"),
    "h100-llama-3.1-8b-8rps": ("H100, Llama-3.1-8B, 8/s", "vLLM 0.15.1"),
    "h100-llama-3.1-8b-20rps": ("H100, Llama-3.1-8B, 20/s", ""),
    "h100-qwen2.5-7b-6rps": ("H100, Qwen2.5-7B, 6/s", ""),
    "h100-qwen3-14b-2.5rps": ("H100, Qwen3-14B, 2.5/s", ""),
    "h100-qwen3-14b-6rps": ("H100, Qwen3-14B, 6/s", ""),
    "h100-qwen3-14b-8rps": ("H100, Qwen3-14B, 8/s", ""),
    "h100-qwen3-14b-20rps": ("H100, Qwen3-14B, 20/s", ""),
}
TOTALS = {"e2e_s": "end to end, s", "app_mean_s": "mean application, s"}

Cell = Mapping[str, float]
Figures = Mapping[str, Any]


def filled(text: str, figures: Figures) -> str:
    """The document with each table between `<!-- accuracy: NAME -->` and `<!-- end -->` written anew."""

    def table(found: re.Match[str]) -> str:
        if found[1] not in TABLES:
            raise TraceError(f"no table is called {found[1]!r}: expected one of {', '.join(TABLES)}")
        return f"<!-- accuracy: {found[1]} -->\n\n" + "\n".join(TABLES[found[1]](figures)) + "\n\n<!-- end -->"

    return re.sub(r"<!-- accuracy: (.+?) -->\n.*?<!-- end -->", table, text, flags=re.S)


def _runs(figures: Figures) -> Iterator[str]:
    """Errors of the means, those of p50, p90 and p99 in brackets."""
    yield from _head(["measured", "engine", "time to first token", "time between tokens", "latency"], left=2)
    for name, (label, engine) in ENGINES.items():
        one = figures["runs"][name]
        if one["preempted"]:
            label += f", {one['preempted']:.0f} preemptions in the simulation"
        row = [label, engine]
        for quantity in QUANTITIES:
            errors = one["errors"][quantity]
            quantiles = ", ".join(_signed(errors[f"p{q}"]) for q in QUANTILES if f"p{q}" in errors)
            row.append(_percent(errors["mean"]) + (f" ({quantiles})" if quantiles else ""))
        yield _row(row)


def _fits(figures: Figures) -> Iterator[str]:
    """Errors of all other runs."""
    yield from _head(["fitted to", "mean error of the others", "worst"], left=1)
    for name, (label, _) in ENGINES.items():
        one = figures["fits"][name]
        yield _row([label, f"{100 * one['mean']:.1f} %", f"{100 * one['worst']:.1f} %"])


def _cells(figures: Figures) -> Iterator[str]:
    """The four measured cells."""
    heads = ["end to end, s", "mean application, s", "computed", "GPU hits", "host hits", "preemptions (measured)"]
    yield from _head(["configuration", "rate", *heads], left=1)
    for mode, rate in MEASURED_CELLS:
        cell, known = figures["cells"][mode][f"{rate:g}"], measured_cell(mode, rate)
        row = [f"`{mode}`", f"{rate:.1f}"]
        row += [f"{cell[key]:.1f} ({_percent(cell[key] / known[key] - 1)})" for key in ("e2e_s", "app_mean_s")]
        sources = ("prefill_computed_tokens", "prefill_gpu_hit_tokens", "prefill_cpu_hit_tokens")
        total, total_known = (sum(of[source] for source in sources) for of in (cell, known))
        for source in sources:
            off = f" ({_signed((cell[source] - known[source]) / total_known)})"
            row.append(f"{100 * cell[source] / total:.1f} %{off}" if known[source] else "0")
        yield _row([*row, f"{cell['preemptions']:.0f} ({known['preemptions']:.0f})"])


def _predicted(key: str) -> Callable[[Figures], Iterator[str]]:
    def table(figures: Figures) -> Iterator[str]:
        """All cells, measured ones in italics."""
        yield from _head([TOTALS[key], *(f"{rate:.1f}" for rate in published.RATES)], left=1)
        for mode in published.POLICIES:
            cells = {rate: f"{figures['cells'][mode][f'{rate:g}'][key]:.1f}" for rate in published.RATES}
            row = [f"*{cell}*" if (mode, rate) in MEASURED_CELLS else cell for rate, cell in cells.items()]
            yield _row([f"`{mode}`", *row])

    return table


def _beside(figures: Figures) -> Iterator[str]:
    """Other figures of the measured cells, what was measured in brackets."""
    yield from _head(["", *(f"`{mode}` {rate:.1f}" for mode, rate in MEASURED_CELLS)], left=1)
    for label, key, scale, form in (
        ("application latency p50, s", "app_p50_s", 1, ".0f"),
        ("application latency p95, s", "app_p95_s", 1, ".0f"),
        ("TTFT mean, s", "ttft_mean_s", 1, ".1f"),
        ("queueing mean, s", "queue_time_mean_s", 1, ".1f"),
        ("first to last token, mean, s", "decode_time_mean_s", 1, ".1f"),
        ("GPU blocks in use", "kv_usage_mean", 1, ".3f"),
        ("copied to the host, GB", "d2h_bytes", 1e9, "#.3g"),
        ("copied to the GPU, GB", "h2d_bytes", 1e9, "#.3g"),
    ):
        row = []
        for mode, rate in MEASURED_CELLS:
            pair = (figures["cells"][mode][f"{rate:g}"][key] / scale, measured_cell(mode, rate)[key] / scale)
            found, known = (f"{value:{form}}".rstrip(".") if value else "0" for value in pair)
            row.append(f"{found} ({known})")
        yield _row([label, *row])


def _settings(figures: Figures) -> Iterator[str]:
    """Errors of end to end and mean application latency where one input differs."""
    yield from _head(["errors, %", *(f"`{mode}` {rate:.1f}" for mode, rate in MEASURED_CELLS)], left=1)
    for label, cells in figures["settings"].items():
        row = []
        for (mode, rate), cell in zip(MEASURED_CELLS, cells, strict=True):
            known = measured_cell(mode, rate)
            row.append(", ".join(_signed(cell[key] / known[key] - 1) for key in ("e2e_s", "app_mean_s")))
        name, _, by = label.partition(" ")
        shown = f"`{name}` {by}" if name in STEP_COSTS else f"`{label}`" if "=" in label else label
        yield _row([shown.rstrip(), *row])


def _spread(figures: Figures) -> Iterator[str]:
    """Errors over the draws: mean, lowest and highest."""
    heads = [f"{what}, ±{by} %" for by in (10, 30) for what in ("end to end", "mean application")]
    yield from _head(["errors of", *heads], left=1)
    for mode, rate in MEASURED_CELLS:
        row = []
        for spread in ("spread 0.1", "spread 0.3"):
            for key in ("e2e_s", "app_mean_s"):
                errors = [draw[mode][f"{rate:g}"][key] / measured_cell(mode, rate)[key] - 1 for draw in figures[spread]]
                row.append(f"{_signed(fmean(errors))} ({_signed(min(errors))} … {_signed(max(errors))})")
        yield _row([f"`{mode}` {rate:.1f}", *row])


def _draws(key: str) -> Callable[[Figures], Iterator[str]]:
    def table(figures: Figures) -> Iterator[str]:
        """All cells over the draws: mean, lowest and highest."""
        yield from _head([TOTALS[key], *(f"{rate:.1f}" for rate in published.RATES)], left=1)
        for mode in published.POLICIES:
            row = []
            for rate in published.RATES:
                values = [draw[mode][f"{rate:g}"][key] for draw in figures["spread 0.1"]]
                row.append(f"{fmean(values):.0f} ({min(values):.0f} … {max(values):.0f})")
            yield _row([f"`{mode}`", *row])

    return table


def _live(_: Figures) -> Iterator[str]:
    """Simulated and live runs on a CPU: means and ranges."""
    found = {run["policy"]: run for run in _result("2026-11-24-live-accuracy.json")["runs"]}
    heads = [
        f"{first}{second}"
        for name in found
        for first, second in ((f"`{name}` live", ""), ("simulated", ""), ("error", ""))
    ]
    yield from _head(["", *heads], left=1)
    for label, path, scale, digits in (
        ("makespan, s", "makespan_s", 1.0, 3),
        ("mean application latency, s", "app_latency_s.mean", 1.0, 3),
        ("TTFT, mean, ms", "ttft_s.mean", 1e-3, 2),
        ("TPOT, mean, ms", "tpot_s.mean", 1e-3, 3),
        ("prompt tokens hit on the GPU", "prefill_tokens.gpu_hit", 1.0, 4),
        ("prompt tokens hit on the host", "prefill_tokens.host_hit", 1.0, 4),
    ):
        row = [label]
        for run in found.values():
            live = [_at(repeat, path) / scale for repeat in run["live"]]
            simulated = _at(run["simulated"], path) / scale
            if not any(live):
                row += ["0", "0", ""]
                continue
            row.append(f"{_digits(fmean(live), digits)} ({_digits(min(live), digits)} … {_digits(max(live), digits)})")
            row += [_digits(simulated, digits), _percent(simulated / fmean(live) - 1)]
        yield _row(row)


def _validated(_: Figures) -> Iterator[str]:
    """What `tokencake validate` said of runs on a machine that was calibrated for the trace."""
    metrics = ("makespan_s", "app_latency_s.mean", "ttft_s.mean", "tpot_s.mean")
    heads = ["makespan", "mean application latency", "TTFT, mean", "TPOT, mean", "live repeats' spread of the makespan"]
    yield from _head(["", *heads], left=1)
    for label, file in (("full size", "full-size"), ("shrunk to an eighth", "shrunk")):
        (run,) = _result(f"2026-11-28-validate-{file}.json")["runs"]
        errors = [_percent(run["error"][metric]) for metric in metrics]
        yield _row([label, *errors, f"{100 * run['spread']['makespan_s']:.1f} %"])


TABLES: dict[str, Callable[[Figures], Iterator[str]]] = {
    "runs": _runs,
    "fits": _fits,
    "cells": _cells,
    "predicted end to end": _predicted("e2e_s"),
    "predicted mean application": _predicted("app_mean_s"),
    "beside": _beside,
    "settings": _settings,
    "spread": _spread,
    "draws end to end": _draws("e2e_s"),
    "draws mean application": _draws("app_mean_s"),
    "live": _live,
    "validated": _validated,
}


def measured_cell(mode: str, rate: float) -> Cell:
    """The cell as it was measured."""
    every = json.loads(published.CELLS.read_text("utf-8"))["cells"]
    cell: Cell = next(cell for cell in every if (cell["mode"], cell["qps"]) == (mode, rate))
    return cell


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


def _at(metrics: Any, path: str) -> float:
    """A metric by its name, `app_latency_s.mean` for one."""
    for key in path.split("."):
        metrics = metrics[key]
    return float(metrics)


def _digits(value: float, digits: int) -> str:
    """So many digits, without an exponent."""
    return f"{float(f'{value:.{digits}g}'):,.0f}" if value >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def _signed(share: float) -> str:
    """A share in per cent, without the sign of per cent."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{_signed(share)} %"


def _head(cells: Sequence[str], left: int) -> Iterator[str]:
    yield _row(cells)
    yield "|" + "|".join("---" if at < left else "--:" for at in range(len(cells))) + "|"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")
