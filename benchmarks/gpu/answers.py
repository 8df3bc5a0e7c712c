"""Answers under our policies beside those of stock vLLM, to the token.

The tiny model's weights are random and its answers depend on its whole context, so a block with wrong content shows.
Kernels must not depend on what else is in a step: VLLM_BATCH_INVARIANT is set for these phases on a GPU.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tokencake.live.client.in_process import InProcess
from tokencake.policies.run_settings import RunSettings
from tokencake.traces.apps import CallId

from . import setups
from .plan import PLAYED
from .work import Work

COUNTED = ("CallPreempted", "OffloadFinished", "UploadFinished", "LoadFinished", "StoreFinished")
CANARY_TOKENS = 20

Answers = Mapping[CallId, list[int]]


def canary(work: Work) -> dict[str, Any]:
    """One layer, a call: the kernels of bf16 are there and run."""
    with InProcess(setups.one_layer(work)) as engine:
        stats = engine.play(setups.decoding(1, 100, CANARY_TOKENS), RunSettings(), outputs=True)
        work.note(engine=engine.info(), backends=backends(engine))
    (answer,) = stats.outputs.values()
    return {"answer": answer, "said": f"{len(answer)} tokens with {', '.join(backends_of(work)) or 'no backend'}"}


def in_fp32(work: Work) -> dict[str, Any]:
    return compared(work, "float32", setups.TRITON_BACKEND)


def in_bf16(work: Work) -> dict[str, Any]:
    """With whatever attention vLLM takes for bf16: FlashAttention 3 on an H100."""
    return compared(work, "bfloat16", None)


def compared(work: Work, dtype: str, attention_backend: str | None) -> dict[str, Any]:
    """Stock vLLM twice, then our engine under each policy. Raises AssertionError if an answer differs."""
    options = setups.tiny_engine(work, dtype, attention_backend)
    played = setups.answered(work)
    work.note(
        dtype=dtype, batch_invariant=os.environ.get("VLLM_BATCH_INVARIANT"), calls=setups.calls_of(played), runs=[]
    )
    with InProcess(options, stock=True) as engine:
        stock = engine.play(played, RunSettings(), outputs=True, progress=work.watch).outputs
        again = engine.play(played, RunSettings(), outputs=True, progress=work.watch).outputs
        work.note(engine=engine.info(), backends=backends(engine), stock_repeats=len(equal(stock, again)))
    runs: list[dict[str, Any]] = []
    with InProcess(options) as engine:
        for policy in PLAYED:
            seen: Counter[str] = Counter()
            stats = engine.play(
                played,
                RunSettings(policy),
                [counting(seen)],
                outputs=True,
                progress=work.watch,
            )
            same = len(equal(stock, stats.outputs))
            counts = {kind: seen[kind] for kind in COUNTED}
            runs.append({"policy": policy, "equal": same, "disagreements": stats.disagreements,
                         "errors": stats.errors, **counts})  # fmt: skip
            work.note(runs=runs)
    return judged(runs, len(stock), len(equal(stock, again)), dtype)


def judged(runs: list[dict[str, Any]], calls: int, repeated: int, dtype: str) -> dict[str, Any]:
    """What is said of the runs. Raises AssertionError unless all answers are equal and blocks were moved."""
    if repeated < calls:
        raise AssertionError(f"stock vLLM itself answers {calls - repeated} of {calls} calls otherwise a second time")
    for run in runs:
        if run["equal"] < calls or run["errors"] or run["disagreements"]:
            doubts = [*run["errors"], *run["disagreements"]]
            raise AssertionError(f"{run['policy']}: {run['equal']} of {calls} answers are stock vLLM's {doubts or ''}")
    moved = sum(run["LoadFinished"] + run["UploadFinished"] for run in runs)
    if not moved:
        raise AssertionError("no block came back from the host: equal answers say nothing")
    preempted = sum(run["CallPreempted"] for run in runs)
    said = f"{calls} answers equal under {len(runs)} policies, {moved} copies back, {preempted} preemptions, {dtype}"
    return {"said": said}


def counting(seen: Counter[str]) -> Callable[[object], None]:
    """A sink that counts facts by their kind."""

    def add(fact: object) -> None:
        seen[type(fact).__name__] += 1

    return add


def equal(first: Answers, second: Answers) -> list[CallId]:
    """The calls that were answered the same both times."""
    return [call for call, answer in first.items() if second.get(call) == answer]


def backends(engine: InProcess) -> list[str]:
    """What computes attention, as vLLM's layers tell; empty where those are kept elsewhere: that is no failure."""
    with suppress(AttributeError):
        layers = engine._engine.llm.vllm_config.compilation_config.static_forward_context.values()
        return sorted({type(layer.impl).__name__ for layer in layers if hasattr(layer, "impl")})
    return []


def backends_of(work: Work) -> list[str]:
    noted: list[str] = work.noted("backends") or []
    return noted
