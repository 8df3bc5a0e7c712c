"""What every policy does on three machines, as digests: equal before and after a change of form, or it is none.

    python benchmarks/digests.py > before
    python benchmarks/digests.py --against before

A line a run: the policy, the machine, the trace, and the digests of its events, their order and its decisions (see
`tokencake check`). With --against, every line that differs is printed, and the exit code is 1 if there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import click

from tokencake.policies.registry import ROWS
from tokencake.sim.experiments.run import RunSpec
from tokencake.sim.gate.case_run import run_case
from tokencake.sim.machine.files import load_machine

ROOT = Path(__file__).parents[1]

# Options that the default of no policy has.
OPTIONS = (
    "tokencake:rules=published",
    "tokencake:rules=published,upload=pause",
    "tokencake:upload=predictive",
    "tokencake:upload=pause",
    "tokencake:keep_weight=0",
    "tokencake:save=stalls",
    "tokencake:save=stalls,gate=off",
    "tokencake:skip=on",
    "tokencake:commit=on",
    "tokencake-space:rules=published",
    "tokencake-time:rules=published",
    "native-offload:save=prompts",
    "native-offload:evict=arc",
    "infercept:gap=declared",
    "infercept:rule=heuristic",
    "infercept:token_ms=0,step_ms=0",
    "continuum:rule=released",
    "autellix:rule=atlas",
    "kvflow:prefetch_steps=3",
    "thunderagent:acting_weight=0",
    "oracle:space=off",
    "oracle:upload=pause",
    "oracle:upload=demand",
)
SPECS = (*ROWS, *OPTIONS)

MACHINES = (  # what each is given beside its preset; the traces crowd all three
    ("a800-qwen2.5-14b", ()),
    ("h100-llama-3.1-8b", ("gpu_blocks=4000", "asynchronous=true")),
    ("h200-llama-3.1-8b", ("gpu_blocks=2500", "host_gib=3", "block_tokens=32", "link_gbps=4")),
)
TRACES = ("code-writer", "deep-research")


def runs() -> list[tuple[str, RunSpec]]:
    """What is played, each with the name of its line."""
    return [
        (
            f"{spec} {' '.join((name, *settings))} {trace}",
            RunSpec(ROOT / "examples" / f"{trace}.jsonl", load_machine(name, settings), spec),
        )
        for name, settings in MACHINES
        for trace in TRACES
        for spec in SPECS
    ]


def line(named: tuple[str, RunSpec]) -> str:
    """The digests of one run, or its error."""
    name, spec = named
    found = run_case(spec)
    return f"{name}: {' '.join(found.digests) if found.digests else found.error}"


def lines(processes: int) -> Iterator[str]:
    with Pool(processes) as pool:
        yield from pool.imap(line, runs())


@click.command()
@click.option("--against", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Lines of before.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
def main(against: Path | None, processes: int) -> None:
    if against is None:
        for found in lines(processes):
            click.echo(found)
        return
    before = against.read_text(encoding="utf-8").splitlines()
    now = list(lines(processes))
    gone, come = [one for one in before if one not in now], [one for one in now if one not in before]
    for one in gone:
        click.echo(f"- {one}")
    for one in come:
        click.echo(f"+ {one}")
    click.echo(f"{len(now)} runs, {len(come)} differ", err=True)
    sys.exit(1 if gone or come else 0)


if __name__ == "__main__":
    main()
