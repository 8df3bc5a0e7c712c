"""How fast the simulator is: calls and iterations a second of wall time, and peak memory, on one core.

    python benchmarks/speed.py [--shape dag|long-dag|coding|chat]... [--policy P]... [--calls N] [--traces DIR]

Each measurement runs in a process of its own, the metrics' fold included, three times (`chat` once); the best is shown,
and its time as a share of the slowest one's: how noisy the machine was. `coding` needs a folder of recorded
conversations (see docs/traces-from-elsewhere.md).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exits import exit_code

from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces.apps import Application
from tokencake.traces.convert.formats import convert
from tokencake.traces.generate.workloads import chat, code_writer
from tokencake.traces.results.metrics import Metrics

SHAPES = {
    "dag": "24 code-writer applications at 1.0/s, as published",
    "long-dag": "400 code-writer applications at 0.03/s",
    "coding": "64 recorded coding conversations, 40,000 and 400,000 blocks",
    "chat": "synthetic calls of 1,000 + 200 tokens, about 10 at a time, streamed",
}
CHAT_RATE = 1.8  # a second: keeps about ten calls in the batch of an A800 with a 14B model
REPEATS = 3


def main() -> None:
    """Print a line for each shape and policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--calls", type=int, default=1_000_000, help="of the chat shape")
    parser.add_argument("--traces", type=Path, default=default_traces())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    print(
        f"{'shape':26s} {'policy':10s} {'calls':>9s} {'calls/s':>9s} {'noise':>6s}"
        f" {'iterations/s':>13s} {'peak MB':>8s}"
    )
    for shape in arguments.shape or SHAPES:
        for name, case in cases(shape, arguments):
            for policy in arguments.policy or ("vllm", "tokencake"):
                results = [run(policy, case) for _ in range(1 if shape == "chat" else REPEATS)]
                print(line(name, policy, results), flush=True)


def cases(shape: str, arguments: argparse.Namespace) -> Iterable[tuple[str, list[Any]]]:
    """What to measure for a shape: a name, and what the measuring process is told."""
    if shape == "chat":
        counts = sorted({arguments.calls // 10, arguments.calls})
        return [(f"chat, {count:,} calls", [shape, count, []]) for count in counts]
    if shape == "coding":
        if not (arguments.traces / "agentic-coding").is_dir():
            print(f"coding: left out, no conversations at {arguments.traces / 'agentic-coding'}", file=sys.stderr)
            return []
        folder = str(arguments.traces)
        sizes = (40_000, 400_000)
        return [(f"coding, {n:,} blocks", [shape, folder, [f"gpu_blocks={n}"]]) for n in sizes]
    return [(shape, [shape, 0, []])]


def run(policy: str, case: list[Any]) -> dict[str, float]:
    """One measurement in its own process."""
    command = [sys.executable, __file__, "--one", json.dumps([policy, *case])]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def measure(policy: str, shape: str, what: Any, settings: list[str]) -> dict[str, float]:
    """Calls, iterations, seconds and peak memory of one run."""
    if shape == "coding":
        applications: Iterable[Application] = list(convert(Path(what) / "agentic-coding", "agentic-coding"))
        machine = load_machine("h200-llama-3.1-8b", ["max_context_tokens=1000000", *settings])
    else:
        machine = load_machine("a800-qwen2.5-14b", settings)
        applications = {
            "dag": lambda: list(code_writer(24, 1.0)),
            "long-dag": lambda: list(code_writer(400, 0.03)),
            "chat": lambda: chat(what, CHAT_RATE),
        }[shape]()
    gc.collect()
    metrics = Metrics()
    began = time.perf_counter()
    stats = simulate(applications, load_policy(policy), machine, [metrics.add])
    seconds = time.perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"calls": stats.calls, "iterations": stats.iterations, "seconds": seconds, "peak_mb": peak_mb}


def line(name: str, policy: str, results: list[dict[str, float]]) -> str:
    """The best of some measurements, as a row."""
    best = min(results, key=lambda result: result["seconds"])
    slowest = max(result["seconds"] for result in results)
    return (
        f"{name:26s} {policy:10s} {best['calls']:9,.0f} {best['calls'] / best['seconds']:9,.0f}"
        f" {best['seconds'] / slowest:6.0%} {best['iterations'] / best['seconds']:13,.0f} {best['peak_mb']:8.0f}"
    )


def default_traces() -> Path:
    """Where recorded traces are looked for."""
    return Path(os.environ.get("TOKENCAKE_TRACES", Path(__file__).parents[2] / "shared" / "traces"))


if __name__ == "__main__":
    sys.exit(exit_code(main))
