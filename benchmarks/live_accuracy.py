"""How near the simulator comes to a live engine: on a CPU, a tiny model, on a machine that does nothing else.

    python benchmarks/live_accuracy.py [--policy P]... [--workload code-writer|coding]... [--repeats N] [--json FILE]

Calibrates the engine, then plays each workload several times under each policy, and simulates the same on the fitted
machine. Shown are the mean of the live runs with their range, what the simulator says, and its error. `coding` needs a
folder of recorded conversations (see docs/traces-from-elsewhere.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokencake import __version__
from tokencake.live.engine_options import EngineOptions
from tokencake.live.in_process import InProcess
from tokencake.live.measure import FULL, QUICK, measure
from tokencake.live.settings import RunSettings
from tokencake.policies.registry import load_policy
from tokencake.sim.fit import Fit, fit_facts, limits_of
from tokencake.sim.machine import Machine
from tokencake.sim.samples import Samples, StepSample
from tokencake.sim.simulate import simulate
from tokencake.traces.apps import Application
from tokencake.traces.convert import convert
from tokencake.traces.generate import code_writer
from tokencake.traces.metrics import Metrics
from tokencake.traces.scaling import scaled
from tokencake.traces.shrinking import shrunk

ENGINE = EngineOptions(model="tiny", gpu_blocks=320, host_gib=0.25, max_context_tokens=8_192)
CONVERSATIONS = 8
CALLS_OF_A_CONVERSATION = 40  # at most
SHOWN = (
    ("makespan, s", "makespan_s"),
    ("application latency, mean, s", "app_latency_s.mean"),
    ("TTFT, mean, s", "ttft_s.mean"),
    ("TPOT, mean, s", "tpot_s.mean"),
    ("prompt tokens hit on the GPU", "prefill_tokens.gpu_hit"),
    ("prompt tokens hit on the host", "prefill_tokens.host_hit"),
    ("preemptions", "preemptions"),
    ("bytes offloaded", "offload_bytes"),
)


def main() -> None:
    """Print a table for each workload and policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--workload", action="append", choices=WORKLOADS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="calibrate at length")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--date", help="of the run, for the file")
    arguments = parser.parse_args()
    results = []
    with InProcess(ENGINE) as engine:
        machine = calibrated(engine, arguments.full)
        for name in arguments.workload or WORKLOADS:
            applications = WORKLOADS[name]()
            calls = sum(len(application.calls) for application in applications)
            print(f"\n{name}: {len(applications)} applications, {calls} calls, {machine.gpu_blocks} blocks", flush=True)
            for policy in arguments.policy or ("vllm", "tokencake"):
                results.append({"workload": name, **compared(engine, machine, applications, policy, arguments.repeats)})
                show(results[-1])
    if arguments.json is not None:
        told = {
            "command": "python benchmarks/live_accuracy.py " + " ".join(sys.argv[1:]),
            "date": arguments.date,
            "tokencake": __version__,
            "vllm": engine.version,
            "load": os.getloadavg()[0],
            "machine": machine.settings(),
            "runs": results,
        }
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


def calibrated(engine: InProcess, full: bool) -> Machine:
    """The machine that fits the engine."""
    facts: list[Any] = []
    limits = limits_of(engine.info())
    began = time.perf_counter()
    measure(engine, limits, FULL if full else QUICK, facts.append)
    fitted = fit_facts(facts, limits)
    show_fit(fitted, time.perf_counter() - began)
    return fitted.machine("calibrated")


def show_fit(fitted: Fit, seconds: float) -> None:
    overall = fitted.steps.overall
    print(f"calibrated in {seconds:.0f} s: {overall.steps} steps, error {overall.median:+.1%} (median)", end="")
    print(f", 95 % within {overall.p95:.1%}; of their time together {fitted.steps.total:+.1%}")
    for name, estimate in fitted.constants.items():
        interval = "" if estimate.low is None else f"  ({estimate.low:.3g} … {estimate.high:.3g})"
        print(f"  {name:16s} {estimate.value:.3g}{interval}")


def code_writers() -> list[Application]:
    """The published workload with an eighth of its tokens and a tenth of its waits."""
    return list(scaled(shrunk(code_writer(8, 1.0), 8), 0.1))


def conversations() -> list[Application]:
    """Recorded coding conversations with a fiftieth of their tokens, arriving one a second, with short waits."""
    folder = Path(os.environ.get("TOKENCAKE_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces"))
    whole = convert(folder / "agentic-coding", "agentic-coding")
    some = [application for application in whole if len(application.calls) <= CALLS_OF_A_CONVERSATION]
    small = scaled(shrunk(some[:CONVERSATIONS], 50), 0.005)
    return [replace(application, arrival_s=float(index)) for index, application in enumerate(small)]


WORKLOADS = {"code-writer": code_writers, "coding": conversations}


def compared(
    engine: InProcess, machine: Machine, applications: Sequence[Application], policy: str, repeats: int
) -> dict[str, Any]:
    """Metrics of live runs and of the simulated one."""
    live, of_steps = [], []
    settings = RunSettings(policy=policy, costs=machine.beliefs(), steps=True)
    for _ in range(repeats):
        metrics, samples = Metrics(), Samples()
        stats = engine.play(applications, settings, [metrics.add, samples.add])
        assert not stats.errors, stats.errors
        assert not stats.disagreements, stats.disagreements
        live.append(metrics.result())
        of_steps.append(formula_error(machine, samples.steps))
    metrics = Metrics()
    simulate(applications, load_policy(policy), machine, [metrics.add])
    return {"policy": policy, "live": live, "simulated": metrics.result(), "steps_error": of_steps}


def formula_error(machine: Machine, steps: Sequence[StepSample]) -> float:
    """(fitted − measured) / measured of the time that a live run's own steps took, all together."""
    fitted_s = sum(
        machine.step_s
        + max(machine.floor_s, machine.token_s * (step.prefill_tokens + step.decode_calls))
        + machine.prefill_token_s * step.prefill_tokens
        + machine.attention_s * step.attended_tokens
        + machine.decode_call_s * step.decode_calls
        + machine.context_token_s * step.context_tokens
        + (0 if step.host is None else machine.host_call_s * step.host.admitted)
        + (0 if step.host is None else machine.host_token_s * step.host.sampled)
        for step in steps
    )
    return fitted_s / sum(step.seconds for step in steps) - 1


def show(result: dict[str, Any]) -> None:
    print(f"{result['policy']:30s} {'live, mean (range)':>34s} {'simulated':>12s} {'error':>8s}")
    for label, path in SHOWN:
        live = [value_at(run, path) for run in result["live"]]
        simulated = value_at(result["simulated"], path)
        mean = statistics.fmean(live)
        between = f"{mean:,.4g} ({min(live):,.4g} … {max(live):,.4g})"
        error = f"{simulated / mean - 1:+.1%}" if mean else ""
        print(f"{label:30s} {between:>34s} {simulated:12,.4g} {error:>8s}")
    errors = ", ".join(f"{error:+.1%}" for error in result["steps_error"])
    print(f"the machine's formula, over the time of the live runs' own steps: {errors}", flush=True)


def value_at(metrics: Any, path: str) -> float:
    """The number at a dotted path."""
    for key in path.split("."):
        metrics = metrics[key]
    return float(metrics)


if __name__ == "__main__":
    main()
