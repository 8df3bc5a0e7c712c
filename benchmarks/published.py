"""The published benchmark, predicted: five rates of applications, four configurations; four of the cells were measured.

    python benchmarks/published.py [--json FILE] [--set KEY=VALUE]... [--draws N] [--seed N] [--spread SHARE]
        [--shared TOKENS]

The machine is `a800-qwen2.5-14b`. Its step constants were fitted to the two measured `base` cells; the cells that were
not measured are predictions. The authors' rates between 0.1 and 1.0 applications a second are not known to us: those
here are ours. docs/accuracy.md says how far to trust it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from exits import exit_code

from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application
from tokencake.traces.events import CallFinished, FirstToken
from tokencake.traces.files.outputs import check_outputs, outputs_of, write_whole
from tokencake.traces.generate.workloads import code_writer
from tokencake.traces.results.metrics import Metrics

RATES = (0.1, 0.2, 0.4, 0.7, 1.0)
POLICIES = {
    "base": "vllm",
    "agent": "tokencake-space:rules=published",
    "offload": "tokencake-time:rules=published,upload=demand",
    "agent_offload": "tokencake:rules=published,upload=demand",
}
CLIENT_S = 6.0  # the authors' end-to-end time holds about so much client start and exit
CELLS = Path(__file__).parent / "published_cells.json"


def main() -> None:
    """Print the table, and the errors of the measured cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the machine")
    parser.add_argument("--draws", type=int, default=1, help="show means over so many seeds (needs a spread)")
    parser.add_argument("--seed", type=int, default=0, help="of the spread; the first one of several draws")
    parser.add_argument("--spread", type=float, default=0.0, help="of prompt and tool-result lengths, as a share")
    parser.add_argument("--shared", type=int, default=540, help="tokens that all applications' prompts share")
    arguments = parser.parse_args()
    if arguments.draws < 1 or (arguments.draws > 1 and not arguments.spread):
        parser.error("--draws: expected at least 1, and a --spread if more: without one all draws are the same")
    machine = load_machine("a800-qwen2.5-14b", arguments.set)
    check_outputs(outputs_of(json=arguments.json), [CELLS])
    measured = {(cell["mode"], cell["qps"]): cell for cell in json.loads(CELLS.read_text())["cells"]}
    print(
        "Predicted; in brackets the error against the measurement, if there is one (pt: points of all prompt tokens)."
    )
    print(f"{'configuration':14s} {'rate':>4s} {'end to end, s':>18s} {'mean application, s':>20s}", end="")
    print(f" {'computed':>17s} {'GPU hits':>17s} {'host hits':>17s} {'preempted':>10s}")
    rows = []
    for mode, policy in POLICIES.items():
        for rate in RATES:
            draws = [
                predict(
                    policy,
                    code_writer(24, rate, seed=seed, shared_tokens=arguments.shared, spread=arguments.spread),
                    machine,
                )
                for seed in range(arguments.seed, arguments.seed + arguments.draws)
            ]
            row = {"mode": mode, "qps": rate, **{key: fmean(draw[key] for draw in draws) for key in draws[0]}}
            rows.append(row)
            print(line(row, measured.get((mode, rate))), flush=True)
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps({"machine": machine.settings(), "cells": rows}, indent=1) + "\n")


def predict(policy: str, trace: Iterable[Application], machine: Machine) -> dict[str, float]:
    """The simulated cell, in the measured cells' terms."""
    metrics = Metrics()
    first_s: dict[str, float] = {}
    decode_s: list[float] = []

    def decoded(fact: object) -> None:
        if isinstance(fact, FirstToken):
            first_s[fact.call] = fact.at_s
        elif isinstance(fact, CallFinished):
            decode_s.append(fact.at_s - first_s.pop(fact.call))

    simulate(trace, load_policy(policy), machine, [metrics.add, decoded])
    result: Any = metrics.result()
    tokens = result["prefill_tokens"]
    return {
        "e2e_s": result["makespan_s"] + CLIENT_S,
        "app_mean_s": result["app_latency_s"]["mean"],
        "app_p50_s": result["app_latency_s"]["p50"],
        "app_p95_s": result["app_latency_s"]["p95"],
        "ttft_mean_s": result["ttft_s"]["mean"],
        "queue_time_mean_s": result["queue_s"]["mean"],
        "decode_time_mean_s": fmean(decode_s),
        "prefill_computed_tokens": tokens["computed"],
        "prefill_gpu_hit_tokens": tokens["gpu_hit"],
        "prefill_cpu_hit_tokens": tokens["host_hit"],
        "preemptions": result["preemptions"],
        "kv_usage_mean": result["gpu_usage_mean"],
        "d2h_bytes": result["offload_bytes"],
        "h2d_bytes": result["upload_bytes"],
    }


def line(row: dict[str, Any], cell: dict[str, float] | None) -> str:
    """A row of the table."""
    sources = ("prefill_computed_tokens", "prefill_gpu_hit_tokens", "prefill_cpu_hit_tokens")
    total = sum(row[source] for source in sources)
    parts = [f"{row['mode']:14s} {row['qps']:4.1f}"]
    for key, width in (("e2e_s", 18), ("app_mean_s", 20)):
        error = "" if cell is None else f" ({row[key] / cell[key] - 1:+.1%})"
        parts.append(f"{row[key]:.1f}{error}".rjust(width))
    measured = sum(cell[source] for source in sources) if cell else 0
    for source in sources:
        error = "" if cell is None else f" ({100 * (row[source] - cell[source]) / measured:+.1f} pt)"
        parts.append(f"{row[source] / total:.1%}{error}".rjust(17))
    preempted = f"{row['preemptions']:.0f}" + ("" if cell is None else f" ({cell['preemptions']:.0f})")
    return " ".join([*parts, preempted.rjust(10)])


if __name__ == "__main__":
    sys.exit(exit_code(main))
