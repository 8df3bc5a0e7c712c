"""What many runs cost beyond the runs themselves: a comparison against the sum of its runs.

    python benchmarks/many_runs.py                       # 4 policies, 8 repeats, a process a core
    python benchmarks/many_runs.py --workers 1 --repeat 20
    python benchmarks/many_runs.py --trace coding.jsonl --machine h200-llama-3.1-8b

The runs are played here first, one after another, with their applications ready: that is what cannot be saved. Then
`tokencake compare` plays the same. Printed are, of the best of a few tries each:

- CPU: of all processes of the command, from its start to its end, per second of CPU of the runs. It hardly depends on
  what else the machine does.
- busy: the share of the time between the first run and the last in which the processes were in a run. It shows what
  waits: for a run to be handed out, for the last one to end.
- wall: of the whole command times processes, per second of CPU of the runs. It needs a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from exits import exit_code

from tokencake.sim.experiments.executors import run_on_workers
from tokencake.sim.experiments.processes.workers import cores
from tokencake.sim.experiments.run import RunSpec, applications_of, play, run_specs
from tokencake.sim.machine.files import DEFAULT_MACHINE, load_machine
from tokencake.traces.console.garbage import collect_seldom
from tokencake.traces.console.supervisor import allow_supervision
from tokencake.traces.variants.vary import EVERYTHING

TRACE = Path(__file__).parents[1] / "examples" / "code-writer.jsonl"
POLICIES = ("vllm", "tokencake", "infercept", "continuum")


class Cost(NamedTuple):
    """Of one command."""

    cpu_s: float  # of all its processes
    wall_s: float


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--machine", default=DEFAULT_MACHINE)
    parser.add_argument("--policy", action="append", help="[default: vllm, tokencake, infercept, continuum]")
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--tries", type=int, default=3)
    options = parser.parse_args()
    policies = tuple(options.policy or POLICIES)
    allow_supervision()  # as in a command, processes are copies of this one
    collect_seldom()
    spec = RunSpec(options.trace, load_machine(options.machine), "", EVERYTHING)
    specs = list(run_specs(spec, policies, options.repeat))
    tries = range(options.tries)
    runs_s = min(runs_cpu_s(specs) for _ in tries)
    busy = max(busy_share(specs, options.workers) for _ in tries)
    asked = ["--policy=" + policy for policy in policies]
    asked += [f"--repeat={options.repeat}", f"--workers={options.workers}", f"--machine={options.machine}"]
    costs = [command_cost("compare", str(options.trace), *asked, "--quiet") for _ in tries]
    cpu_s, wall_s = min(cost.cpu_s for cost in costs), min(cost.wall_s for cost in costs)
    print(f"{len(specs)} runs: {runs_s:.2f} s of CPU, {1000 * runs_s / len(specs):.0f} ms each")
    print(f"CPU: {cpu_s:.2f} s, {cpu_s / runs_s:.2f} times the runs'")
    print(f"busy: {100 * busy:.0f} % of {options.workers} processes")
    print(f"wall: {wall_s:.2f} s, {wall_s * options.workers / runs_s:.2f} times the runs' CPU over the processes")


def runs_cpu_s(specs: list[RunSpec]) -> float:
    """CPU time of the runs in a process that is warm, without what they share."""
    spent_s = 0.0
    for spec in specs:
        applications_of(spec)
        began_s = time.process_time()
        outcome = play(spec)
        spent_s += time.process_time() - began_s
        assert outcome.error is None, outcome.error
    return spent_s


def busy_share(specs: list[RunSpec], workers: int) -> float:
    """Of the time of so many processes, from the first one's start to the last result, the share that runs took."""
    applications_of(replace(specs[0], repeat=0))
    began_s = time.perf_counter()
    in_runs_s = sum(outcome.wall_s for outcome in run_on_workers(specs, workers))
    return in_runs_s / workers / (time.perf_counter() - began_s)


def command_cost(*arguments: str) -> Cost:
    """What a command takes."""
    command = [sys.executable, "-m", "tokencake.cli", *arguments]
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began_s = time.perf_counter()
    _, status, used = os.wait4(os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet), 0)
    assert status == 0, f"it exited with {os.waitstatus_to_exitcode(status)}"
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - began_s)


if __name__ == "__main__":
    sys.exit(exit_code(main))
