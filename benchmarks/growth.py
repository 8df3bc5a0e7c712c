"""How a simulation's time grows with all that waits: many calls at one instant, then twice as many.

    python benchmarks/growth.py [--shape single|tools|host]... [--policy P]... [--calls N]... [--times K]
        [--most SECONDS]

For each policy and shape: seconds of CPU at each number of calls, and how many times as long twice the calls take. 2 is
linear. Each measurement runs in a process of its own that looks for garbage as seldom as the command line does, the
metrics' fold included, and counts the simulation alone; the least of `--times` is shown. A policy that takes longer
than `--most` for one number of calls is not asked for the next ones.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from math import log2

from exits import exit_code

from tokencake.policies.registry import ROWS, load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool
from tokencake.traces.console.garbage import collect_seldom
from tokencake.traces.format.derive import with_hints
from tokencake.traces.results.metrics import Metrics

SHAPES = {
    "single": "applications of one call",
    "tools": "half of the calls in chains of three with tools between them",
    "host": "the same, where little fits on the GPU and less than all on the host",
}
MACHINES: dict[str, list[str]] = {"single": [], "tools": [], "host": ["gpu_blocks=1000", "host_gib=2"]}
CHAIN = 3
TOOL_S = 2.0


def main() -> None:
    """Print a line for each shape and policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--calls", action="append", type=int)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--most", type=float, default=120.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(*json.loads(arguments.one)))
        return
    sizes = sorted(arguments.calls or (2_500, 5_000, 10_000))
    print(f"{'shape':8s} {'policy':24s}" + "".join(f"{size:>9,} {'':6s}" for size in sizes))
    for shape in arguments.shape or SHAPES:
        for policy in arguments.policy or ROWS:
            print(f"{shape:8s} {policy:24s}{line(policy, shape, sizes, arguments)}", flush=True)


def line(policy: str, shape: str, sizes: list[int], arguments: argparse.Namespace) -> str:
    """Seconds at each size, and how much longer than before, for twice the calls."""
    seconds: list[float] = []
    for size in sizes:
        if seconds and seconds[-1] > arguments.most:
            break
        seconds.append(min(run(policy, shape, size) for _ in range(arguments.times)))
    shown = [f"{seconds[0]:8.2f}s {'':6s}"]
    for (size, one), (larger, other) in pairwise(zip(sizes, seconds, strict=False)):
        grown = (other / one) ** (1 / log2(larger / size))
        shown.append(f"{other:8.2f}s {f'x{grown:.1f}':6s}")
    return "".join(shown)


def run(policy: str, shape: str, calls: int) -> float:
    """One measurement in its own process."""
    command = [sys.executable, __file__, "--one", json.dumps([policy, shape, calls])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(policy: str, shape: str, calls: int) -> float:
    """Seconds of CPU of one run."""
    applications = tuple(single(calls) if shape == "single" else mixed(calls))
    machine = load_machine("a800-qwen2.5-14b", MACHINES[shape])
    metrics = Metrics()
    made = load_policy(policy, applications=applications)
    collect_seldom()
    gc.collect()
    began = time.process_time()
    simulate(applications, made, machine, [metrics.add])
    seconds = time.process_time() - began
    assert metrics.result()["calls"] == calls
    return seconds


def single(calls: int) -> Iterator[Application]:
    """Applications of one call each, with a common system prompt, all at one instant."""
    for n in range(calls):
        yield with_hints(Application(f"a{n}", 0.0, (_call(f"a{n}", "c0"),)))


def mixed(calls: int) -> Iterator[Application]:
    """As many calls, half of them in chains of one agent that calls a tool in between."""
    left = calls
    for n in range(calls):
        length = min(left, CHAIN if n % (CHAIN + 1) == 0 else 1)
        if not length:
            return
        left -= length
        yield with_hints(Application(f"a{n}", 0.0, tuple(_chain(f"a{n}", length))))


def _chain(app: str, length: int) -> Iterator[Call]:
    before: Call | None = None
    for k in range(length):
        before = _call(app, f"c{k}", before, (Tool("search", TOOL_S, TOOL_S),) if k < length - 1 else ())
        yield before


def _call(app: str, name: str, before: Call | None = None, tools: tuple[Tool, ...] = ()) -> Call:
    if before is None:
        prompt = Prompt((Segment("/system", 0, 64), Segment(f"{app}/q", 0, 64)), tokens=128)
    else:
        keep = before.prompt.tokens + before.output_tokens
        prompt = Prompt((Segment(f"{app}/{name}.result", 0, 64),), before.id, keep, keep + 64)
    after = () if before is None else (before.id,)
    return Call(f"{app}/{name}", app, f"{app}/main", "main", prompt, 8, 8, after, tools=tools)


if __name__ == "__main__":
    sys.exit(exit_code(main))
