"""What many runs cost beyond the runs themselves: a comparison against the sum of its runs.

    python benchmarks/many_runs.py                       # 4 policies, 8 repeats, a process a core
    python benchmarks/many_runs.py --workers 1 --repeat 20
    python benchmarks/many_runs.py --trace coding.jsonl --machine h200-llama-3.1-8b

The runs are played here first, one after another, with their applications ready: that is what cannot be saved. Then
`tokencake compare` plays the same. Printed are, of the best of a few tries each:

- playing: CPU of all processes from the start of the first one to the last result, per second of CPU of the runs: what
  it takes to start processes, to make each repeat's applications, to hand out runs.
- busy: the share of that time in which the processes were in a run. It shows what waits: for a run to be handed out,
  for the last one to end.
- command: CPU of all processes of the command, from its start to its end, with the report, per second of the runs'.
- wall: of the whole command times processes, per second of CPU of the runs. It needs a machine that is otherwise idle,
  which the others hardly do.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from counts import count
from exits import exit_code

from tokencake.policies.registry import is_bound
from tokencake.sim.experiments.executors import run_on_workers
from tokencake.sim.experiments.processes.workers import cores
from tokencake.sim.experiments.run import RunSpec, applications_of, play, run_specs
from tokencake.sim.machine.files import DEFAULT_MACHINE, load_machine
from tokencake.traces.console.garbage import collect_seldom
from tokencake.traces.console.supervisor import allow_supervision
from tokencake.traces.variants.vary import EVERYTHING

TRACE = Path(__file__).parents[1] / "examples" / "code-writer.jsonl"
POLICIES = ("vllm", "tokencake", "infercept", "continuum")


class Playing(NamedTuple):
    """Runs on several processes."""

    cpu_s: float  # of all of them, and of this one
    busy: float  # share of their time in runs


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
    parser.add_argument("--repeat", type=count, default=8)
    parser.add_argument("--workers", type=count, default=cores())
    parser.add_argument("--tries", type=count, default=3)
    options = parser.parse_args()
    policies = tuple(options.policy or POLICIES)
    for policy in policies:
        is_bound(policy)  # raises for one that there is not
    allow_supervision()  # as in a command, processes are copies of this one
    collect_seldom()
    spec = RunSpec(options.trace, load_machine(options.machine), "", EVERYTHING)
    specs = list(run_specs(spec, policies, options.repeat))
    tries = range(options.tries)
    runs_s = min(runs_cpu_s(specs) for _ in tries)
    phases = [playing(specs, options.workers) for _ in tries]
    playing_s, busy = min(phase.cpu_s for phase in phases), max(phase.busy for phase in phases)
    asked = ["--policy=" + policy for policy in policies]
    asked += [f"--repeat={options.repeat}", f"--workers={options.workers}", f"--machine={options.machine}"]
    costs = [command_cost("compare", str(options.trace), *asked, "--quiet") for _ in tries]
    cpu_s, wall_s = min(cost.cpu_s for cost in costs), min(cost.wall_s for cost in costs)
    print(f"{len(specs)} runs: {runs_s:.2f} s of CPU, {1000 * runs_s / len(specs):.0f} ms each")
    print(f"playing: {playing_s:.2f} s of CPU, {playing_s / runs_s:.2f} times the runs'")
    print(f"busy: {100 * busy:.0f} % of {options.workers} processes")
    print(f"command: {cpu_s:.2f} s of CPU, {cpu_s / runs_s:.2f} times the runs'")
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


def playing(specs: list[RunSpec], workers: int) -> Playing:
    """The same on so many processes, which have what this one has read."""
    applications_of(replace(specs[0], repeat=0))
    began_s, spent_s = time.perf_counter(), _cpu_s()
    in_runs_s = sum(outcome.wall_s for outcome in run_on_workers(specs, workers))
    return Playing(_cpu_s() - spent_s, in_runs_s / workers / (time.perf_counter() - began_s))


def _cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


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
