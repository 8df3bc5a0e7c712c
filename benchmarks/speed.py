"""How fast the simulator is: calls a second of one core, memory, and what else a command takes; as README and docs say.

    python benchmarks/speed.py [--against REV] [--output FILE] [--write DOCUMENT]...   # everything: some ten minutes
    python benchmarks/speed.py --shape dag --policy vllm --times 3
    python benchmarks/speed.py --from FILE --write docs/speed.md README.md             # puts its tables into documents

Each shape is played under each policy by the installed package, compiled if it is; by its pure sources; and by those
of the commit `--against`: in turn, each time in a process of its own, on one core, the metrics' fold included. A
process plays for a third of a second at least; what counts is the median of `--times` processes. The shapes of long
runs are played once, and by pure sources and an earlier commit with a tenth of the calls. Of a commit that
lacks KV cache groups their shapes are left out, and that is said. The coding conversations need a folder of recorded
ones (see docs/traces-from-elsewhere.md), and are left out without.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from counts import count
from documents import text_of
from exits import exit_code
from speed_tables import POLICIES, filled

from tokencake import __version__
from tokencake.policies.registry import is_bound
from tokencake.traces.files.fields import members
from tokencake.traces.files.json_file import read_json
from tokencake.traces.files.outputs import Output, check_outputs, outputs_of, write_whole
from tokencake.traces.format.writer import write_trace
from tokencake.traces.generate.workloads import code_writer

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
LONG = 10  # how many times as many calls a long run has as a short one of the same shape
BLOCKS = 3_049  # of one KV cache group
FIGURES = ("command", "date", "version", "revision", "against", "machine", "packages", "runs", "commands")


class Shape(NamedTuple):
    """A workload: what `speed_run.py` is told of it. What it is in words is in `speed_tables.py`."""

    asked: Mapping[str, Any]
    once: bool = False
    policies: Sequence[str] = POLICIES


def _coding(blocks: int) -> Mapping[str, Any]:
    settings = ["max_context_tokens=1000000", f"gpu_blocks={blocks}"]
    return {"shape": "coding", "machine": "h200-llama-3.1-8b", "settings": settings}


def _groups(machine: str, times: int) -> Mapping[str, Any]:
    """So many times the blocks of one group that about as many steps are played: windows take what is over."""
    return {"shape": "dag", "machine": machine, "settings": [f"gpu_blocks={times * BLOCKS}"]}


SHAPES = {
    "dag": Shape({"shape": "dag"}),
    "long-dag": Shape({"shape": "long-dag"}),
    "coding-40k": Shape(_coding(40_000)),
    "coding-400k": Shape(_coding(400_000)),
    "groups-1": Shape(_groups("h200-llama-3.1-8b", 1)),
    "groups-2": Shape(_groups("h200-gpt-oss-120b", 2)),
    "groups-7": Shape(_groups("h200-gemma-3-27b", 3)),
    "chat": Shape({"shape": "chat", "calls": 1_000_000}, once=True),
    "alive": Shape({"shape": "alive", "calls": 200_000}, True, POLICIES[:2]),
}


class Build(NamedTuple):
    """Sources of tokencake."""

    name: str  # "installed", "pure" or "against"
    environment: Mapping[str, str]


def main() -> None:
    """Measure, or fill in tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--times", type=count, default=5)
    parser.add_argument("--against", metavar="REV", help="a commit of this repository, measured in turn")
    parser.add_argument("--traces", type=Path, default=default_traces())
    parser.add_argument("--output", type=Path, help="where the figures go")
    parser.add_argument("--from", dest="figures", type=Path, help="figures of before, instead of measuring")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="documents whose tables are to be filled in")
    parser.add_argument("--no-commands", action="store_true", help="leave out reading, start-up and comparison")
    arguments = parser.parse_args()
    for policy in arguments.policy or ():
        is_bound(policy)  # raises for one that there is not
    if arguments.against is not None and not _is_commit(arguments.against):
        parser.error(f"argument --against: there is no commit {arguments.against!r}")
    texts = {document: text_of(document) for document in arguments.write}
    check_outputs([*outputs_of(output=arguments.output), *(Output("--write", document) for document in texts)])
    figures: Mapping[str, Any] = (
        measured(arguments) if arguments.figures is None else read_json(arguments.figures, _figures)
    )
    if arguments.output is not None:
        write_whole(arguments.output, json.dumps(figures, indent=1) + "\n")
    for document, text in texts.items():
        write_whole(document, filled(text, figures))


def _figures(value: object, field: str) -> Mapping[str, Any]:
    return members(value, frozenset(FIGURES), FIGURES)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, said as they come."""
    with tempfile.TemporaryDirectory() as folder:
        builds = list(_builds(arguments.against, Path(folder)))
        figures: dict[str, Any] = about(arguments)
        figures["runs"] = list(_runs(arguments, builds))
        figures["commands"] = [] if arguments.no_commands else list(_commands(arguments.times, builds, Path(folder)))
    return figures


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured when, where and how."""
    names = {name: version(name) for name in ("simpy", "numpy")}
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "revision": _git("rev-parse", "--short", "HEAD"),
        "against": arguments.against and _git("rev-parse", "--short", arguments.against),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "packages": {"python": platform.python_version(), **names},
    }


def _builds(against: str | None, folder: Path) -> Iterator[Build]:
    """Whose sources play. Earlier ones are a link of the package's name, in a folder that comes first on the path."""
    yield Build("installed", {})
    yield Build("pure", {"TOKENCAKE_PURE": "1"})
    if against is not None:
        sources = folder / "sources"
        sources.mkdir()
        packed = subprocess.run(["git", "-C", ROOT, "archive", against], check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", sources], check=True, input=packed)
        (folder / "path").mkdir()
        (folder / "path" / "tokencake").symlink_to(sources)
        yield Build("against", {"PYTHONPATH": str(folder / "path"), "TOKENCAKE_PURE": "1"})


def _runs(arguments: argparse.Namespace, builds: Sequence[Build]) -> Iterator[dict[str, Any]]:
    """The runs of each shape under each policy by each build, in turn."""
    for name in arguments.shape or SHAPES:
        shape = SHAPES[name]
        folder = arguments.traces / "agentic-coding"
        if name.startswith("coding") and not folder.is_dir():
            print(f"{name}: left out, no conversations at {folder}", file=sys.stderr)
            continue
        for policy in arguments.policy or shape.policies:
            asked = {**shape.asked, "policy": policy, "folder": str(folder)}
            found: dict[str, list[dict[str, Any]]] = {build.name: [] for build in builds}
            for _ in range(1 if shape.once else arguments.times):
                for build in builds:
                    if (less := _asked(shape, asked, build)) is not None:
                        found[build.name].append(play(less, build))
            for build_name, runs in found.items():
                if any("lacks" in one for one in runs):
                    print(f"{name}: {build_name}: left out, its sources lack {runs[0]['lacks']}", file=sys.stderr)
                    continue
                if runs:
                    yield _said({"shape": name, "policy": policy, "build": build_name, **_columns(runs)})


def _asked(shape: Shape, asked: Mapping[str, Any], build: Build) -> Mapping[str, Any] | None:
    """What a build plays of a shape: of a long one others than the installed play a tenth; of memory, nothing."""
    if not shape.once or build.name == "installed":
        return asked
    return None if asked["shape"] == "alive" else {**asked, "calls": asked["calls"] // LONG}


def _columns(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs of the same, as one row: what is measured as lists, each in the order of the runs."""
    first = runs[0]
    lists = {key: [_rounded(run[key]) for run in runs] for key in ("cpu_s", "wall_s", "peak_mb")}
    return {key: first[key] for key in ("calls", "iterations", "compiled")} | lists


def _commands(times: int, builds: Sequence[Build], folder: Path) -> Iterator[dict[str, Any]]:
    """What is not the simulation: reading a trace, the start of a command, and a comparison of many runs."""
    trace, one, example = folder / "400.jsonl", folder / "one.jsonl", ROOT / "examples" / "code-writer.jsonl"
    write_trace(trace, code_writer(400, 0.03))
    write_trace(one, code_writer(1))
    compare = ["compare", str(example), "--repeat", "8", *(f"--policy={policy}" for policy in POLICIES)]
    for build in builds:
        reads = [play({"shape": "read", "trace": str(trace)}, build) for _ in range(times)]
        cpu_s = [_rounded(run["cpu_s"]) for run in reads]
        yield _said({"command": "read", "build": build.name, "calls": reads[0]["calls"], "cpu_s": cpu_s})
        for name, words, often in (("simulate", ["simulate", str(one)], times), ("compare", compare, 1)):
            took = [_command(words, build) for _ in range(often)]
            cpu_s, wall_s = ([_rounded(each) for each in column] for column in zip(*took, strict=True))
            yield _said({"command": name, "build": build.name, "cpu_s": cpu_s, "wall_s": wall_s})


def _command(words: Sequence[str], build: Build) -> tuple[float, float]:
    """Seconds of CPU, of all its processes, and of wall time that a `tokencake` command takes."""
    command = [sys.executable, "-c", "from tokencake.cli import main; main()", *words]
    cpu_before, wall_before = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(build))
    cpu, wall_s = os.times(), time.perf_counter() - wall_before
    return cpu[2] + cpu[3] - cpu_before[2] - cpu_before[3], wall_s


def play(asked: Mapping[str, Any], build: Build) -> dict[str, Any]:
    """One measurement in its own process."""
    command = [sys.executable, str(HERE / "speed_run.py"), json.dumps(asked)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment(build))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _environment(build: Build) -> dict[str, str]:
    return {**os.environ, **build.environment}


def _said(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _is_commit(revision: str) -> bool:
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0


def _cpu() -> str:
    """The name of the processor, where Linux says it."""
    file = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in file.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def default_traces() -> Path:
    """Where recorded traces are looked for."""
    return Path(os.environ.get("TOKENCAKE_TRACES", ROOT.parent / "shared" / "traces"))


if __name__ == "__main__":
    sys.exit(exit_code(main))
