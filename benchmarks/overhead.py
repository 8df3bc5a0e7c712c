"""What policy and adapter add to a step of vLLM's scheduler: 64 running, 256 waiting, 1,000 stalled agents.

    python benchmarks/overhead.py [--policy P]... [--situation quiet|news]... [--core compiled|pure]... [--steps N]
                                  [--date DATE] [--json FILE]

Drives vLLM's own scheduler without a model and without workers (a made-up token a call and step, copies that end with
their step), in turn: vLLM's; ours; ours with stopwatches at vLLM's share of it; ours with one at each method; and then,
by themselves, the stopwatches around nothing. Waiting calls are held by lack of room, and contexts of stalled agents do
not all fit onto the GPU. In `quiet` nothing happens but tokens; in `news` a call ends and another arrives at each step,
so that a policy is asked at each step, and copies move. Engine time goes on by 30 ms a step.

"added" is our step less vLLM's, step by step: less than nothing where a policy spares vLLM a look at a call that does
not fit. "ours" is the time inside our own methods and connector, less the median of what the stopwatches alone show.
The parts below overlap, and each has its own stopwatch in it. A step is `add_request`, `schedule` and
`update_from_output`; steps in which the operating system gave the CPU to somebody else are left out, and counted: what
is left is CPU time. Each core of Tokencake is measured in a process of its own, both where one is compiled
(`packaging/in_place.py`). Needs vLLM.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import needs_vllm  # noqa: F401
from exits import exit_code
from scheduler_steps import (
    SITUATIONS,
    STALLED,
    WARM_UP,
    Engine,
    Situation,
    StopwatchesAlone,
    WatchedScheduler,
    scheduler_of,
    situation,
)
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler

from tokencake import __version__
from tokencake.live.engine.control.versions import check_vllm
from tokencake.live.scheduler import TokencakeScheduler
from tokencake.traces import core_build
from tokencake.traces.errors import RunError
from tokencake.traces.files.outputs import check_outputs, outputs_of, write_whole

CORES = ("compiled", "pure")


def measure(policy: str, situation: Situation, steps: int) -> dict[str, Any]:
    """Times of steps in microseconds: vLLM's, what is added to them, and where that goes."""
    kinds = (Scheduler, TokencakeScheduler, WatchedScheduler, WatchedScheduler)
    engines = [Engine(scheduler_of(kind, situation), situation) for kind in kinds]
    native, ours, _, in_parts = engines
    for engine in engines:
        if engine is not native:
            engine.begin(policy)
        engine.fill()
    in_parts.scheduler.watch_parts()
    play(engines, WARM_UP)
    polls = ours.polls
    of_native, of_ours, watched, parts = play(engines, steps)
    pairs = [(before["whole"], with_us["whole"]) for before, with_us in zip(of_native, of_ours, strict=True)
             if before and with_us]  # fmt: skip
    watched, parts = [record for record in watched if record], [record for record in parts if record]
    stopwatches = stopwatches_alone(situation, steps)
    usual = round(statistics.median(stopwatches))
    return {
        "core": core(),
        "policy": policy,
        "situation": situation.name,
        "gpu_blocks": situation.gpu_blocks,
        "steps": steps,
        "left_out": {"pairs": steps - len(pairs), "ours": steps - len(watched), "parts": steps - len(parts)},
        "polls": ours.polls - polls,
        "counts": {"vllm": native.counts(), "tokencake": ours.counts()},
        "step_us": {"vllm": spread([a for a, _ in pairs]), "tokencake": spread([b for _, b in pairs])},
        "added_us": spread([b - a for a, b in pairs]),
        "stopwatches_us": spread(stopwatches),
        "ours_us": spread([own(record) - usual for record in watched]),
        "parts_us": {name: spread([part.get(name, 0) for part in parts]) for name in names_of(parts)},
    }


def stopwatches_alone(situation: Situation, steps: int) -> list[int]:
    """What of vLLM's steps would be called ours if nothing but the stopwatches were."""
    engine = Engine(scheduler_of(StopwatchesAlone, situation), situation)
    engine.fill()
    play([engine], WARM_UP)
    (records,) = play([engine], steps)
    return [own(record) for record in records if record]


def play(engines: Sequence[Engine], steps: int) -> list[list[dict[str, int]]]:
    """For each engine, what each of these steps took; nothing of one that was interrupted."""
    records: dict[Engine, list[dict[str, int]]] = {engine: [] for engine in engines}
    gc.collect()
    gc.disable()
    for turn in turns(engines, steps):
        for engine in turn:
            arriving = [engine.returning()] if engine.situation.news else ()
            engine.spent.clear()
            before = interruptions()
            whole = engine.step(arriving, int(engine.situation.news))
            interrupted = interruptions() > before
            records[engine].append({} if interrupted else {"whole": whole, **engine.spent})
    gc.enable()
    return [records[engine] for engine in engines]


def interruptions() -> int:
    """How often the operating system has taken the core from us."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def turns(engines: Sequence[Engine], count: int) -> Iterator[Sequence[Engine]]:
    """The engines, each time another one first."""
    for at in range(count):
        first = at % len(engines)
        yield [*engines[first:], *engines[:first]]


def own(part: dict[str, int]) -> int:
    """Our own share of a step: all that is not vLLM's, and what vLLM asked our connector."""
    return part["whole"] - part["vllm"] + part.get("connector", 0)


def names_of(parts: Sequence[dict[str, int]]) -> list[str]:
    return sorted({name for part in parts for name in part} - {"whole", "vllm"})


def spread(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Median and 99th percentile, in microseconds."""
    cuts = statistics.quantiles(nanoseconds, n=100, method="inclusive")
    return {"median": round(cuts[49] / 1e3, 2), "p99": round(cuts[98] / 1e3, 2)}


def show(result: dict[str, Any]) -> None:
    def pair(values: dict[str, float]) -> str:
        return f"{values['median']:,.1f} / {values['p99']:,.1f}"

    print(
        f"{result['core']:8s} {result['situation']:6s} {result['policy']:16s} {pair(result['step_us']['vllm']):>20s}"
        f" {pair(result['added_us']):>20s} {pair(result['ours_us']):>20s}  {result['polls']} polls,"
        f" {result['left_out']['pairs']} of {result['steps']} left out,"
        f" {', '.join(f'{count} {name}' for name, count in result['counts']['tokencake'].items())}"
    )
    for name, values in result["parts_us"].items():
        print(f"{'':32s} {name:16s} {pair(values):>16s}")
    sys.stdout.flush()


def core() -> str:
    """Which core this process runs."""
    return "compiled" if core_build.running == core_build.COMPILED else "pure"


def measure_here(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    init_none_hash(sha256)
    results = []
    for name in arguments.situation or SITUATIONS:
        for policy in arguments.policy or ("vllm", "tokencake"):
            results.append(measure(policy, situation(name, arguments.steps), arguments.steps))
            show(results[-1])
    return results


def measure_elsewhere(of_core: str) -> list[dict[str, Any]]:
    """The same command in a process that runs this core."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--only-core", of_core, "--json", str(file)]
        child = subprocess.run(command, env={**os.environ, core_build.PURE: str(int(of_core == "pure"))}, check=False)
        if child.returncode:
            raise RunError(f"the process that measures the {of_core} core ended with code {child.returncode}")
        results: list[dict[str, Any]] = json.loads(file.read_bytes())["results"]
    return results


def main() -> None:
    """Print a line for each core, situation and policy, and what it consists of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--situation", action="append", choices=SITUATIONS)
    parser.add_argument("--core", action="append", choices=CORES)
    parser.add_argument("--only-core", choices=CORES, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--date", help="written down with the result")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    check_outputs(outputs_of(json=arguments.json))
    if not 2 <= arguments.steps <= STALLED - WARM_UP:
        parser.error(f"--steps: expected 2 to {STALLED - WARM_UP}, got {arguments.steps}")
    cores = arguments.core or (CORES if core() == "compiled" else ["pure"])
    load_before = os.getloadavg()[0]
    if arguments.only_core is None:
        print(f"median / p99 in µs{'':14s} {'step of vLLM':>20s} {'added':>20s} {'ours':>20s}", flush=True)
        results = [result for of_core in cores for result in measure_elsewhere(of_core)]
    elif arguments.only_core == core():
        results = measure_here(arguments)
    else:
        raise RunError("no core is compiled here: python packaging/in_place.py")
    if arguments.json is not None:
        about = {
            "command": "python benchmarks/overhead.py " + " ".join(sys.argv[1:]),
            "date": arguments.date,
            "tokencake": __version__,
            "vllm": check_vllm(),
            "python": platform.python_version(),
            "cpu": processor(),
            "cpus": os.cpu_count(),
            "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        }
        write_whole(arguments.json, json.dumps({**about, "results": results}, indent=1) + "\n")


def processor() -> str:
    """What this machine calls its CPU."""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(exit_code(main))
