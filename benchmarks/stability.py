"""Do verdicts hold under another seed? Studies that have no draw in common, and how often one says what another says.

    python benchmarks/stability.py [--studies 11] [--repeats 20] [--json FILE] [TRACE...]

Every study is a `tokencake compare` of all contenders with draws of its own. Each pair of policies is judged in each
study, as `compare` judges (95 % confidence for all pairs of a metric together, a margin of 2 %). For every two studies,
and every pair that the first calls different: does the second say the same, is it undecided, or does it contradict?
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from exits import exit_code

from tokencake import __version__
from tokencake.policies.registry import is_bound
from tokencake.sim.experiments.compare import default_policies
from tokencake.sim.experiments.executors import run_on_workers
from tokencake.sim.experiments.processes.workers import cores
from tokencake.sim.experiments.run import RunSpec, run_specs
from tokencake.sim.machine.files import load_machine
from tokencake.traces.files.outputs import check_outputs, outputs_of, write_whole
from tokencake.traces.results.metric import metric_value
from tokencake.traces.results.verdict import judge_paired
from tokencake.traces.variants.vary import parse_variation

EXAMPLES = Path(__file__).parents[1] / "examples"
METRICS = ("app_latency_s.mean", "app_latency_s.p95", "app_latency_s.p99", "makespan_s", "ttft_s.mean", "ttft_s.p99")
Verdicts = Mapping[tuple[str, str], str]


def main() -> None:
    """Play, judge, and print how often studies agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path, help="[default: both of examples/]", metavar="TRACE")
    parser.add_argument("--studies", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    traces = arguments.traces or [EXAMPLES / "code-writer.jsonl", EXAMPLES / "deep-research.jsonl"]
    check_outputs(outputs_of(json=arguments.json), traces)
    found = {trace.stem: stability(trace, arguments.studies, arguments.repeats) for trace in traces}
    if arguments.json is not None:
        about = {"version": __version__, "date": time.strftime("%Y-%m-%d"), "command": " ".join(["python", *sys.argv])}
        said = {**about, "studies": arguments.studies, "repeats": arguments.repeats, "found": found}
        write_whole(arguments.json, json.dumps(said, indent=1) + "\n")


def stability(trace: Path, studies: int, repeats: int) -> dict[str, Any]:
    """By metric: pairs called different in one study, and what other studies say of them."""
    policies = tuple(policy for policy in default_policies() if not is_bound(policy))
    varied = parse_variation("arrivals,tools,declared,order")
    spec = RunSpec(trace, load_machine("a800-qwen2.5-14b", []), "", varied)
    runs: dict[tuple[str, int], Mapping[str, Any]] = {}
    for outcome in run_on_workers(run_specs(spec, policies, studies * repeats), cores()):
        assert outcome.metrics is not None, outcome.error
        runs[outcome.spec.policy, outcome.spec.repeat] = outcome.metrics
    found = {}
    for metric in METRICS:
        values = {
            policy: [metric_value(runs[policy, repeat], metric) or 0.0 for repeat in range(studies * repeats)]
            for policy in policies
        }
        verdicts = [
            _judged({policy: each[study * repeats : (study + 1) * repeats] for policy, each in values.items()}, study)
            for study in range(studies)
        ]
        found[metric] = _agreement(verdicts)
        print(f"{trace.stem:14s} {metric:20s} {_said(found[metric])}", flush=True)
    return found


def _judged(values: Mapping[str, Sequence[float]], seed: int) -> Verdicts:
    pairs = list(combinations(values, 2))
    return {
        (one, other): judge_paired(
            values[one], values[other], confidence=0.95, margin=0.02, comparisons=len(pairs), seed=seed
        ).verdict
        for one, other in pairs
    }


def _agreement(studies: Sequence[Verdicts]) -> dict[str, int]:
    words: Counter[str] = Counter()
    for first, second in permutations(studies, 2):
        for pair, verdict in first.items():
            if verdict != "undecided":
                other = second[pair]
                words["same" if other == verdict else "undecided" if other == "undecided" else "contrary"] += 1
    return {word: words[word] for word in ("same", "undecided", "contrary")}


def _said(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{word} {count:,} ({count / max(1, total):.1%})" for word, count in counts.items())


if __name__ == "__main__":
    sys.exit(exit_code(main))
