"""How far simulated seconds are from real GPUs: published measurements, played on the presets as they are.

    python benchmarks/measured.py [--data FOLDER]... [--run NAME]... [--fit-from NAME] [--json FILE]

Each measurement is played on the machine that `derive` gives for its GPU, model, tokens a step and running calls.
Printed are signed errors, simulated / measured - 1, of the time to the first token, the time between tokens and the
latency of a call, of the throughput where single calls are known, and what other simulators published of the same run.
`measured/` beside this file holds the measurements that may be passed on, with their sources; `--data` reads more from
folders of the same layout (`measured/README.md`).

`--fit-from` fits four constants of a GPU to one run, and plays all others with them: the step's fixed cost, arithmetic,
and the bandwidth of weights and of contexts. What is learnt of another GPU is taken over as factors on its preset.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from tokencake.policies.registry import load_policy
from tokencake.sim.machine import Machine
from tokencake.sim.presets import GPUS, MODELS, Gpu, derive
from tokencake.sim.simulate import simulate
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.errors import TokencakeError
from tokencake.traces.reader import read_trace

HERE = Path(__file__).parent / "measured"
HTTP_S = 3e-3  # what a client sees beside the engine: HTTP, tokenising a short prompt, the first token's way back
QUANTITIES = ("ttft", "tpot", "latency")
THROUGHPUT = "output_tokens_per_s"  # from the first call's arrival to the last one's end
COLUMNS = (*QUANTITIES, THROUGHPUT)
QUANTILES = (50, 90, 99)
PRIOR = 0.2  # how far a fit may take a constant from the preset at the price of one per cent of error in a quantity

Figures = dict[str, dict[str, float]]  # quantity -> mean, p50, p90, p99 in seconds
Factors = tuple[float, float, float, float]  # on a GPU's fixed cost, arithmetic, weights' and contexts' bandwidth
AS_THEY_ARE: Factors = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Run:
    """A measurement: the engine's settings, what it was asked for, and what came out."""

    name: str
    gpu: str
    model: str
    gpus: int
    step_budget_tokens: int
    max_running: int
    engine: str
    source: str
    seen: bool  # the presets' constants were chosen with this run in sight
    applications: tuple[Application, ...] = field(repr=False)
    measured: Figures
    over_http: bool = False  # the clock was the client's
    blocks: int | None = None  # KV blocks that the engine printed, the null block among them
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def machine(self, factors: Factors = AS_THEY_ARE) -> Machine:
        return derive(
            scaled(GPUS[self.gpu], factors),
            MODELS[self.model],
            self.gpus,
            self.name,
            step_budget_tokens=self.step_budget_tokens,
            max_running=self.max_running,
        )


def scaled(gpu: Gpu, factors: Factors) -> Gpu:
    """The GPU with other constants."""
    fixed, arithmetic, weights, contexts = factors
    return replace(
        gpu,
        engine_s=fixed * gpu.engine_s,
        layer_s=fixed * gpu.layer_s,
        tflops=arithmetic * gpu.tflops,
        weights_tbps=weights * gpu.weights_tbps,
        context_tbps=contexts * gpu.context_tbps,
    )


def read(folder: Path) -> list[Run]:
    """The measurements of a folder."""
    rows = json.loads((folder / "runs.json").read_text(encoding="utf-8"))["runs"]
    return [_run(folder, dict(row)) for row in rows]


def _run(folder: Path, row: dict[str, Any]) -> Run:
    if "requests" in row:
        requests = _requests(folder / row.pop("requests"))
        trace = read_trace(folder / row.pop("trace"))
        arrivals_s = [request["arrival_time"] - requests[0]["arrival_time"] for request in requests]
        applications = tuple(replace(app, arrival_s=at_s) for app, at_s in zip(trace, arrivals_s, strict=True))
        return Run(applications=applications, measured=_measured(requests), **row)
    keys = ("rate", "calls", "shared_tokens", "prompt_tokens", "output_tokens")
    return Run(applications=tuple(steady(**{key: row.pop(key) for key in keys})), **row)


def _requests(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


def _measured(requests: Sequence[Mapping[str, Any]]) -> Figures:
    """Of an engine's own times of each request, counted from when it was queued."""
    first = [request["first_token_ts"] - request["queued_ts"] for request in requests]
    latency = [request["last_token_ts"] - request["queued_ts"] for request in requests]
    tokens = [request["output_toks"] for request in requests]
    span_s = max(request["last_token_ts"] for request in requests) - min(request["queued_ts"] for request in requests)
    return {**figures(first, latency, tokens), THROUGHPUT: {"mean": sum(tokens) / span_s}}


def steady(
    rate: float, calls: int, shared_tokens: int, prompt_tokens: int, output_tokens: int
) -> Iterable[Application]:
    """Applications of one call at a steady rate: a system prompt that all share, and a question of one's own."""
    for n in range(calls):
        question = Segment(f"a{n}/question", 0, prompt_tokens - shared_tokens)
        prompt = Prompt((Segment("/system", 0, shared_tokens), question), tokens=prompt_tokens)
        call = Call(f"a{n}/call", f"a{n}", f"a{n}/main", "main", prompt, output_tokens, output_tokens)
        yield Application(f"a{n}", n / rate, (call,))


def play(run: Run, machine: Machine) -> Figures:
    """What the simulator says of it, under `vllm`."""
    arrived: dict[str, float] = {}
    first: dict[str, float] = {}
    finished: dict[str, tuple[float, int]] = {}

    def heard(fact: object) -> None:
        if isinstance(fact, e.CallArrived):
            arrived[fact.request.id] = fact.at_s
        elif isinstance(fact, e.FirstToken):
            first[fact.call] = fact.at_s
        elif isinstance(fact, e.CallFinished):
            finished[fact.call] = (fact.at_s, fact.output_tokens)

    simulate(run.applications, load_policy("vllm"), machine, [heard])
    beside_s = HTTP_S if run.over_http else 0.0
    tokens = [finished[call][1] for call in arrived]
    found = figures(
        [first[call] - arrived[call] + beside_s for call in arrived],
        [finished[call][0] - arrived[call] + beside_s for call in arrived],
        tokens,
    )
    span_s = max(at_s for at_s, _ in finished.values()) - min(arrived.values())
    return {**found, THROUGHPUT: {"mean": sum(tokens) / span_s}}


def figures(ttft_s: Sequence[float], latency_s: Sequence[float], output_tokens: Sequence[int]) -> Figures:
    """Means and quantiles over calls; the time between tokens of those of more than one token."""
    ttft, latency, tokens = np.array(ttft_s), np.array(latency_s), np.array(output_tokens)
    several = tokens > 1
    tpot = (latency - ttft)[several] / (tokens - 1)[several]
    return {name: _summary(values) for name, values in zip(QUANTITIES, (ttft, tpot, latency), strict=True)}


def _summary(values: Any) -> dict[str, float]:
    return {"mean": float(values.mean())} | {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES}


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

    def residuals(logs: Any) -> Any:
        played = errors(play(run, run.machine(_factors(logs))), run.measured)
        return np.array(
            [error / 0.01 for summary in played.values() for error in summary.values()] + list(logs / PRIOR)
        )

    return _factors(least_squares(residuals, np.zeros(4), diff_step=0.02, x_scale=0.1, max_nfev=12).x)


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
    by_quantity = [f"{name} {np.mean([error for error, of in means if of == name]):.1%}" for name in QUANTITIES]
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
    try:
        runs = [run for folder in (HERE, *arguments.data) for run in read(folder)]
    except (OSError, KeyError, TypeError, ValueError, TokencakeError) as error:
        parser.error(f"--data: expected a folder as measured/README.md says: {error}")
    named = {run.name: run for run in runs}
    for name in [*(arguments.run or ()), *([arguments.fit_from] if arguments.fit_from else ())]:
        if name not in named:
            parser.error(f"unknown run {name!r}: expected one of {', '.join(named)}")
    chosen = [named[name] for name in arguments.run] if arguments.run else runs
    rows = report(chosen, named.get(arguments.fit_from or ""))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"http_s": HTTP_S, "runs": rows}, indent=1) + "\n", encoding="utf-8")


def report(runs: Sequence[Run], fitted: Run | None) -> list[dict[str, Any]]:
    """Plays the runs, and prints as it goes."""
    factors = AS_THEY_ARE
    if fitted is not None:
        factors = fit(fitted)
        names = ("fixed cost", "arithmetic", "weights", "contexts")
        what = ", ".join(f"{name} x{factor:.3f}" for name, factor in zip(names, factors, strict=True))
        print(f"Fitted to {fitted.name}: {what}")
    print("errors of means; then p50 p90 p99 of each of the first three")
    print(f"{'':28s} {'TTFT':>7s} {'TPOT':>7s} {'latency':>7s} {'tokens/s':>8s}")
    rows, played = [], []
    for run in runs:
        found = errors(play(run, run.machine(factors)), run.measured)
        print(line(run, found, _remark(run, fitted)), flush=True)
        for other, theirs in run.others.items():
            print(f"  {other[:26]:26s} " + " ".join(f"{theirs[name]:+7.1%}" for name in QUANTITIES if name in theirs))
        played.append(found)
        rows.append(
            {"name": run.name, "gpu": run.gpu, "model": run.model, "engine": run.engine, "seen": run.seen}
            | {"fitted": run is fitted, "errors": found, "others": run.others, "source": run.source}
        )
    print(summary(played))
    if fitted is not None and (
        predicted := [found for run, found in zip(runs, played, strict=True) if run is not fitted]
    ):
        print(f"of the predicted ones: {summary(predicted)}")
    return rows


def _remark(run: Run, fitted: Run | None) -> str:
    words = [] if fitted is None else ["fitted" if run is fitted else "predicted"]
    if run.blocks is not None:
        derived = run.machine().gpu_blocks + 1
        words.append(f"{derived:,} blocks ({derived / run.blocks - 1:+.1%})")
    if not run.seen:
        words.append("not seen by the constants")
    return "  ".join(words)


if __name__ == "__main__":
    main()
