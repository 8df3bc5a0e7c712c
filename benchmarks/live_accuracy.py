"""How near the simulator comes to a live engine: on a CPU, a tiny model, on a machine that does nothing else.

    python benchmarks/live_accuracy.py [--policy P]... [--workload code-writer|coding]... [--applications N]
        [--repeats N] [--json FILE]

For each workload calibrates the engine for it, as `tokencake validate` does, plays it several times under each policy,
and simulates the same on the fitted machine. Shown are the mean of the live runs with their range, what the simulator
says, and its error. `coding` needs a folder of recorded conversations (see docs/traces-from-elsewhere.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exits import exit_code

from tokencake import __version__
from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.calibration.calibrate import calibrate
from tokencake.sim.calibration.fit import Fit
from tokencake.sim.calibration.probes.effort import FULL, QUICK
from tokencake.sim.calibration.samples import Samples, StepSample
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application
from tokencake.traces.convert.formats import convert
from tokencake.traces.errors import RunError, TokencakeError
from tokencake.traces.files.outputs import check_outputs, outputs_of, write_whole
from tokencake.traces.generate.workloads import code_writer
from tokencake.traces.results.metric import metric_value
from tokencake.traces.results.metrics import Metrics
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ENGINE = EngineOptions(model="tiny", gpu_blocks=320, host_gib=0.25, max_context_tokens=8_192)
APPLICATIONS = 8
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
    parser.add_argument("--applications", type=int, default=APPLICATIONS, help="of each workload")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="calibrate at length")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--date", help="of the run, for the file")
    arguments = parser.parse_args()
    for option in ("applications", "repeats"):
        if getattr(arguments, option) < 1:
            raise TokencakeError(f"--{option}: expected at least 1, got {getattr(arguments, option)}")
    check_outputs(outputs_of(json=arguments.json))
    workloads = {name: WORKLOADS[name](arguments.applications) for name in arguments.workload or WORKLOADS}
    results, machines = [], {}
    with InProcess(ENGINE) as engine:
        for name, applications in workloads.items():
            calls = sum(len(application.calls) for application in applications)
            print(f"\n{name}: {len(applications)} applications, {calls} calls", flush=True)
            machine = calibrated(engine, applications, arguments.full)
            machines[name] = machine.settings()
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
            "machines": machines,
            "runs": results,
        }
        write_whole(arguments.json, json.dumps(told, indent=1) + "\n")


def calibrated(engine: InProcess, applications: Sequence[Application], full: bool) -> Machine:
    """The machine that fits the engine, for what will be played."""
    began_s = time.perf_counter()
    fitted = calibrate(engine, FULL if full else QUICK, applications=lambda limits: applications).fit
    took_s = time.perf_counter() - began_s
    show_fit(fitted, took_s)
    return fitted.machine("calibrated")


def show_fit(fitted: Fit, seconds: float) -> None:
    overall = fitted.steps.overall
    print(f"calibrated in {seconds:.0f} s: {overall.steps} steps, error {overall.median:+.1%} (median)", end="")
    print(f", 95 % within {overall.p95:.1%}; of their time together {fitted.steps.total:+.1%}")
    for name, estimate in fitted.constants.items():
        interval = "" if estimate.low is None else f"  ({estimate.low:.3g} … {estimate.high:.3g})"
        print(f"  {name:16s} {estimate.value:.3g}{interval}")
    for warning in fitted.warnings():
        print(f"warning: {warning}")


def code_writers(count: int) -> list[Application]:
    """The published workload with an eighth of its tokens and a tenth of its waits."""
    return list(scaled(shrunk(code_writer(count, 1.0), 8), 0.1))


def conversations(count: int) -> list[Application]:
    """Recorded coding conversations with a fiftieth of their tokens, arriving one a second, with short waits."""
    folder = Path(os.environ.get("TOKENCAKE_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces"))
    whole = convert(folder / "agentic-coding", "agentic-coding")
    some = [application for application in whole if len(application.calls) <= CALLS_OF_A_CONVERSATION]
    small = scaled(shrunk(some[:count], 50), 0.005)
    return [application._replace(arrival_s=float(index)) for index, application in enumerate(small)]


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
        if (problem := stats.failed or "; ".join(stats.disagreements)) != "":
            raise RunError(f"{policy}: {problem}")
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
        live = [metric_value(run, path) or 0.0 for run in result["live"]]
        simulated = metric_value(result["simulated"], path) or 0.0
        mean = statistics.fmean(live)
        between = f"{mean:,.4g} ({min(live):,.4g} … {max(live):,.4g})"
        error = f"{simulated / mean - 1:+.1%}" if mean else ""
        print(f"{label:30s} {between:>34s} {simulated:12,.4g} {error:>8s}")
    errors = ", ".join(f"{error:+.1%}" for error in result["steps_error"])
    print(f"the machine's formula, over the time of the live runs' own steps: {errors}", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
