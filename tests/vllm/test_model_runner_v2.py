"""vLLM's model runner V2, the default on GPUs as asynchronous scheduling is: answers are those of stock vLLM.

Its kernels are written for Triton, and interpreted here. That is slow and needs a process of its own, see
`.ci/model-runner-v2`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import triton_interpreter

if (lacking := triton_interpreter.prepare()) is not None:
    pytest.skip(f"{lacking}: .ci/model-runner-v2 runs these tests so", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from asynchronous_engine import schedules_asynchronously

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e
from tokencake.traces.apps import Application, CallId
from tokencake.traces.format.reader import read_trace
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ROOT = Path(__file__).parents[2]
BLOCKS = 10  # the largest call needs 8
OPTIONS = EngineOptions(
    model="tiny", gpu_blocks=BLOCKS, host_gib=0.05, link_gbps=0.05, asynchronous=True, model_runner="v2"
)
POLICIES: Mapping[str, tuple[type, ...]] = {  # and what has to happen under them while a step is in flight
    "vllm": (e.CallPreempted,),
    "tokencake:gate=off": (e.OffloadFinished, e.LoadFinished),
    "native-offload": (e.CallPreempted, e.StoreFinished, e.LoadFinished),
}
MOST_RUNS = 4  # how calls fall together depends on how fast the machine is just now


def workload() -> list[Application]:
    """Code writers with a 64th of their tokens, and tools of a fiftieth of their time."""
    return list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.02), 64))[:3]


@pytest.fixture(scope="module")
def stock() -> Iterator[Mapping[CallId, list[int]]]:
    with schedules_asynchronously():
        with InProcess(OPTIONS, stock=True) as engine:
            answers = engine.play(workload(), RunSettings(), outputs=True).outputs
        yield answers


@pytest.fixture(scope="module")
def engine(stock: Mapping[CallId, list[int]]) -> Iterator[InProcess]:
    with InProcess(OPTIONS) as running:
        assert running.info()["model_runner"] == "v2"
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_those_of_stock_vllm(engine: InProcess, stock: Mapping[CallId, list[int]], policy: str) -> None:
    in_flight: Counter[type] = Counter()

    def hear(fact: object) -> None:
        in_flight[type(fact)] += engine.adapter.computing

    for _ in range(MOST_RUNS):
        stats = engine.play(workload(), RunSettings(policy), [hear], outputs=True)
        assert stats.outputs == stock
        assert (stats.errors, stats.disagreements) == ([], [])
        assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS
        assert engine.adapter.copies.host_free == engine.info()["host_blocks"]
        if all(in_flight[kind] for kind in POLICIES[policy]):
            return
    raise AssertionError(f"{MOST_RUNS} runs of {policy} came to {in_flight}")
