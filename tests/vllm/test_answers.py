"""Whatever is offloaded, dropped, uploaded, loaded or cancelled: answers are those of stock vLLM, to the token.

The model's weights are random and its answers depend on its whole context, so a block with wrong content would show.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.policies.interface import EVERYTHING, Move, Plan, View
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e
from tokencake.traces.apps import Application, CallId
from tokencake.traces.convert.formats import convert
from tokencake.traces.format.reader import read_trace
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ROOT = Path(__file__).parents[2]
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


class Mover:
    """Copies at any time, the same for the same seed and facts: saves and drops stalled agents' caches, brings back
    what it saved too early, on time or too late, and changes its mind."""

    listens_to = EVERYTHING

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def plan(self, view: View) -> Plan:
        rng = self._rng
        offload, upload, cancel = [], [], []
        for agent in view.stalled.values():
            if not (agent.host_blocks or agent.offloading) and rng.random() < 0.7:
                offload.append(Move(agent.id, agent.context_blocks, rng.random() < 0.3))
            elif agent.host_blocks and not (agent.uploading or agent.uploaded_blocks) and rng.random() < 0.5:
                upload.append(Move(agent.id, agent.context_blocks))
            elif (agent.uploading or agent.uploaded_blocks) and rng.random() < 0.2:
                cancel.append(agent.id)
        wake_at_s = view.now_s + rng.uniform(0.01, 0.2) if view.stalled else None
        return Plan(offload=tuple(offload), upload=tuple(upload), cancel=tuple(cancel), wake_at_s=wake_at_s)


def code_writers() -> list[Application]:
    """Code writers with a 24th of their tokens, and tools of a thirtieth of their time."""
    return list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.03), 24))[:4]


def coding_conversations(folder: Path) -> list[Application]:
    """Recorded conversations of coding agents, in the recording's format: one context that grows, tools of seconds."""
    for name in "abc":
        entries, ids = [], [1, 2, 3]
        for turn in range(6):
            ids = [*ids, 10 * turn + 7, 10 * turn + 8]
            at_s = 9.0 * turn
            entries.append(
                {
                    "t": at_s,
                    "type": "n",
                    "in": 64 * len(ids),
                    "out": 12,
                    "hash_ids": ids,
                    "api_time": 2.0,
                    "think_time": 6.0,
                    "input_types": ["tool_result"],
                    "output_types": ["tool_use"],
                }
            )
        talk = {"id": f"talk-{name}", "block_size": 64, "hash_id_scope": "local", "requests": entries}
        (folder / f"{name}.json").write_text(json.dumps(talk))
    return list(scaled(convert(folder, "agentic-coding", rate=2.0), 0.1))


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
