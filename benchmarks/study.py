"""The study of docs/study.md: which policy is best on three workloads, and what each part of Tokencake is worth there.

    python benchmarks/study.py --coding coding.jsonl --json study.json           # plays everything: about half an hour
    python benchmarks/study.py --coding coding.jsonl --json study.json --resume  # only what the file does not have yet
    python benchmarks/study.py --from study.json --write docs/study.md           # puts its tables into the document

`coding.jsonl` is made of recorded conversations of coding agents (callanjfox/kv-cache-tester, Apache-2.0) by `tokencake
trace convert FOLDER coding.jsonl --from agentic-coding`; without it the study has two workloads. Every table stands
between two marks in a document and is written by this script, so no figure is copied by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from documents import text_of
from exits import exit_code

from tokencake import __version__
from tokencake.policies.registry import is_bound
from tokencake.sim.experiments.compare import ComparisonRequest, default_policies, report, run
from tokencake.sim.experiments.comparison_report import ComparisonRuns, Method
from tokencake.sim.experiments.run import Outcome, RunSpec, run_specs
from tokencake.sim.machine.files import inputs_of, load_machine
from tokencake.traces.apps import Application
from tokencake.traces.console.garbage import collect_seldom
from tokencake.traces.console.supervisor import allow_supervision
from tokencake.traces.errors import TokencakeError, TraceError
from tokencake.traces.files.fields import WrongField, members
from tokencake.traces.files.json_file import read_json
from tokencake.traces.files.outputs import Output, check_outputs, outputs_of, write_whole
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.variants.vary import parse_variation

ROOT = Path(__file__).parents[1]
METRIC = "app_latency_s.mean"
PUBLISHED = "tokencake:rules=published"
UPLOADS = ("demand", "pause", "predictive")
LEARNED = "learned alone"
PREDICTIONS = {"exact": "declared=0", "30 % off": "declared=0.3", LEARNED: "nothing declared"}
SPATIAL = (
    "vllm",
    "tokencake",
    "tokencake-time",
    "tokencake-space",
    "tokencake:skip=on",
    "tokencake:commit=on",
    "tokencake:prefix_affinity=off",
    "tokencake:keep_weight=0",
    "tokencake:save=stalls,gate=off",
    f"{PUBLISHED},upload=demand",
    "tokencake-time:rules=published,upload=demand",
    "tokencake-space:rules=published",
    f"{PUBLISHED},upload=demand,order=off",
    f"{PUBLISHED},upload=demand,reserve=off",
    f"{PUBLISHED},upload=demand,skip=off",
    f"{PUBLISHED},upload=demand,commit=off",
    f"{PUBLISHED},upload=demand,prefix_affinity=off",
    f"{PUBLISHED},upload=demand,gate=off",
)
CONSTANTS = (
    "vllm",
    f"{PUBLISHED},upload=demand",
    f"{PUBLISHED},upload=demand,offload_score=0",
    f"{PUBLISHED},upload=demand,offload_score=3",
    f"{PUBLISHED},upload=demand,offload_usage_share=0",
    f"{PUBLISHED},upload=demand,offload_importance=20",
    f"{PUBLISHED},upload=demand,margin_copies=0.5",
    f"{PUBLISHED},upload=demand,offload_retry_steps=1",
    f"{PUBLISHED},upload=demand,reserve_max_share=0.1",
    f"{PUBLISHED},upload=demand,borrow_points=0",
    f"{PUBLISHED},upload=demand,affinity_free_share=1",
    f"{PUBLISHED},upload=demand,gate=off,reserve=off",
    f"{PUBLISHED},upload=demand,gate=off,save=all",
    f"{PUBLISHED},upload=predictive,gather_s=0,lead_s=0",
    f"{PUBLISHED},upload=predictive,lead_s=1",
)
AGES = ("vllm", *(f"tokencake:age_power={power}" for power in ("0", "0.5", "1", "1.5", "2", "3")))
LOADS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
ABOUT = ("command", "version", "date")
GROUP = ("trace", "machine", "repeats", "variation", "policies", "also", "lower_bound", "failed")
LOADED = ("vllm", "tokencake", "tokencake-time", "tokencake-space", f"{PUBLISHED},upload=demand")


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace on a machine."""

    name: str
    spec: RunSpec
    repeats: int
    declares: bool = True  # whether any tool declares how long it takes


def main() -> None:
    """Play, or fill in tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coding", type=Path, help="the converted trace of coding conversations")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--resume", action="store_true", help="keep what the file of --json has, and play the rest")
    parser.add_argument("--from", dest="figures", type=Path, help="figures of before, instead of playing")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="documents whose tables are to be filled in")
    arguments = parser.parse_args()
    texts = {document: text_of(document) for document in arguments.write}
    check_outputs([Output("--write", document) for document in texts])
    if arguments.figures is None:
        figures = arguments.json or Path("study.json")
        check_outputs(outputs_of(json=figures), inputs_of(arguments.coding))
        if arguments.coding is not None:
            read_trace(arguments.coding)  # raises for a file that is no trace, before the others are played
        about = {"command": " ".join(["python", *sys.argv]), "version": __version__, "date": time.strftime("%Y-%m-%d")}
        study = resumed(figures) if arguments.resume and figures.exists() else Figures(about)
        for name, group in played(arguments.coding, study):
            study[name] = reduced(group)
            write_whole(figures, json.dumps(study) + "\n")
    else:
        study = read_json(arguments.figures, _figures)
    written = {document: filled(text, study) for document, text in texts.items()}
    for document, text in written.items():
        write_whole(document, text)


class Figures(dict[str, Any]):
    """What was played, by the name of the group, beside what is said of all of it."""

    def __missing__(self, group: str) -> Any:
        raise TokencakeError(f"the study has no figures of {group!r}: --resume plays what is missing")


def _figures(value: object, field: str) -> Figures:
    found = members(value, frozenset(value) if isinstance(value, dict) else frozenset(), ABOUT)
    for name, group in found.items():
        if name not in ABOUT:
            try:
                members(group, frozenset(GROUP), GROUP)
            except WrongField as wrong:
                raise wrong.inside(name) from None
    return Figures(found)


def resumed(path: Path) -> Figures:
    """The figures of a study that was broken off. Raises `TraceError` if they are none, or of another version."""
    study = read_json(path, _figures)
    if study["version"] != __version__:
        raise TraceError(f"{path}: version: expected {__version__!r}, which plays the rest, got {study['version']!r}")
    return study


def played(coding: Path | None, known: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of each group that is not known yet, when they are there, with the group's name."""
    outcomes: dict[RunSpec, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, workload, policies in _groups(list(_workloads(coding)), Path(folder)):
            if name not in known:
                yield name, compared(workload, policies, outcomes)


def _groups(workloads: Sequence[Workload], folder: Path) -> Iterator[tuple[str, Workload, Sequence[str]]]:
    """What is compared, named by question, workload and, where there are several, case."""
    for workload in workloads:
        yield f"field {workload.name}", workload, default_policies()
        yield f"parts {workload.name}", workload, SPATIAL
        yield f"constants {workload.name}", workload, CONSTANTS
        yield f"age {workload.name}", workload, AGES
        for label, variation in PREDICTIONS.items():
            if label != LEARNED and not workload.declares:
                continue
            for rules in ("default", "published"):
                policies = ("vllm", "oracle", *(f"tokencake:rules={rules},upload={way}" for way in UPLOADS))
                predicted = _predicted(workload, label, variation, folder)
                yield f"uploads {rules} {label} {workload.name}", predicted, policies
    for rate in LOADS:
        for workload in workloads[:1]:
            loaded = replace(workload, spec=replace(workload.spec, rate=rate))
            yield f"load {rate:g} {workload.name}", loaded, LOADED


def _workloads(coding: Path | None) -> Iterator[Workload]:
    everything = parse_variation("arrivals,tools,declared,order")
    a800 = load_machine("a800-qwen2.5-14b", [])
    for name in ("code-writer", "deep-research"):
        yield Workload(name, RunSpec(ROOT / "examples" / f"{name}.jsonl", a800, "", everything), 20)
    if coding is not None:
        h200 = load_machine("h200-llama-3.1-8b", ["max_context_tokens=1000000"])
        yield Workload("coding", RunSpec(coding, h200, "", everything, rate=1 / 60), 10, declares=False)


def _predicted(workload: Workload, label: str, variation: str, folder: Path) -> Workload:
    """The workload with declared durations of another quality."""
    spec = workload.spec
    if label == LEARNED and workload.declares:
        file = folder / f"{workload.name}-undeclared.jsonl"
        if not file.exists():
            write_trace(file, map(_undeclared, read_trace(spec.trace)))
        return replace(workload, spec=replace(spec, trace=file))
    if label == LEARNED:
        return workload
    return replace(workload, spec=replace(spec, variation=parse_variation(f"arrivals,tools,{variation},order")))


def _undeclared(application: Application) -> Application:
    calls = tuple(
        call._replace(tools=tuple(tool._replace(declared_s=None) for tool in call.tools)) for call in application.calls
    )
    return application._replace(calls=calls)


def compared(workload: Workload, policies: Sequence[str], known: dict[RunSpec, Outcome]) -> dict[str, Any]:
    """`tokencake compare` of these policies, without what is the same everywhere. What is `known` is not played."""
    began = time.perf_counter()
    request = ComparisonRequest(workload.spec, tuple(policies), workload.repeats, METRIC, Method())
    runs = ComparisonRuns(request.policies)
    specs = list(run_specs(request.spec, request.policies, request.repeats))
    for spec in specs:
        if spec in known:
            runs.add(known[spec])
    run(request, runs, lambda policy, done, total: None)
    made = report(request, runs, __version__)
    for spec in specs:
        if (metrics := runs.runs.get((spec.policy, spec.repeat))) is not None:
            known[spec] = Outcome(spec, metrics, None, 0.0, lower=runs.lower.get(spec.repeat))
    print(
        f"{workload.name}: {len(policies)} policies x {workload.repeats}: {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    trace = {**made["trace"], "path": Path(made["trace"]["path"]).name}
    kept = ("repeats", "variation", "policies", "also", "lower_bound", "failed")
    return {"trace": trace, "machine": made["machine"]["name"], **{key: made[key] for key in kept if key in made}}


def reduced(figures: Any) -> Any:
    """Figures to six digits, without what no table shows, to be kept in the repository."""
    if isinstance(figures, dict):
        return {key: reduced(value) for key, value in figures.items() if key not in ("against_best", "command")}
    if isinstance(figures, list):
        return [reduced(value) for value in figures]
    return float(f"{figures:.6g}") if isinstance(figures, float) else figures


# -- tables


def filled(text: str, study: Mapping[str, Any]) -> str:
    """The document with each table between `<!-- study: NAME -->` and `<!-- end -->` written anew."""

    def table(found: re.Match[str]) -> str:
        return f"<!-- study: {found[1]} -->\n\n" + "\n".join(TABLES[found[1]](study)) + "\n\n<!-- end -->"

    return re.sub(r"<!-- study: (.+?) -->\n.*?<!-- end -->", table, text, flags=re.S)


def _field(study: Mapping[str, Any]) -> list[str]:
    """All policies on all workloads: mean application latency against vllm, and who wins."""
    found = {name: study[f"field {name}"] for name in _names(study)}
    first = study["field code-writer"]
    policies = sorted(
        (row["policy"] for row in first["policies"]), key=lambda policy: (is_bound(policy), ratio(first, policy))
    )
    lines = head(["policy", *found], left=1)
    for policy in policies:
        name = f"`{policy}`" + (" (bound)" if is_bound(policy) else "")
        lines.append(row([name, *(judged(one, policy) for one in found.values())]))
    lines.append(row(["lower bound", *(f"{change(floor(one))}" for one in found.values())]))
    return lines


def _tails(study: Mapping[str, Any]) -> list[str]:
    """What helps the mean and what it does to the tails: p95 and p99 of latency, makespan, TTFT."""
    metrics = ("app_latency_s.p95", "app_latency_s.p99", "makespan_s", "ttft_s.mean", "ttft_s.p99")
    lines = head(["workload", "policy", *metrics], left=2)
    for name in _names(study):
        one = study[f"field {name}"]
        for policy in ("tokencake", "infercept", "continuum", "native-offload"):
            rows = {also["metric"]: also for also in one["also"]}
            cells = [_short(find(rows[metric]["policies"], policy)) for metric in metrics]
            lines.append(row([name, f"`{policy}`", *cells]))
    return lines


def _uploads(study: Mapping[str, Any]) -> list[str]:
    """Share of the oracle's gain that each way of uploading keeps, by how good predictions are."""
    lines = head(["workload", "rules", "upload", *PREDICTIONS], left=3)
    for name in _names(study):
        for rules in ("default", "published"):
            for way in UPLOADS:
                cells = []
                for label in PREDICTIONS:
                    if f"uploads {rules} {label} {name}" not in study:
                        cells.append("")
                        continue
                    found = find(
                        study[f"uploads {rules} {label} {name}"]["policies"], f"tokencake:rules={rules},upload={way}"
                    )
                    gain = found["oracle_gain"]
                    share = "-" if gain is None else _percent(gain["share"], gain["interval"])
                    cells.append(share)
                lines.append(row([name, rules, f"`{way}`", *cells]))
    return lines


def _parts(study: Mapping[str, Any]) -> list[str]:
    return _against(study, "parts", SPATIAL[1:])


def _constants(study: Mapping[str, Any]) -> list[str]:
    return _against(study, "constants", CONSTANTS[1:])


def _age(study: Mapping[str, Any]) -> list[str]:
    return _against(study, "age", AGES[1:])


def _against(study: Mapping[str, Any], group: str, policies: Sequence[str]) -> list[str]:
    """Mean application latency and makespan against vllm."""
    names = _names(study)
    heads = [f"{name}, {what}" for name in names for what in ("latency", "makespan")]
    lines = head(["policy", *heads], left=1)
    for policy in policies:
        cells = []
        for name in names:
            one = study[f"{group} {name}"]
            makespan = next(also for also in one["also"] if also["metric"] == "makespan_s")
            cells += [_short(find(one["policies"], policy)), _short(find(makespan["policies"], policy))]
        lines.append(row([f"`{policy}`", *cells]))
    return lines


def _load(study: Mapping[str, Any]) -> list[str]:
    """Mean application latency against vllm, by the rate of arrivals."""
    lines = head(["applications a second", "`vllm`", *(f"`{policy}`" for policy in LOADED[1:])], left=1)
    for rate in LOADS:
        one = study[f"load {rate:g} code-writer"]
        mean = find(one["policies"], "vllm")["mean"]
        lines.append(row([f"{rate:g}", f"{mean:.0f} s", *(judged(one, policy) for policy in LOADED[1:])]))
    return lines


TABLES = {
    "field": _field,
    "tails": _tails,
    "uploads": _uploads,
    "parts": _parts,
    "constants": _constants,
    "age": _age,
    "load": _load,
}


def _names(study: Mapping[str, Any]) -> list[str]:
    return [key.removeprefix("field ") for key in study if key.startswith("field ")]


def find(rows: Sequence[Mapping[str, Any]], policy: str) -> Mapping[str, Any]:
    return next(row for row in rows if row["policy"] == policy)


def ratio(one: Mapping[str, Any], policy: str) -> float:
    against = find(one["policies"], policy)["against_first"]
    return 1.0 if against is None else float(against["ratio"])


def floor(one: Mapping[str, Any]) -> float:
    return float(one["lower_bound"]["mean"] / find(one["policies"], "vllm")["mean"])


def judged(one: Mapping[str, Any], policy: str) -> str:
    """A change with its interval and verdict; of the reference its mean."""
    found = find(one["policies"], policy)
    against = found["against_first"]
    if policy == "vllm" or against is None:
        return f"{found['mean']:,.0f} s"
    said = _percent(against["ratio"] - 1, [end - 1 for end in against["interval"]], signed=True)
    return said if found["bound"] else f"{said} {against['verdict']}"


def _short(found: Mapping[str, Any]) -> str:
    against = found["against_first"]
    return change(against["ratio"]) + {"wins": "", "loses": "", "undecided": " ?"}.get(against["verdict"], "")


def change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def _percent(value: float, interval: Sequence[float], signed: bool = False) -> str:
    low, high = (100 * end for end in interval)
    form = "+.1f" if signed else ".0f"
    return f"{100 * value:{form}} % [{low:{form}}, {high:{form}}]".replace("-", "−")


def head(cells: Sequence[str], left: int) -> list[str]:
    return [row(cells), "|" + "|".join("---" if at < left else "--:" for at in range(len(cells))) + "|"]


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # beside threads that wait, workers could not be copies
    allow_supervision()
    collect_seldom()
    sys.exit(exit_code(main))
