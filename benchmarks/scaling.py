"""How a simulation's time grows with what there is many of: each shape with n calls, and with four times as many.

    python benchmarks/scaling.py [--shape S]... [--policy P]... [--size K] [--times N] [--processes N] [--most SECONDS]

For each shape and policy: microseconds of CPU a call at n and at 4n calls, and the exponent of the whole time between
them: 1 is linear, 2 quadratic. The exit code is 1 if an exponent is above 1.15. `--size 25` makes every n 25 times as
large, which lets tens of thousands wait at once. Each measurement runs in a process of its own that looks for garbage
as seldom as the command line does, the metrics' fold included. What is above 1.15 is measured again, up to `--times`
times, and the least of each size counts. What takes longer than `--most` seconds is stopped, and fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf, log
from typing import NamedTuple

from counts import count, positive
from exits import exit_code
from scaling_shapes import SHAPES
from speed_run import peak_mb

from tokencake.policies.registry import ROWS, is_bound, load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.console.garbage import collect_seldom
from tokencake.traces.results.metrics import Metrics

POLICIES = ("vllm", "tokencake", "tokencake:rules=published", *list(ROWS)[2:])
GROWTH = 4
MOST_EXPONENT = 1.15


class Run(NamedTuple):
    """What one took."""

    calls: int
    cpu_s: float
    peak_mb: float

    @property
    def call_us(self) -> float:
        return 1e6 * self.cpu_s / self.calls


def main() -> int:
    """Print a line for each shape and policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--size", type=positive, default=1.0)
    parser.add_argument("--times", type=count, default=3)
    parser.add_argument("--processes", type=count, default=os.cpu_count())
    parser.add_argument("--most", type=positive, default=300.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return 0
    for policy in arguments.policy or ():
        is_bound(policy)  # raises for one that there is not
    asked = [(shape, policy) for shape in arguments.shape or SHAPES for policy in arguments.policy or POLICIES]
    steep = 0
    print(f"{'shape':14s} {'policy':26s} {'n':>7s} {'us/call':>8s} {'4n':>8s} {'us/call':>8s} {'peak MB':>8s} exponent")
    with ThreadPoolExecutor(arguments.processes) as pool:
        for (shape, policy), pair in zip(
            asked, pool.map(lambda one: measured(one[0], one[1], arguments), asked), strict=True
        ):
            print(f"{shape:14s} {policy:26s} {line(pair, arguments.most)}", flush=True)
            steep += exponent(pair) > MOST_EXPONENT
    print(f"{len(asked)} measured, {steep} above {MOST_EXPONENT}", file=sys.stderr)
    return 1 if steep else 0


def measured(shape: str, policy: str, arguments: argparse.Namespace) -> Sequence[Run]:
    """The runs of n and 4n calls, as far as they ended in time."""
    calls = round(SHAPES[shape].calls * arguments.size)
    best: list[Run] = []
    for _ in range(arguments.times):
        found: list[Run] = []
        for size in (calls, GROWTH * calls):
            if (run := played(policy, shape, size, arguments.most)) is None:
                return best or found
            found.append(run)
        best = [min(pair, key=lambda run: run.cpu_s) for pair in zip(found, best or found, strict=True)]
        if exponent(best) <= MOST_EXPONENT:
            break
    return best


def exponent(pair: Sequence[Run]) -> float:
    """Of the time in the number of calls; infinite if a run took too long."""
    if len(pair) < 2:
        return inf
    small, large = pair
    return log(large.cpu_s / small.cpu_s, large.calls / small.calls)


def line(pair: Sequence[Run], most_s: float) -> str:
    """Two runs as the end of a row."""
    shown = " ".join(f"{run.calls:{width},} {run.call_us:8.0f}" for run, width in zip(pair, (7, 8), strict=False))
    if len(pair) < 2:
        return f"{shown} more than {most_s:g} s"
    found = exponent(pair)
    return f"{shown} {pair[1].peak_mb:8.0f} {found:8.2f}{' !' if found > MOST_EXPONENT else ''}"


def played(policy: str, shape: str, calls: int, most_s: float) -> Run | None:
    """A run in its own process; None if it took too long."""
    command = [sys.executable, __file__, "--one", json.dumps([policy, shape, calls])]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=most_s)
    except subprocess.TimeoutExpired:
        return None
    return Run(*json.loads(done.stdout))


def measure(policy: str, shape: str, calls: int) -> Run:
    """A run in this process."""
    applications = tuple(SHAPES[shape].make(calls))
    machine = SHAPES[shape].machine(calls)
    metrics = Metrics()
    made = load_policy(policy, applications=applications)
    collect_seldom()
    gc.collect()
    began = time.process_time()
    simulate(applications, made, machine, [metrics.add])
    cpu_s = time.process_time() - began
    return Run(metrics.result()["calls"], cpu_s, peak_mb())


if __name__ == "__main__":
    sys.exit(exit_code(main))
