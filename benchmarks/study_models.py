"""What docs/study.md says of other models: do the policies rank alike on a hybrid, and on a mixture of experts?

    python benchmarks/study_models.py --coding coding.jsonl --json models.json   # plays the field on three machines
    python benchmarks/study_models.py --from models.json --write docs/study.md   # puts its table into the document

`coding.jsonl` is that of `study.py`, and so is what is compared; no workload but that one is played. All machines have
as many blocks as the dense one has, on the GPU and on the host, so that a block of full attention is as scarce.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import study
from documents import text_of
from exits import exit_code

from tokencake import __version__
from tokencake.policies.registry import is_bound
from tokencake.sim.experiments.compare import default_policies
from tokencake.sim.experiments.run import Outcome, RunSpec
from tokencake.sim.machine.files import load_machine
from tokencake.traces.console.garbage import collect_seldom
from tokencake.traces.console.supervisor import allow_supervision
from tokencake.traces.files.fields import members
from tokencake.traces.files.json_file import read_json
from tokencake.traces.files.outputs import Output, check_outputs, outputs_of, write_whole
from tokencake.traces.variants.vary import parse_variation

REPEATS = 10
DENSE = "h200-llama-3.1-8b"
MACHINES = {  # preset, and what the table calls it
    DENSE: "dense, one group",
    "h200-gemma-3-27b": "hybrid, seven groups",
    "h200-qwen3-30b-a3b": "mixture of experts, one group",
}
ABOUT = ("command", "date", "version", "packages", "machine", "fields")
CONTEXT = "max_context_tokens=1000000"


def main() -> None:
    """Play, or fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--coding", type=Path, help="the converted trace of coding conversations")
    source.add_argument("--from", dest="figures", type=Path, help="figures of before, instead of playing")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="documents whose table is to be filled in")
    arguments = parser.parse_args()
    texts = {document: text_of(document) for document in arguments.write}
    check_outputs([*outputs_of(json=arguments.json), *(Output("--write", document) for document in texts)])
    if arguments.coding is None:
        figures = read_json(arguments.figures, lambda value, field: members(value, frozenset(ABOUT), ABOUT))
    else:
        figures = {**about(), "fields": dict(played(arguments.coding))}
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(figures) + "\n")
    for document, text in texts.items():
        write_whole(document, filled(text, figures))


def about() -> dict[str, Any]:
    """What played when, and by what."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "packages": {"python": platform.python_version(), "simpy": version("simpy"), "numpy": version("numpy")},
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "processor": platform.machine()},
    }


def played(coding: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The field on each machine: what `study.compared` says, and which settings of the preset were others."""
    variation = parse_variation("arrivals,tools,declared,order")
    for name in MACHINES:
        changed = settings(name)
        spec = RunSpec(coding, load_machine(name, changed), "", variation, rate=1 / 60)
        known: dict[RunSpec, Outcome] = {}
        found = study.compared(study.Workload(name, spec, REPEATS, declares=False), default_policies(), known)
        yield name, study.reduced({**found, "set": changed})


def settings(name: str) -> list[str]:
    """Contexts of any length, and the dense machine's blocks on GPU and host."""
    dense, machine = load_machine(DENSE, []), load_machine(name, [])
    if name == DENSE:
        return [CONTEXT]
    host_gib = dense.host_gib * machine.block_bytes / dense.block_bytes
    return [CONTEXT, f"gpu_blocks={dense.gpu_blocks}", f"host_gib={host_gib:g}"]


def filled(text: str, figures: Mapping[str, Any]) -> str:
    """The document with the tables between `<!-- study-models: NAME -->` and `<!-- end -->` written anew."""

    def written(found: re.Match[str]) -> str:
        return f"<!-- study-models: {found[1]} -->\n\n" + "\n".join(TABLES[found[1]](figures)) + "\n\n<!-- end -->"

    return re.sub(r"<!-- study-models: (.+?) -->\n.*?<!-- end -->", written, text, flags=re.S)


def _field(figures: Mapping[str, Any]) -> list[str]:
    """Mean application latency against vllm under every policy, ordered as on the dense machine."""
    fields = [figures["fields"][name] for name in MACHINES]
    lines = study.head(["policy", *(f"{words}: `{name}`" for name, words in MACHINES.items())], left=1)
    lines += [
        study.row([f"`{policy}`" + " (bound)" * is_bound(policy), *(study.judged(one, policy) for one in fields)])
        for policy in _order(fields[0])
    ]
    return [*lines, study.row(["lower bound", *(study.change(study.floor(one)) for one in fields)])]


def _ranks(figures: Mapping[str, Any]) -> list[str]:
    """Of the pairs of policies, bounds left out, how many stand in the same order as on the dense machine."""
    dense = figures["fields"][DENSE]
    lines = study.head(["machine", "the first three", "pairs in the dense machine's order"], left=2)
    for name, words in MACHINES.items():
        one = figures["fields"][name]
        order = [policy for policy in _order(dense) if not is_bound(policy)]
        pairs = list(combinations(order, 2))
        same = sum(study.ratio(one, first) <= study.ratio(one, second) for first, second in pairs)
        best = ", ".join(f"`{policy}`" for policy in _order(one)[:3])
        lines.append(study.row([words, best, f"{same} of {len(pairs)}"]))
    return lines


TABLES = {"field": _field, "ranks": _ranks}


def _order(one: Mapping[str, Any]) -> list[str]:
    """From the best policy to the worst, and then the bounds."""
    policies = [found["policy"] for found in one["policies"]]
    return sorted(policies, key=lambda policy: (is_bound(policy), study.ratio(one, policy)))


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # beside threads that wait, workers could not be copies
    allow_supervision()
    collect_seldom()
    sys.exit(exit_code(main))
