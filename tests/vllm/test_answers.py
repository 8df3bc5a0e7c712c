"""Whatever is offloaded, dropped, uploaded, loaded or cancelled: answers are those of stock vLLM, to the token.

The model's weights are random and its answers depend on its whole context, so a block with wrong content would show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from mover import Mover
from small_traces import code_writers, coding_conversations

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e
from tokencake.traces.apps import Application, CallId

BLOCKS = 60
OPTIONS = EngineOptions(model="tiny", gpu_blocks=BLOCKS, host_gib=0.02, link_gbps=0.02)  # a block takes 6.6 ms
POLICIES = (
    "vllm",
    "tokencake-space",
    "tokencake-time:upload=demand",
    "tokencake-time:upload=pause,gate=off",
    "tokencake-time:upload=predictive,gate=off",
    "tokencake:gate=off",
)
Answers = Mapping[CallId, list[int]]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Application]]:
    return {"code-writer": code_writers(), "coding": coding_conversations(tmp_path_factory.mktemp("coding"))}


@pytest.fixture(scope="module")
def stock(traces: dict[str, list[Application]]) -> dict[str, Answers]:
    """What stock vLLM answers."""
    with InProcess(OPTIONS, stock=True) as engine:
        return {name: engine.play(trace, RunSettings(), outputs=True).outputs for name, trace in traces.items()}


@pytest.fixture(scope="module")
def engine(stock: dict[str, Answers]) -> Iterator[InProcess]:
    with InProcess(OPTIONS) as running:
        yield running


def assert_all_is_free(engine: InProcess) -> None:
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS
    assert engine.adapter.copies.host_free == engine.info()["host_blocks"]


@pytest.mark.parametrize("trace", ["code-writer", "coding"])
@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_those_of_stock_vllm(
    engine: InProcess, stock: dict[str, Answers], traces: dict[str, list[Application]], policy: str, trace: str
) -> None:
    stats = engine.play(traces[trace], RunSettings(policy), outputs=True)
    assert stats.outputs == stock[trace]
    assert (stats.errors, stats.disagreements) == ([], [])
    assert_all_is_free(engine)


def test_every_kind_of_copy_happens_and_changes_no_answer(
    engine: InProcess, stock: dict[str, Answers], traces: dict[str, list[Application]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()

    def count(fact: object) -> None:
        seen[type(fact).__name__] += 1
        if isinstance(fact, e.UploadTaken):
            seen["late" if fact.late_s else "in time"] += 1

    for seed in range(8):
        trace = list(traces)[seed % 2]
        monkeypatch.setattr(engine.adapter, "load_policy", lambda spec, *, seed=seed: Mover(seed))
        stats = engine.play(traces[trace], RunSettings(seed=seed), [count], outputs=True)
        assert stats.outputs == stock[trace]
        assert (stats.errors, stats.disagreements) == ([], [])
        assert_all_is_free(engine)
    kinds = ("OffloadFinished", "HostDropped", "UploadFinished", "LoadFinished", "UploadCancelled", "UploadReleased")
    for kind in (*kinds, "UploadRefused", "late", "in time"):
        assert seen[kind], f"{kind}: {seen}"
