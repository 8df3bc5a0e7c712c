"""Every reader of the program, with inputs that it takes, and called so that whatever an input causes comes out here.

`READERS` has them by name. `Reader.read` takes the bytes of an input and an empty folder; it goes on with what was
read, as the command does, up to what is printed: what a reader lets through has to mean something to what follows.
Only TokencakeError may come out, with a message of one line.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fuzz_mutations import mutated, parsed
from idle_engine import IdleEngine
from measuring import limits_of
from rich.console import Console

from tokencake import __version__
from tokencake.live.engine.control.metadata import KEY, from_extra_args
from tokencake.policies.registry import load_policy
from tokencake.policies.replay.replay import replay_file
from tokencake.policies.replay.report import words as replay_words
from tokencake.policies.run_settings import RunSettings, from_record, server_settings
from tokencake.sim.calibration.engine_info import limits_of as limits_told
from tokencake.sim.calibration.fit import fit_for
from tokencake.sim.calibration.report import comments, tables
from tokencake.sim.calibration.samples_file import read_samples, samples_text
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.experiments import comparison_tables, comparison_text
from tokencake.sim.experiments.compare import report_live
from tokencake.sim.experiments.comparison_report import Method, csv_text
from tokencake.sim.experiments.run import play
from tokencake.sim.experiments.simulate_policies import Contender, simulate_each
from tokencake.sim.experiments.sweep import report as sweep_report
from tokencake.sim.experiments.sweep import result_log
from tokencake.sim.experiments.sweep.grid import make_grid
from tokencake.sim.experiments.sweep.plan import Sweep
from tokencake.sim.gate.baseline import baseline_file, decisions_file, read_baseline, write_baselines
from tokencake.sim.gate.check import run_suite
from tokencake.sim.gate.decisions import first_difference
from tokencake.sim.gate.judge import Chance, judge
from tokencake.sim.gate.suite.suite import Suite
from tokencake.sim.gate.suite.suite_file import find_suite, load_suite
from tokencake.sim.machine.derivation.command import DeriveOptions, run_derive
from tokencake.sim.machine.files import load_machine, machine_toml
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.models.published import PUBLISHED_MODELS
from tokencake.traces.convert.formats import convert
from tokencake.traces.errors import TokencakeError
from tokencake.traces.events import Stepped
from tokencake.traces.files.fields import WrongField
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.generate.workloads import code_writer
from tokencake.traces.inspect.inspection import inspect_trace
from tokencake.traces.results.metric import check_metric
from tokencake.traces.results.metrics import Metrics
from tokencake.traces.results.reports.report import Run
from tokencake.traces.results.reports.report import build as build_report
from tokencake.traces.variants.vary import parse_variation
from tokencake.traces.variants.workload import Workload

EXAMPLES = Path(__file__).parents[2] / "examples"
METRIC = "app_latency_s.mean"
MACHINE = replace(load_machine("h100-llama-3.1-8b"), gpu_blocks=900)

Read = Callable[[bytes, Path], object]


class Reader(NamedTuple):
    """What reads inputs of one kind."""

    kind: str  # of mutations, see `fuzz_mutations.KINDS`
    good: Callable[[], Sequence[bytes]]
    read: Read


class Outcome(NamedTuple):
    """What became of an input."""

    refused: str | None = None  # the message, if it was
    surprise: Exception | None = None  # what came out that may not come out


def tried(reader: Reader, data: bytes, folder: Path) -> Outcome:
    """Reads an input. `folder` may hold what earlier inputs left."""
    try:
        reader.read(data, folder)
    except TokencakeError as error:
        text = str(error)
        if 0 < len(text) < 10_000 and "\n" not in text:
            return Outcome(text)
        return Outcome(text, AssertionError(f"expected a message of one line, got {text[:500]!r}"))
    except Exception as error:
        return Outcome(None, error)
    return Outcome()


def mutants(name: str, seeds: Sequence[int]) -> list[bytes]:
    """The inputs of a reader for these seeds."""
    reader = READERS[name]
    good = tuple(reader.good())
    return [mutated(reader.kind, seed, good) for seed in seeds]


def _file(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# -- what the good inputs are made of


@cache
def _place() -> Path:
    """A folder with a trace, a machine, a suite with baselines, events, samples."""
    keep = tempfile.TemporaryDirectory(prefix="tokencake-fuzz-")
    _KEPT.append(keep)
    place = Path(keep.name)
    write_trace(place / "t.jsonl", list(code_writer(apps=2, qps=1.0)))
    (place / "m.toml").write_text(machine_toml(MACHINE))
    (place / "tokencake.toml").write_text(SUITE)
    (place / "pyproject.toml").write_text(PYPROJECT)
    write_baselines(_suite(), run_suite(_suite(), 1))
    return place


_KEPT: list[tempfile.TemporaryDirectory[str]] = []

SUITE = """\
baselines = "baselines"
budget_s = 90
confidence = 0.99
[defaults]
trace = "t.jsonl"
machine = "m.toml"
settings = { gpu_blocks = 900, asynchronous = false, beliefs = { copy_s = 0.1 } }
policy = "tokencake"
seed = 3
[metrics]
"makespan_s" = { relative = 0.05 }
app_latency_s.p95 = [{ absolute = 3 }, { not_worse_than = "vllm", relative = 0.01 }]
ttft_s.mean = { direction = "lower", relative = 0.1 }
[cases.one]
policy = "vllm"
[cases.two]
settings = ["gpu_blocks=1000"]
repeats = 3
vary = "arrivals,tools=0.3"
rate = 0.5
arrivals = "poisson"
skip_oversized = true
live = { model = "tiny", gpu_blocks = 200, repeats = 2, host_gib = 1.5 }
[cases.two.metrics]
makespan_s = []
stalled_share = { direction = "higher", absolute = 0.1 }
"""
PYPROJECT = '[project]\nname = "x"\n[tool.other]\na = [1]\n[tool.tokencake]\n' + SUITE.replace(
    "[defaults]", "[tool.tokencake.defaults]"
).replace("[metrics]", "[tool.tokencake.metrics]").replace("[cases.", "[tool.tokencake.cases.")


def _suite() -> Suite:
    return load_suite(Path(_KEPT[0].name) / "tokencake.toml")


def _content(name: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [(_place() / name).read_bytes()]


# -- traces


def _trace(data: bytes, folder: Path) -> None:
    trace = read_trace(_file(data, folder, "t.jsonl"))
    inspect_trace(trace)
    list(trace)


def _header(data: bytes, folder: Path) -> None:
    read_trace(_file(data, folder, "t.jsonl"))


def _conversion(source_format: str, name: str) -> Read:
    return lambda data, folder: list(convert(_file(data, folder, name), source_format))


MOONCAKE = b"".join(
    json.dumps({"timestamp": 1000 * at, "input_length": 700 + at, "output_length": 5, "hash_ids": [1, 2 + at]}).encode()
    + b"\n"
    for at in range(5)
)
AZURE = (
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,480,10\n2023-11-16 18:17:04.0319600,318,8\n"
)


def _conversation() -> Sequence[bytes]:
    def call(at: int, **more: object) -> dict[str, object]:
        hashes = list(range(4 + at))
        said = {"t": float(at), "type": "n", "model": "m", "in": 16 * len(hashes), "out": 5, "hash_ids": hashes}
        return {**said, "input_types": ["text"], "output_types": ["text"], "stop": "", "api_time": 0.5, **more}

    inside = {
        "t": 1.5,
        "type": "subagent",
        "agent_id": "s",
        "subagent_type": "x",
        "requests": [call(2)],
        "duration_ms": 2000,
    }
    record = {
        "id": "c",
        "models": ["m"],
        "block_size": 16,
        "hash_id_scope": "local",
        "tool_tokens": 0,
        "system_tokens": 16,
        "requests": [call(0), inside, call(5, think_time=1.0)],
    }
    return [json.dumps(record).encode() + b"\n"]


# -- machines and suites


def _machine(data: bytes, folder: Path) -> None:
    load_machine(str(_file(data, folder, "m.toml"))).timing()


def _model(data: bytes, folder: Path) -> None:
    output = folder / "mine.toml"
    run_derive(DeriveOptions(_file(data, folder, "config.json"), "h200", output=output))
    load_machine(str(output)).timing()


def _models() -> Sequence[bytes]:
    """Configurations of all kinds of layers."""
    names = ("llama-3.1-8b", "gpt-oss-20b", "qwen3-next-80b", "llama-4-scout", "gemma-3-27b", "deepseek-v3")
    more = {"mamba_ssm_dtype": "float32", "moe_layer_freq": 1, "mlp_layer_types": None, "tie_word_embeddings": False}
    return [json.dumps({**more, **PUBLISHED_MODELS[name].config}).encode() + b"\n" for name in names]


def _suite_file(data: bytes, folder: Path) -> None:
    suite = load_suite(_file(data, folder, "tokencake.toml"))
    for case in suite.cases:
        if case.machine == "m.toml":
            load_machine(str(_place() / "m.toml"), case.settings)


def _pyproject(data: bytes, folder: Path) -> None:
    _file(data, folder, "pyproject.toml")
    load_suite(find_suite(folder))


# -- baselines


def _baseline(data: bytes, folder: Path) -> None:
    _judged(data, (_place() / "baselines" / "two.decisions.gz").read_bytes(), folder)


def _decisions(data: bytes, folder: Path) -> None:
    """As if the baseline had been written with them: else only their digest would be looked at."""
    text = (_place() / "baselines" / "two.json").read_text()
    record = json.loads(text)
    try:
        record["decisions_sha256"] = sha256(data.decode().encode()).hexdigest()
    except UnicodeDecodeError:
        record["decisions_sha256"] = "00" * 32
    _judged(json.dumps(record).encode() + b"\n", data, folder)


def _judged(baseline: bytes, decisions: bytes, folder: Path) -> None:
    suite = replace(_suite_of_place(), baselines=str(folder))
    case = next(case for case in suite.cases if case.name == "two")
    baseline_file(suite, case).write_bytes(baseline)
    decisions_file(suite, case).write_bytes(decisions)
    found = read_baseline(suite, case)
    for gate in case.gates:
        if gate.than is None:
            judge(gate, [1.5, 2.5, 2.0], found.metrics[gate.metric], Chance(0.9))
    if found.decisions is not None:
        first_difference(found.decisions, ())
        first_difference(found.decisions, found.decisions.decisions[1:])


def _suite_of_place() -> Suite:
    _place()
    return _suite()


def _decisions_text() -> Sequence[bytes]:
    import gzip

    return [gzip.decompress((_place() / "baselines" / "two.decisions.gz").read_bytes())]


# -- what is kept of a sweep


@cache
def _sweep() -> Sweep:
    grid = make_grid("0.5,1", ["gpu_blocks=900"], "h100-llama-3.1-8b")
    return Sweep(_place() / "t.jsonl", grid, ("vllm", "tokencake"), 1)


@cache
def _cells() -> Sequence[bytes]:
    path = _place() / "cells.jsonl"
    with closing(result_log.ResultLog(path, _sweep().identity(), fresh=True)) as file:
        for point in _sweep().grid.points:
            for cell in _sweep().cells_at(point):
                file.add(_sweep().key(cell), play(cell))
    return [path.read_bytes()]


def _side_file(data: bytes, folder: Path) -> None:
    sweep = _sweep()
    with closing(result_log.ResultLog(_file(data, folder, "k"), sweep.identity())) as file:
        report = sweep_report.build(sweep, file.results, METRIC)
        sweep_report.csv_text(report)
        sweep_report.problems(report)
        for point in sweep.grid.points:
            sweep_report.point_line(sweep, file.results, point, METRIC)


def _resealed(data: bytes, folder: Path) -> None:
    """As `_side_file`, with right checksums: by somebody who wants figures to be taken."""
    lines, last = list[bytes](), ""
    for line in data.splitlines():
        content, mark, _ = line.rpartition(b', "sha256": "')
        content = content + b"}" if mark else line
        last = sha256(last.encode() + content).hexdigest()[:16]
        lines.append(content[:-1] + f', "sha256": "{last}"}}\n'.encode())
    _side_file(b"".join(lines), folder)


# -- live runs


@cache
def _live_reports() -> Sequence[bytes]:
    trace, runs = _sweep().trace, list[Run]()
    for repeat in range(2):
        for policy in ("vllm", "tokencake"):
            metrics = Metrics()
            simulate(iter(read_trace(trace)), load_policy(policy), MACHINE, [metrics.add])
            more = {"repeat": repeat + 1, "errors": [], "disagreements": [], "counters": {"vllm": {"preemptions": 0}}}
            runs.append(Run(policy, {}, 0, 1.5, 0.5, metrics.result(), more))
    counts = {name: runs[0].metrics[name] for name in ("applications", "calls")}
    about = {"path": "t.jsonl", "sha256": "00" * 32, **counts, "oversized": 0, "rate": None, "arrivals": None}
    engine = {"name": "vllm", "version": "0.32"}
    return [json.dumps(build_report(__version__, about, MACHINE.settings(), runs, engine)).encode() + b"\n"]


def _live_report(data: bytes, folder: Path) -> None:
    report = report_live([_file(data, folder, "r.json")], (), METRIC, Method(paired=False))
    console = Console(file=io.StringIO(), width=100)
    console.print(comparison_tables.tables(report, 100), *comparison_text.words(report))
    csv_text(report)
    json.dumps(report, allow_nan=False)


@cache
def _samples() -> Sequence[bytes]:
    machine = replace(MACHINE, asynchronous=False)
    facts: list[object] = []
    simulate(iter(read_trace(_sweep().trace)), load_policy("tokencake"), machine, [facts.append])
    told = {**_engine(machine), "model": "tiny", "vllm": "0.32", "tokencake": __version__}
    kinds = ((100, 5050, 0, 0), (0, 0, 4, 900), (100, 9000, 4, 900), (900, 99_000, 0, 0))
    steps = [Stepped(at / 10 + 0.05 + at % 7 * 1e-4, at / 10, *kinds[at // 5 % 4]) for at in range(60)]
    return [samples_text(told, [*facts[:200], *steps]).encode()]  # type: ignore[list-item]


def _engine(machine: Machine) -> dict[str, object]:
    limits = limits_of(machine)
    return {name: getattr(limits, name) for name in limits.__slots__}


def _calibration(data: bytes, folder: Path) -> None:
    told, facts = read_samples(_file(data, folder, "s.jsonl"))
    fitted = fit_for(facts, limits_told(told))
    machine = fitted.machine(Path(str(told.get("model"))).name)
    Console(file=io.StringIO(), width=100).print(tables(fitted))
    path = folder / "m.toml"
    path.write_text(machine_toml(machine, comments(told, fitted, "2026-01-01")))
    load_machine(str(path))


@cache
def _events() -> Sequence[bytes]:
    workload = Workload(read_trace(_sweep().trace))
    list(simulate_each(workload, Contender.all_of(["tokencake"], 0), MACHINE, _place()))
    (path,) = _place().glob("*tokencake*.jsonl")
    return [b"".join(path.read_bytes().splitlines(keepends=True)[:150])]


def _replay(data: bytes, folder: Path) -> None:
    replay_words(*replay_file(_file(data, folder, "e.jsonl")))


def _settings(data: bytes, folder: Path) -> None:
    record = parsed(data)
    from_record(record if isinstance(record, dict) else {})


SERVER = {"tokencake": {"policy": "tokencake", "seed": 3, "app_timeout_s": 9.5, "session_timeout_s": None,
                        "client_timeout_s": 60, "control_token_env": "TOKEN",
                        "costs": RunSettings().as_record()["costs"]}}  # fmt: skip


def _server_settings(data: bytes, folder: Path) -> None:
    record = parsed(data)
    server_settings(record if isinstance(record, dict) else {})


CONTROL_CALLS = [
    ["begin", {"run": "r" * 32, "settings": {"policy": "tokencake", "seed": 1, "keep_facts": True}}],
    ["tell", {"events": [{"event": "app_started", "app": "a", "at_s": 0.5}, {"event": "app_finished", "app": "a"}]}],
    ["tell", {"events": [{"event": "tool_returned", "app": "a", "agent": "g", "call": "c"}]}],
    ["facts", {"run": "r" * 32, "from": 0, "limit": 10}],
    ["info", {}],
    ["end", {"run": "r" * 32}],
]


def _control_calls(data: bytes, folder: Path) -> None:
    """A server has a run after each of them, and answers in plain data of one line if it refuses."""
    calls = parsed(data)
    engine = IdleEngine()
    refused = None
    for call in calls if isinstance(calls, list) else []:
        if isinstance(call, list) and len(call) == 2 and isinstance(call[0], str) and isinstance(call[1], dict):
            said = engine.control.handle(*call)
            json.dumps(said)
            assert said.get("status") != 500, said
            refused = said.get("error", refused)
            engine.check()
    if refused is not None:
        raise TokencakeError(refused)


def _metadata(data: bytes, folder: Path) -> None:
    try:
        from_extra_args({KEY: data.decode("utf-8", "replace")}, "r", 10, 5)
        from_extra_args({KEY: parsed(data)}, "r", 10, 5)
    except WrongField as wrong:
        raise TokencakeError(str(wrong)) from None


METADATA = {
    "app": "fix-42",
    "agent": "main",
    "type": "coder",
    "call": "edit",
    "max_output": 512,
    "last": False,
    "tools": [{"kind": "test", "declared_s": 12.5}],
    "hints": {"critical_path": True, "importance": 2},
}

# -- arguments


def _argument(read: Callable[[str], object]) -> Read:
    return lambda data, folder: read(data.decode("utf-8", "surrogateescape"))


def _grid(text: str) -> None:
    """A line each: the loads, then settings."""
    qps, *settings = text.split("\n")
    make_grid(qps or None, settings)


def _texts(*texts: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [text.encode() for text in texts]


READERS: Mapping[str, Reader] = {
    "trace": Reader("json", _content("t.jsonl"), _trace),
    "header": Reader(
        "json", lambda: [b'{"format": "tokencake.trace", "version": 1, "name": "x", "about": {"a": 1}}\n'], _header
    ),
    "converter agentic-coding": Reader("json", _conversation, _conversion("agentic-coding", "c.json")),
    "converter mooncake": Reader("json", lambda: [MOONCAKE], _conversion("mooncake", "m.jsonl")),
    "converter azure": Reader("table", lambda: [AZURE], _conversion("azure", "a.csv")),
    "machine": Reader("toml", _content("m.toml"), _machine),
    "model": Reader("json", _models, _model),
    "suite": Reader("toml", _content("tokencake.toml"), _suite_file),
    "pyproject": Reader("toml", _content("pyproject.toml"), _pyproject),
    "baseline": Reader("json", _content("baselines/two.json"), _baseline),
    "decisions": Reader("json", _decisions_text, _decisions),
    "side file": Reader("json", _cells, _side_file),
    "side file, resealed": Reader("json", _cells, _resealed),
    "live report": Reader("json", _live_reports, _live_report),
    "samples": Reader("json", _samples, _calibration),
    "events": Reader("json", _events, _replay),
    "run settings": Reader("json", lambda: [json.dumps(RunSettings().as_record()).encode()], _settings),
    "server settings": Reader("json", lambda: [json.dumps(SERVER).encode()], _server_settings),
    "control calls": Reader("json", lambda: [json.dumps(CONTROL_CALLS).encode()], _control_calls),
    "metadata": Reader("json", lambda: [json.dumps(METADATA).encode()], _metadata),
    "--set": Reader(
        "text",
        _texts("gpu_blocks=900", "link_gbps=12.5", "beliefs.copy_s=0.5", "asynchronous=false", "name=x"),
        _argument(lambda text: load_machine(settings=[text])),
    ),
    "policy": Reader(
        "text",
        _texts("vllm", "tokencake:rules=published,upload=demand", "continuum", "saga", "infercept", "mori"),
        _argument(lambda text: load_policy(text, seed=1, applications=())),
    ),
    "--vary": Reader("text", _texts("arrivals,tools=0.3,declared=0.1,order", "none"), _argument(parse_variation)),
    "grid": Reader(
        "text",
        _texts("0.1:1.0:0.1\ngpu_blocks=900,1000", "1,2\nlink_gbps=1:9:0.5\nasynchronous=true,false", "\nhost_gib=1"),
        _argument(_grid),
    ),
    "--metric": Reader("text", _texts("app_latency_s.mean", "makespan_s"), _argument(check_metric)),
}


def main() -> None:
    """`python tests/helpers/fuzz_readers.py READER FIRST_SEED COUNT`: prints what surprises."""
    import sys
    import traceback

    name, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in range(first, first + count):
            (data,) = mutants(name, [seed])
            found = tried(READERS[name], data, Path(folder))
            if found.surprise is not None:
                print(name, seed, repr(data[:200]))
                traceback.print_exception(found.surprise, limit=-4)


if __name__ == "__main__":
    main()
