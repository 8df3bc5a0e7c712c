"""How far simulated seconds are from real GPUs: published measurements, played on the presets as they are.

    python benchmarks/measured.py [--data FOLDER]... [--run NAME]... [--fit-from NAME] [--json FILE]

Each measurement is played on the machine that `derive` gives for its GPU, model, tokens a step and running calls.
Printed are signed errors, simulated / measured - 1, of the time to the first token, the time between tokens and the
latency of a call, of the throughput where single calls are known, and what other simulators published of the same run;
and what was measured, how many calls the simulation preempted, and its blocks beside those that vLLM printed.
`measured/` beside this file holds the measurements that may be passed on, with their sources; `--data` reads more from
folders of the same layout (`measured/README.md`).

`--fit-from` fits four constants of a GPU to one run, and plays all others with them: the step's fixed cost, arithmetic,
and the bandwidth of weights and of contexts. What is learnt of another GPU is taken over as factors on its preset.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from exits import exit_code
from measurements import AS_THEY_ARE, QUANTILES, QUANTITIES, THROUGHPUT, Factors, Figures, Run, figures, read
from scipy.optimize import least_squares

from tokencake import __version__
from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.errors import TokencakeError
from tokencake.traces.files.outputs import check_outputs, outputs_of, write_whole

HERE = Path(__file__).parent / "measured"
HTTP_S = 3e-3  # what a client sees beside the engine: HTTP, tokenising a short prompt, the first token's way back
COLUMNS = (*QUANTITIES, THROUGHPUT)
PREEMPTIONS = "preemptions"
SCHEMA = "tokencake.measured/1"
STEP = 0.03  # of a constant, whose effect a fit looks at; smaller ones drown in what a loaded engine makes of chance
FACTORS = ("fixed cost", "arithmetic", "weights", "contexts")
PRIOR = 0.2  # how far a fit may take a constant from the preset at the price of one per cent of error in a quantity


def play(run: Run, machine: Machine) -> Figures:
    """What the simulator says of it, under `vllm`."""
    arrived: dict[str, float] = {}
    first: dict[str, float] = {}
    finished: dict[str, tuple[float, int]] = {}
    preempted: list[str] = []

    def heard(fact: object) -> None:
        if isinstance(fact, e.CallArrived):
            arrived[fact.request.id] = fact.at_s
        elif isinstance(fact, e.FirstToken):
            first[fact.call] = fact.at_s
        elif isinstance(fact, e.CallFinished):
            finished[fact.call] = (fact.at_s, fact.output_tokens)
        elif isinstance(fact, e.CallPreempted):
            preempted.append(fact.call)

    simulate(run.applications, load_policy("vllm"), machine, [heard])
    beside_s = HTTP_S if run.over_http else 0.0
    tokens = [finished[call][1] for call in arrived]
    found = figures(
        [first[call] - arrived[call] + beside_s for call in arrived],
        [finished[call][0] - arrived[call] + beside_s for call in arrived],
        tokens,
    )
    span_s = max(at_s for at_s, _ in finished.values()) - min(arrived.values())
    return {**found, THROUGHPUT: {"mean": sum(tokens) / span_s}, PREEMPTIONS: {"total": len(preempted)}}


def errors(simulated: Figures, measured: Figures) -> Figures:
    """Signed, of all that was measured."""
    return {
        name: {key: simulated[name][key] / value - 1 for key, value in summary.items()}
        for name, summary in measured.items()
    }


def fit(run: Run) -> Factors:
    """The factors on a GPU's constants that bring a run nearest to what was measured.

    A run does not determine all four: what it says nothing about stays as the preset has it.
    """

    def residuals(shifted: Any) -> Any:
        logs = shifted - 1.0
        played = errors(play(run, run.machine(_factors(logs))), run.measured)
        return np.array(
            [error / 0.01 for summary in played.values() for error in summary.values()] + list(logs / PRIOR)
        )

    # Shifted, since steps are taken in proportion to a value: at 0 they would be lost in the rounding of times.
    found = least_squares(residuals, np.ones(4), jac="3-point", diff_step=STEP, x_scale=0.1, max_nfev=12)
    return _factors(found.x - 1.0)


def _factors(logs: Any) -> Factors:
    fixed, arithmetic, weights, contexts = (float(factor) for factor in np.exp(logs))
    return fixed, arithmetic, weights, contexts


def line(run: Run, found: Figures, remark: str) -> str:
    """The means' errors, then the quantiles' where there are some."""
    parts = [f"{run.name:28s}"]
    parts += [f"{found[name]['mean']:+7.1%}" if name in found else f"{'':7s}" for name in COLUMNS]
    quantiles = [found[name][f"p{q}"] for name in QUANTITIES if "p50" in found.get(name, {}) for q in QUANTILES]
    parts.append(" ".join(f"{error:+6.1%}" for error in quantiles).ljust(62) if quantiles else " " * 62)
    return " ".join([*parts, remark]).rstrip()


def summary(found: Sequence[Figures]) -> str:
    """Mean absolute and worst error of the means."""
    means = [(abs(figures[name]["mean"]), name) for figures in found for name in figures if name in QUANTITIES]
    if not means:
        return "no time was measured"
    named = [name for name in QUANTITIES if any(of == name for _, of in means)]
    by_quantity = [f"{name} {np.mean([error for error, of in means if of == name]):.1%}" for name in named]
    worst, where = max(means)
    whole = np.mean([error for error, _ in means])
    return f"mean absolute error of the means {whole:.1%} ({', '.join(by_quantity)}), worst {worst:.1%} ({where})"


def main() -> None:
    """Print a line for each measurement, and what they come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", type=Path, default=[], help="a folder of measurements, beside ours")
    parser.add_argument("--run", action="append", help="only these, by name")
    parser.add_argument("--fit-from", metavar="RUN", help="fit the GPU's constants to this run, and predict the others")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    folders = (HERE, *arguments.data)
    check_outputs(outputs_of(json=arguments.json), folders)
    runs = {run.name: run for run in read(folders)}
    for name in [*(arguments.run or ()), *([arguments.fit_from] if arguments.fit_from is not None else ())]:
        if name not in runs:
            raise TokencakeError(f"unknown run {name!r}: expected one of {', '.join(runs)}")
    chosen = [runs[name] for name in dict.fromkeys(arguments.run or runs)]
    fitted = None if arguments.fit_from is None else runs[arguments.fit_from]
    factors = AS_THEY_ARE if fitted is None else fit(fitted)
    rows = report(chosen, fitted, factors)
    if arguments.json is not None:
        about = {"schema": SCHEMA, "version": __version__, "http_s": HTTP_S, "fitted_to": arguments.fit_from}
        written = about | {"factors": dict(zip(FACTORS, factors, strict=True)), "runs": rows}
        write_whole(arguments.json, json.dumps(written, indent=1, allow_nan=False) + "\n")


def report(runs: Sequence[Run], fitted: Run | None, factors: Factors) -> list[dict[str, Any]]:
    """Plays the runs, and prints as it goes."""
    if fitted is not None:
        what = ", ".join(f"{name} x{factor:.3f}" for name, factor in zip(FACTORS, factors, strict=True))
        print(f"Fitted to {fitted.name}: {what}")
    print("errors of means; then p50 p90 p99 of each of the first three; then what was measured of these three")
    print(f"{'':28s} {'TTFT':>7s} {'TPOT':>7s} {'latency':>7s} {'tokens/s':>8s}")
    rows, played = [], []
    for run in runs:
        simulated = play(run, run.machine(factors))
        found = errors(simulated, run.measured)
        print(line(run, found, _remark(run, fitted, simulated)), flush=True)
        for other, theirs in run.others.items():
            theirs_said = " ".join(f"{theirs[name]:+7.1%}" for name in QUANTITIES if name in theirs)
            print(f"{'':28s} {theirs_said}  as {other} said")
        played.append(found)
        rows.append(
            {"name": run.name, "gpu": run.gpu, "model": run.model, "engine": run.engine, "seen": run.seen}
            | {"fitted": run is fitted, "measured": run.measured, "simulated": simulated, "errors": found}
            | {"others": run.others, "source": run.source}
        )
    print(summary(played))
    if fitted is not None and (
        predicted := [found for run, found in zip(runs, played, strict=True) if run is not fitted]
    ):
        print(f"of the predicted ones: {summary(predicted)}")
    return rows


def _remark(run: Run, fitted: Run | None, simulated: Figures) -> str:
    units = {"ttft": (1.0, "s"), "tpot": (1e3, "ms"), "latency": (1.0, "s")}
    said = [f"{run.measured[of]['mean'] * by:.3g} {unit}" for of, (by, unit) in units.items() if of in run.measured]
    words = [", ".join(said)]
    if fitted is not None:
        words.append("fitted" if run is fitted else "predicted")
    if preempted := simulated[PREEMPTIONS]["total"]:
        words.append(f"{preempted:,.0f} preempted")
    if run.blocks is not None:
        derived = run.machine().gpu_blocks + 1
        words.append(f"{derived:,} blocks ({derived / run.blocks - 1:+.1%})")
    if not run.seen:
        words.append("not seen by the constants")
    return "  ".join(words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
