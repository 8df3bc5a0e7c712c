"""What our scheduler, connector and policy add to a step, where a step is too short to hide it.

Calls that only decode, on stock vLLM and on our engine, with as many at once; the time of a step is that of the run
over its steps, so what a client costs is in both.
"""

from __future__ import annotations

import statistics
from typing import Any

from tokencake.live.client.in_process import InProcess
from tokencake.policies.run_settings import RunSettings

from . import results, setups
from .answers import backends
from .work import Work

CALLS = (1, 8, 64)  # that decode at once
POLICIES = ("vllm", "tokencake")
PROMPT_TOKENS = 128
STEPS, DRY_STEPS = 250, 30
REPEATS = 3


def stock(work: Work) -> dict[str, Any]:
    with InProcess(setups.small_engine(work), stock=True) as engine:
        work.note(engine=engine.info(), backends=backends(engine))
        found = {"stock": by_calls(work, engine, "vllm")}
    work.note(step_us=found)
    return {"said": f"a step: {said(found['stock'])}"}


def ours(work: Work) -> dict[str, Any]:
    found = {}
    with InProcess(setups.small_engine(work)) as engine:
        work.note(engine=engine.info(), backends=backends(engine))
        for policy in POLICIES:
            found[policy] = by_calls(work, engine, policy)
            work.note(step_us=found)
    beside = results.found(work.out, "steps-stock").get("step_us", {}).get("stock")
    if beside is None:
        return {"said": f"a step under {POLICIES[-1]}: {said(found[POLICIES[-1]])}; stock was not measured"}
    added = {policy: {calls: us - beside[calls] for calls, us in times.items()} for policy, times in found.items()}
    work.note(added_us=added)
    return {"said": f"added to a step under {POLICIES[-1]}: {said(added[POLICIES[-1]])}"}


def by_calls(work: Work, engine: InProcess, policy: str) -> dict[str, float]:
    """Microseconds of a step, the median of some runs, by how many calls decode (as JSON has keys)."""
    steps = DRY_STEPS if work.dry else STEPS
    found: dict[str, float] = {}
    for calls in CALLS:
        workload = setups.decoding(calls, PROMPT_TOKENS, steps)
        took = []
        for _ in range(1 + (1 if work.dry else REPEATS)):  # the first warms up
            stats = engine.play(workload, RunSettings(policy), progress=work.watch)
            took.append(stats.wall_s / stats.steps * 1e6)
        found[str(calls)] = statistics.median(took[1:])
    return found


def said(times_us: dict[str, float]) -> str:
    return ", ".join(f"{us:.0f} µs with {calls}" for calls, us in times_us.items())
