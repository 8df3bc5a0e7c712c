"""Golden files: what vLLM's own scheduler did on some workloads, to hold other engines to it where there is no vLLM.

One JSON line a workload. Small workloads are kept whole; of the published one the steps in which calls came or went,
and a digest of all. A workload is made again when it is read, and its own digest says whether it is still the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oracle.play import Step

from tokencake.traces.apps import Call

from .workloads import Workload, capped, hybrid, published, workload

FOLDER = Path(__file__).parents[2] / "golden"
SMALL_SEEDS = range(40)
CAPPED_SEEDS = range(12)
HYBRID_SEEDS = range(24)


@dataclass(frozen=True, slots=True)
class Golden:
    """A workload and vLLM's steps on it."""

    name: str
    workload: Workload
    steps: int
    digest: str  # of all steps
    kept: tuple[Step, ...]  # all, or only those with news


def workloads() -> Iterator[tuple[str, Workload]]:
    """What golden files are made of."""
    for seed in SMALL_SEEDS:
        yield f"small-{seed}", workload(seed)
    for seed in CAPPED_SEEDS:
        yield f"small-capped-{seed}", capped(seed)
    for seed in HYBRID_SEEDS:
        yield f"small-hybrid-{seed}", hybrid(seed)
    for asynchronous in (False, True):
        yield f"published-{'asynchronous' if asynchronous else 'synchronous'}", published(asynchronous)


def write(name: str, made: Workload, steps: Sequence[Step]) -> None:
    """Keeps what vLLM did on a workload."""
    kept = steps if name.startswith("small") else [step for step in steps if has_news(step)]
    golden = {
        "name": name,
        "workload": workload_digest(made),
        "steps": len(steps),
        "digest": steps_digest(steps),
        "kept": [_row(step) for step in kept],
    }
    line = json.dumps(golden, separators=(",", ":")).encode()
    _path(name).write_bytes(gzip.compress(line, mtime=0))


def read(name: str, made: Workload) -> Golden:
    """vLLM's steps on a workload. Raises ValueError if the workload is no longer the one that vLLM was given."""
    golden = json.loads(gzip.decompress(_path(name).read_bytes()))
    if golden["workload"] != workload_digest(made):
        raise ValueError(f"{name}: the workload has changed since its golden file was made: run make_golden again")
    return Golden(name, made, golden["steps"], golden["digest"], tuple(_step(row) for row in golden["kept"]))


def has_news(step: Step) -> bool:
    """Whether calls came or went."""
    return bool(step.admitted or step.preempted or step.finished)


def steps_digest(steps: Iterable[Step]) -> str:
    """SHA-256 of steps as they are written, so that equal steps have equal digests."""
    digest = hashlib.sha256()
    for step in steps:
        digest.update(json.dumps(_row(step)).encode())
    return digest.hexdigest()


def workload_digest(made: Workload) -> str:
    """SHA-256 of all of a workload that steps depend on."""
    machine, timing = made.machine, made.machine.timing()
    limits: tuple[object, ...] = (
        machine.gpu_blocks,
        machine.block_tokens,
        machine.step_budget_tokens,
        machine.max_running,
    )
    if made.machine.long_prefill_token_threshold:
        limits = (*limits, made.machine.long_prefill_token_threshold)
    if len(made.machine.kv_groups) > 1:
        groups = [(group.kind, group.window_tokens) for group in made.machine.kv_groups]
        limits = (*limits, groups, made.machine.prefix_cache_retention_interval)
    costs = (timing.step_ps, timing.prefill_token_ps, timing.attention_ps, timing.decode_call_ps)
    rest = (timing.context_token_ps, timing.client_ps, machine.asynchronous)
    calls = [(application.arrival_s, *_facts(call)) for application in made.applications for call in application.calls]
    return hashlib.sha256(json.dumps((limits, costs, rest, calls)).encode()).hexdigest()


def _facts(call: Call) -> tuple[object, ...]:
    prompt = (call.prompt.extends, call.prompt.keep_tokens, call.prompt.segments)
    tools_s = [tool.duration_s for tool in call.tools]
    return call.id, prompt, call.output_tokens, call.after, call.pause_s, tools_s


def _path(name: str) -> Path:
    return FOLDER / f"{name}.json.gz"


def _row(step: Step) -> list[Any]:
    return [
        step.number,
        step.scheduled_ps,
        step.start_ps,
        step.end_ps,
        dict(sorted(step.tokens.items())),
        step.admitted,
        step.preempted,
        step.free_blocks,
        step.evicted_blocks,
        step.finished,
    ]


def _step(row: list[Any]) -> Step:
    number, scheduled_ps, start_ps, end_ps, tokens, admitted, preempted, free_blocks, evicted_blocks, finished = row
    return Step(
        number,
        scheduled_ps,
        start_ps,
        end_ps,
        tokens,
        tuple((call, hits) for call, hits in admitted),
        tuple(preempted),
        free_blocks,
        evicted_blocks,
        tuple(finished),
    )
