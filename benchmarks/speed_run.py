"""One measurement of `speed.py`, in a process of its own: plays a shape by whatever sources of tokencake it finds.

    python benchmarks/speed_run.py '{"shape": "dag", "policy": "vllm"}'

They may be those of an earlier commit, so every name is looked for where it was then, too. Prints JSON.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = {  # where a name is, and where it was in November 2026
    "simulate": ("sim.engine.simulate", "sim.simulate"),
    "load_policy": ("policies.registry",),
    "load_machine": ("sim.machine.files", "sim.machine_file"),
    "Metrics": ("traces.results.metrics", "traces.metrics"),
    "convert": ("traces.convert.formats", "traces.convert"),
    "code_writer": ("traces.generate.workloads", "traces.generate"),
    "chat": ("traces.generate.workloads", "traces.generate"),
    "read_trace": ("traces.format.reader", "traces.reader"),
    "KvGroup": ("sim.machine.kv_groups",),
    "collect_seldom": ("traces.console.garbage",),
}
NEEDS_GROUPS = ("h200-gpt-oss-120b", "h200-gemma-3-27b")
AT_LEAST_S = 0.3  # a shape is played again and again for so long: a short run alone says little
CHAT_RATE = 1.8  # a second: keeps about ten calls in the batch of an A800 with a 14B model


def main() -> None:
    """Measure what is asked for."""
    asked = json.loads(sys.argv[1])
    if (settle := found("collect_seldom")) is not None:
        settle()
    print(json.dumps(read(asked["trace"]) if asked["shape"] == "read" else play(**asked)))


def play(
    shape: str,
    policy: str,
    calls: int = 0,
    folder: str = "",
    machine: str = "a800-qwen2.5-14b",
    settings: Sequence[str] = (),
) -> dict[str, float | bool | str]:
    """Calls, iterations and seconds of a run: CPU and wall, the metrics' fold included. The peak memory of all.

    Of sources that have no such machine, what they lack.
    """
    simulate, load_policy, load_machine, metrics = map(found, ("simulate", "load_policy", "load_machine", "Metrics"))
    if machine in NEEDS_GROUPS and found("KvGroup") is None:
        return {"lacks": f"KV cache groups, which {machine} has"}
    engine = load_machine(machine, list(settings))
    make = applications(shape, calls, folder)
    runs = 0
    cpu_s = wall_s = 0.0
    while cpu_s < AT_LEAST_S:
        played, fold, asked = make(), metrics(), load_policy(policy)
        gc.collect()
        cpu_began, wall_began = time.process_time(), time.perf_counter()
        stats = simulate(played, asked, engine, [fold.add])
        fold.result()
        wall_s += time.perf_counter() - wall_began
        cpu_s += time.process_time() - cpu_began
        runs += 1
    return {
        "calls": stats.calls,
        "iterations": stats.iterations,
        "cpu_s": cpu_s / runs,
        "wall_s": wall_s / runs,
        "peak_mb": peak_mb(),
        "compiled": compiled(simulate),
    }


def applications(shape: str, calls: int, folder: str) -> Callable[[], Iterable[Any]]:
    """What makes the applications of a run; those of few calls are made once."""
    if shape == "chat":
        return partial(found("chat"), calls, CHAT_RATE)
    if shape == "alive":
        return partial(import_module("scaling_shapes").stalled, calls)
    if shape == "coding":
        made = list(found("convert")(Path(folder), "agentic-coding"))
    else:
        made = list(found("code_writer")(*{"dag": (24, 1.0), "long-dag": (400, 0.03)}[shape]))
    return lambda: made


def read(trace: str) -> dict[str, float]:
    """Calls in a trace, and seconds to read it."""
    read_trace = found("read_trace")
    began, runs, calls = time.process_time(), 0, 0
    while time.process_time() - began < AT_LEAST_S:
        calls = sum(len(application.calls) for application in read_trace(trace))
        runs += 1
    return {"calls": calls, "cpu_s": (time.process_time() - began) / runs}


def found(name: str) -> Any:
    """An object of the project by its name, wherever it is; None if there is none yet."""
    for module in NAMES[name]:
        try:
            return getattr(import_module(f"tokencake.{module}"), name)
        except ModuleNotFoundError:
            continue
    return None


def compiled(function: Callable[..., Any]) -> bool:
    module: Mapping[str, Any] = vars(sys.modules[function.__module__])
    return not str(module["__file__"]).endswith(".py")


def peak_mb() -> float:
    """Of this process alone: what `getrusage` says may be its parent's, which it was a copy of."""
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
