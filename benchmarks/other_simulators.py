"""Requests a second of other simulators of LLM engines, on one workload: 1,000 + 200 tokens, some ten at a time.

    aisimulate-venv/bin/python benchmarks/other_simulators.py aisimulate
    sched-sim-venv/bin/python benchmarks/other_simulators.py sched-sim
    .venv/bin/python benchmarks/other_simulators.py tokencake

Each is run by the interpreter that has it installed, and this script imports nothing else of ours. CPU time of a run of
`--requests` and of one of five times as many: what counts is the difference, which has no start in it. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from counts import count

PROMPT_TOKENS, OUTPUT_TOKENS, AT_A_TIME = 1_000, 200, 10
RATES = {"sched-sim": 3.8, "tokencake": 1.8}  # requests a second that keep about ten in the batch
TIMES = 5

PREDICTION = f"""
traffic:
  source: {{type: synthetic, input_tokens: {PROMPT_TOKENS}, output_tokens: {OUTPUT_TOKENS}}}
  load: {{type: concurrency, concurrency: {AT_A_TIME}}}
  stop: {{requests: %d}}
engine:
  mode: aggregated
  model: Qwen/Qwen3-32B-FP8
  hardware: h200_sxm
  backend: vllm
  workers: {{aggregated: {{}}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("simulator", choices=PLAYED)
    parser.add_argument("--requests", type=count, default=1_000)
    parser.add_argument("--repeats", type=count, default=3)
    options = parser.parse_args()
    if (installed := _version(options.simulator)) is None:
        parser.error(f"{options.simulator} is not installed in the environment of {sys.executable}")
    play = PLAYED[options.simulator]
    few, many = (
        min(play(requests) for _ in range(options.repeats)) for requests in (options.requests, TIMES * options.requests)
    )
    requests_per_s = (TIMES - 1) * options.requests / (many - few)
    found = {"simulator": options.simulator, "version": installed, "date": time.strftime("%Y-%m-%d")}
    figures = {"requests": options.requests, "cpu_s": [few, many], "requests_per_s": round(requests_per_s)}
    print(json.dumps({**found, **figures, "compiled": _compiled(options.simulator)}))


def _version(simulator: str) -> str | None:
    """None if it is not installed."""
    try:
        return str(import_module("tokencake").__version__) if simulator == "tokencake" else version(simulator)
    except ModuleNotFoundError:  # or its subclass for distributions
        return None


def _compiled(simulator: str) -> bool | None:
    """Whether our own core was; None of others."""
    if simulator != "tokencake":
        return None
    return not str(import_module("tokencake.sim.engine.engine").__file__).endswith(".py")


def _aisimulate(requests: int) -> float:
    """Seconds of CPU of a prediction, start and report included."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "prediction.yaml"
        config.write_text(PREDICTION % requests)
        before = os.times()
        command = [
            sys.executable,
            "-m",
            "aisimulate",
            "predict",
            "--config",
            str(config),
            "--output-dir",
            folder + "/o",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
    return after[2] + after[3] - before[2] - before[3]


def _sched_sim(requests: int) -> float:
    """Seconds of CPU of its chunked prefill, its metrics included."""
    requested = import_module("sched_sim.core.request").Request
    hardware = import_module("sched_sim.hardware.presets").get_hardware_profile("a100")
    made = import_module("sched_sim.schedulers.factory").create_scheduler("chunked", hardware, token_budget=2_048)
    simulator = import_module("sched_sim.core.event_engine").Simulator(hardware, made)
    rng, at_s = random.Random(0), 0.0
    arrivals = []
    for n in range(requests):
        at_s += rng.expovariate(RATES["sched-sim"])
        lengths = {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        arrivals.append(requested(request_id=str(n), arrived_at=at_s, **lengths))
    began = time.process_time()
    simulator.submit_workload(arrivals)
    simulator.run()
    took_s = time.process_time() - began
    in_batch = sum(simulator.iteration_batch_sizes) / len(simulator.iteration_batch_sizes)
    print(f"{requests:,} requests, {in_batch:.1f} in a batch", file=sys.stderr)
    return took_s


def _tokencake(requests: int) -> float:
    """Seconds of CPU under `vllm`, the metrics included."""
    metrics = import_module("tokencake.traces.results.metrics").Metrics()
    machine = import_module("tokencake.sim.machine.files").load_machine("a800-qwen2.5-14b", [])
    policy = import_module("tokencake.policies.registry").load_policy("vllm")
    chat = import_module("tokencake.traces.generate.workloads").chat(requests, RATES["tokencake"])
    began = time.process_time()
    import_module("tokencake.sim.engine.simulate").simulate(chat, policy, machine, [metrics.add])
    metrics.result()
    return time.process_time() - began


PLAYED: dict[str, Callable[[int], float]] = {
    "aisimulate": _aisimulate,
    "sched-sim": _sched_sim,
    "tokencake": _tokencake,
}


if __name__ == "__main__":
    main()
