"""Tiny models with several KV cache groups on a real engine: answers are those of stock vLLM, whatever is copied.

As `test_answers`, whose agents these are.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from mover import Dropper, Mover
from small_traces import code_writers, coding_conversations
from tiny_hybrids import HYBRIDS, write

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.policies.interface import Policy
from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings
from tokencake.traces.apps import Application, CallId
from tokencake.traces.events import CallAdmitted

Answers = dict[CallId, list[int]]
LOADS = ("OffloadFinished", "UploadTaken", "UploadReleased", "LoadFinished")


def options(model: str, pages: int, folder: Path) -> EngineOptions:
    path = write(HYBRIDS[model], folder / model)
    return EngineOptions(model=str(path), dtype=HYBRIDS[model].dtype, gpu_blocks=pages, host_gib=0.02, link_gbps=0.05)


def stock_answers(of: EngineOptions, trace: list[Application]) -> Answers:
    with InProcess(of, stock=True) as engine:
        return dict(engine.play(trace, RunSettings(), outputs=True).outputs)


def play(engine: InProcess, trace: list[Application], policy: Policy) -> tuple[Answers, list[Any]]:
    """The answers, and what happened."""
    facts: list[Any] = []
    engine.adapter.load_policy = lambda spec, *, seed: policy
    stats = engine.play(trace, RunSettings(), [facts.append], outputs=True)
    assert (stats.errors, stats.disagreements) == ([], [])
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == engine.info()["gpu_blocks"]
    assert engine.adapter.copies.host_free == engine.info()["host_blocks"]
    return dict(stats.outputs), facts


@pytest.mark.parametrize(("model", "pages"), [("gemma-3", 90), ("llama-4", 80)])
def test_answers_are_those_of_stock_vllm(
    model: str, pages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, trace = options(model, pages, tmp_path), code_writers()[:2]
    expected = stock_answers(of, trace)
    with InProcess(of) as engine:
        answers, facts = play(engine, trace, Mover(1))
        assert answers == expected
        seen = Counter(type(fact).__name__ for fact in facts)
        assert not [kind for kind in LOADS if not seen[kind]], seen
        if model == "llama-4":  # once is enough
            spoil_what_is_loaded(engine, monkeypatch)
            assert play(engine, trace, Mover(1))[0] != expected, "no answer depends on what is copied"


def spoil_what_is_loaded(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, what is loaded comes back in another order."""
    kind = type(engine.adapter.copies)
    load = kind._to_load

    def mixed_up(self: Any, *asked: Any) -> Any:
        pages, source = load(self, *asked)
        return pages[::-1], source

    monkeypatch.setattr(kind, "_to_load", mixed_up)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    """A delta net rounds to bfloat16, and answers depend on who else is in a step, also in stock vLLM: here nobody is.

    The context is dropped after each call and loaded for the next, which begins where it would have begun.
    """
    of, trace = options("qwen3-next", 44, tmp_path), coding_conversations(tmp_path, "a")
    with InProcess(of) as engine:
        expected, facts = play(engine, trace, load_policy("vllm"))  # nothing is copied
        hits = [fact.gpu_hit_tokens for fact in facts if isinstance(fact, CallAdmitted)]
        answers, facts = play(engine, trace, Dropper())
        loaded = [(fact.gpu_hit_tokens, fact.host_hit_tokens) for fact in facts if isinstance(fact, CallAdmitted)]
        assert answers == expected
    assert [sum(both) for both in loaded] == hits
    assert (0, 288) in loaded
