"""vLLM's own OffloadingConnector, scheduler side, beside the simulator under `native-offload`: equal stores and loads.

Its workers are a link in virtual time: a store begins when the step has ended whose blocks it copies, a load with the
step that asked for it, and both are acknowledged at the end of a step. With `save=prompts`, vLLM's default, each store
and each load is equal, at the same time, block for block. With answers (`offload_prompt_only=false`) vLLM copies a
block of an answer when it is full and the simulator when the call ends: there the blocks that were stored in all are.

Two things are made equal. A prompt of whole blocks that lie on the host: vLLM loads all of them and computes the last
token again, the simulator computes the last block; vLLM is told not to load that block. And sources: vLLM gives an
ended call's blocks back at once, and lets a step wait for a copy whose source it overwrites; the simulator holds them
until they are copied. So either nothing is short on the GPU, or copies take no time.
Even then a call that ends with the step whose blocks are copied gives them back a moment after one that ends with it,
which shows in who is evicted first: in two of the workloads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from differential.offloading import Copied, Offloading
from differential.workloads import Workload, workload

from tokencake.live.engine.control.versions import check_vllm
from tokencake.policies.field.native_offload import NativeOffload
from tokencake.policies.interface import Extent
from tokencake.sim.engine.memory.blocks import Span
from tokencake.sim.engine.memory.copies import Copies
from tokencake.sim.engine.requests import EngineCall
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.engine_versions import simulated_version
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces import events as e
from tokencake.traces.apps import CallId

ENGINE_VERSION = simulated_version(check_vllm())
pytestmark = pytest.mark.skipif(
    ENGINE_VERSION < "0.32", reason="reaches into what vLLM's OffloadingConnector is made of, which changes"
)
SEEDS = range(60)


class Simulated(NamedTuple):
    copied: list[Copied]
    hits: list[tuple[CallId, int]]


def simulated(made: Workload, extent: Extent, monkeypatch: pytest.MonkeyPatch) -> Simulated:
    """What the simulator stores, loads and hits."""
    copied: list[Copied] = []
    facts: list[Any] = []
    store = Copies._store

    def noted(self: Copies, job: EngineCall, spans: list[Span], targets: Any, now_ps: int, from_ps: int) -> None:
        blocks = tuple(at for first, end in spans for at in range(first, end))
        copied.append(Copied(now_ps, True, job.id, blocks))
        store(self, job, spans, targets, now_ps, from_ps)

    def add(fact: Any) -> None:
        facts.append(fact)
        if isinstance(fact, e.LoadStarted):
            blocks = tuple(range(fact.gpu_hit_blocks, fact.gpu_hit_blocks + fact.blocks))
            copied.append(Copied(round(fact.at_s * PS_PER_S), False, fact.call, blocks))

    monkeypatch.setattr(Copies, "_store", noted)
    simulate(made.applications, NativeOffload(save=extent), made.machine, [add])
    size = made.machine.block_tokens
    admitted = [fact for fact in facts if isinstance(fact, e.CallAdmitted)]
    return Simulated(copied, [(fact.call, (fact.gpu_hit_tokens + fact.host_hit_tokens) // size) for fact in admitted])


INSTANT = {"kv_bytes_per_token": 1, "link_gbps": 1e6}  # a copy takes no picosecond
SLOW = {"kv_bytes_per_token": 2**20, "link_gbps": 1.0, "gpu_blocks": 5000}  # a block of 8 tokens takes almost a step


def with_host(made: Workload, settings: dict[str, float]) -> Workload:
    """The workload on a synchronous machine whose host holds everything."""
    machine = replace(made.machine, asynchronous=False, engine_version=ENGINE_VERSION, **settings)  # type: ignore[arg-type]
    return Workload(made.applications, replace(machine, host_gib=5000 * machine.block_bytes / 2**30))


def ordered(copied: Sequence[Copied]) -> list[Copied]:
    """In the order of time; of one step the loads first, since stores are told of when all is scheduled."""
    return sorted(copied, key=lambda one: (one.at_ps, one.store, one.call))


BEHIND = {56, 59}
behind = pytest.mark.xfail(
    strict=True, reason="an ended call's blocks come back when they are copied: later in the queue"
)


@pytest.mark.parametrize(
    ("seed", "instant"),
    [pytest.param(seed, True, marks=[behind] if seed in BEHIND else []) for seed in SEEDS]
    + [(seed, False) for seed in SEEDS],
)
def test_every_store_and_load_is_equal(seed: int, instant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_host(workload(seed), INSTANT if instant else SLOW)
    real = Offloading(made, "prompts", monkeypatch)
    real.run()
    ours = simulated(made, "prompts", monkeypatch)
    assert ordered(ours.copied) == ordered(real.copied)
    assert sorted(ours.hits) == sorted(real.hits)


@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_the_blocks_that_are_stored_with_answers_are_equal(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all calls but the last, which may end before vLLM has told of its last block."""
    made = with_host(workload(seed), INSTANT | {"gpu_blocks": 5000})
    real = Offloading(made, "contexts", monkeypatch)
    real.run()
    ours = simulated(made, "contexts", monkeypatch)

    def contents(copied: Sequence[Copied]) -> set[bytes]:
        return {real.keys[one.call][at] for one in copied if one.store for at in one.blocks}

    assert contents(real.copied) <= contents(ours.copied) | _last(real)
    assert contents(ours.copied) <= contents(real.copied) | _last(real)


def test_the_workloads_reach_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    for seed in range(12):
        with monkeypatch.context() as patched:
            real = Offloading(with_host(workload(seed), INSTANT), "prompts", patched)
            real.run()
        seen.update("stores" if one.store else "loads" for one in real.copied)
        seen["preemptions"] += real.preempted
    assert seen["stores"] > 50
    assert seen["loads"] > 10
    assert seen["preemptions"] > 5


def _last(real: Offloading) -> set[bytes]:
    last = real.copied[-1].at_ps if real.copied else 0
    return {content for one in real.copied if one.at_ps >= last for content in real.keys[one.call]}
