"""The tables of speed in README and docs, made from the figures that `speed.py` measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import Any

Figures = Mapping[str, Any]

SHAPES = {
    "dag": "24 code writers at 1.0/s, saturated",
    "long-dag": "400 code writers at 0.03/s",
    "coding-40k": "recorded coding conversations, 40,000 blocks",
    "coding-400k": "the same, 400,000 blocks",
    "groups-1": "24 code writers, one KV cache group of a model",
    "groups-2": "24 code writers, 2 groups",
    "groups-7": "24 code writers, 7 groups",
    "chat": "10^6 short calls",
    "alive": "10^5 agents alive at once",
}
POLICIES = ("vllm", "tokencake", "tokencake:rules=published")
COMMANDS = {
    "read": "reading a trace, µs a call",
    "simulate": "`simulate` of one application, ms",
    "compare": "`compare` of 3 policies, 8 repeats each, s",
}
GROUPS = ("groups-1", "groups-2", "groups-7")
OTHERS = {
    "tokencake": "vLLM's scheduler, every step of it, prefix cache, host memory, agents and their tools, under `vllm`",
    "aisimulate": "vLLM in Rust on an H200 with a 32B model, operators' times from a table, clients in a closed loop",
    "sched-sim": "iterations of chunked prefill on an A100, paged memory, time by a formula, no prefix cache",
}
RESULTS = Path(__file__).parent / "results"
UNITS = {"read": 1e6, "simulate": 1e3, "compare": 1.0}


def filled(text: str, figures: Figures) -> str:
    """The document with each table between `<!-- speed: NAME -->` and `<!-- end -->` written anew."""

    def table(found: re.Match[str]) -> str:
        indent, name = found[1], found[2]
        space = [] if indent else [""]  # text of a list's item stands as it is; a table needs room
        lines = [f"<!-- speed: {name} -->", *space, *TABLES[name](figures), *space, "<!-- end -->"]
        return "\n".join(indent + line for line in lines)

    return re.sub(r"( *)<!-- speed: (.+?) -->\n.*?<!-- end -->", table, text, flags=re.S)


def _about(figures: Figures) -> Iterator[str]:
    """What was measured when and where, in a sentence or two."""
    machine, packages = figures["machine"], figures["packages"]
    kind = "compiled" if any(run["compiled"] for run in figures["runs"]) else "pure Python"
    slower = max(median(run["wall_s"]) / median(run["cpu_s"]) for run in figures["runs"]) - 1
    yield from wrap(
        f"Measured on {figures['date']} at commit {figures['revision']}, {kind}, on one core of {machine['cores']}"
        f" ({machine['cpu']}), CPython {packages['python']}, SimPy {packages['simpy']}. By CPU time, the metrics'"
        f" fold included; wall time was up to {100 * slower:.0f} % more.",
        width=120,
    )


def _headline(figures: Figures) -> Iterator[str]:
    """Of the first shape and the second, under two policies, in words."""
    said = []
    for shape in ("dag", "long-dag"):
        speeds = (f"{_speed(figures, shape, policy, 'installed').split()[0]} (`{policy}`)" for policy in POLICIES[:2])
        said.append(f"{' and '.join(speeds)} calls a second on {SHAPES[shape]}")
    yield from wrap("; ".join(said) + ".", width=118)


def _calls(figures: Figures) -> Iterator[str]:
    """Calls a second of the installed package, and how many times as many as the earlier commit's."""
    yield from _by_shape(figures, "installed")


def _pure(figures: Figures) -> Iterator[str]:
    """The same of pure Python."""
    yield from _by_shape(figures, "pure")


def _by_shape(figures: Figures, build: str) -> Iterator[str]:
    before = figures["against"]
    yield _row(["calls a second" + (f" (times those of {before})" if before else ""), *map(_code, POLICIES)])
    yield _rule(len(POLICIES))
    for shape, about in SHAPES.items():
        if shape != "alive" and _run(figures, shape, POLICIES[0], build) is not None:
            yield _row([about, *(_speed(figures, shape, policy, build) for policy in POLICIES)])


def _speed(figures: Figures, shape: str, policy: str, build: str) -> str:
    run, earlier = _run(figures, shape, policy, build), _run(figures, shape, policy, "against")
    if run is None:
        return ""
    speed = _calls_a_second(run)
    said = f"{speed:,.0f}" if earlier is None else f"{speed:,.0f} (×{speed / _calls_a_second(earlier):.1f})"
    one = _run(figures, GROUPS[0], policy, build)
    return (
        said if shape not in GROUPS[1:] or one is None else f"{said}, {speed / _calls_a_second(one):.2f} of one group's"
    )


def _calls_a_second(run: Mapping[str, Any]) -> float:
    return float(run["calls"] / median(run["cpu_s"]))


def _memory(figures: Figures) -> Iterator[str]:
    """Peak memory of whole processes."""
    policies = POLICIES[:2]
    yield _row(["peak memory, MB", *map(_code, policies)])
    yield _rule(len(policies))
    for shape in ("dag", "long-dag", "chat", "alive"):
        runs = [_run(figures, shape, policy, "installed") for policy in policies]
        if any(runs):
            yield _row([SHAPES[shape], *(f"{median(run['peak_mb']):.0f}" if run else "" for run in runs)])


def _commands(figures: Figures) -> Iterator[str]:
    """CPU time of commands, and of the comparison, which works on all cores, wall time, too."""
    names = {"installed": "installed", "pure": "pure Python", "against": str(figures["against"])}
    rows = {(row["command"], row["build"]): row for row in figures["commands"]}
    builds = [build for build in names if ("read", build) in rows]
    yield _row(["CPU time", *(names[build] for build in builds)])
    yield _rule(len(builds))
    for command, about in COMMANDS.items():
        yield _row([about, *(_took(rows[command, build], "cpu_s") for build in builds)])
    yield _row(["its wall time, s", *(_took(rows["compare", build], "wall_s") for build in builds)])


def _others(figures: Figures) -> Iterator[str]:
    """Requests a second of other simulators, from the newest file of `other_simulators.py`."""
    newest = max(RESULTS.glob("*-other-simulators.jsonl"))
    yield _row(["simulator", "what was played", "requests a second"])
    yield "|---|---|--:|"
    for line in newest.read_text("utf-8").splitlines():
        row = json.loads(line)
        ours = {True: ", compiled", False: ", pure Python", None: ""}[row["compiled"]]
        name = f"{row['simulator']} {row['version']}{ours}"
        yield _row([name, OTHERS[row["simulator"]], f"{row['requests_per_s']:,}"])


def _took(row: Mapping[str, Any], kind: str) -> str:
    seconds = median(row[kind]) / row.get("calls", 1)
    return f"{UNITS[row['command']] * seconds:.{0 if row['command'] == 'simulate' else 1}f}"


TABLES: Mapping[str, Callable[[Figures], Iterator[str]]] = {
    "about": _about,
    "headline": _headline,
    "calls": _calls,
    "pure": _pure,
    "memory": _memory,
    "commands": _commands,
    "others": _others,
}


def _run(figures: Figures, shape: str, policy: str, build: str) -> Mapping[str, Any] | None:
    found = (run for run in figures["runs"] if (run["shape"], run["policy"], run["build"]) == (shape, policy, build))
    return next(found, None)


def _code(policy: str) -> str:
    return f"`{policy}`"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---|" + "--:|" * columns
