"""Asynchronous scheduling, vLLM's default on GPUs, with real answers: a step is scheduled while another computes.

The engine is a CPU's, made to schedule so (`asynchronous_engine`). Calls are preempted, and blocks are copied, while a
step is in flight that uses them: answers are those of stock vLLM, which schedules alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from asynchronous_engine import schedules_asynchronously
from witness import Witness

from tokencake.live.engine_options import EngineOptions
from tokencake.live.in_process import InProcess, LiveStats
from tokencake.live.settings import RunSettings
from tokencake.policies.registry import load_policy
from tokencake.policies.replay import replay_file
from tokencake.traces import events as e
from tokencake.traces.apps import Application, CallId
from tokencake.traces.events_io import EventsWriter, Record
from tokencake.traces.reader import read_trace
from tokencake.traces.scaling import scaled
from tokencake.traces.shrinking import shrunk

ROOT = Path(__file__).parents[2]
BLOCKS = 36  # two contexts and a bit
OPTIONS = EngineOptions(model="tiny", gpu_blocks=BLOCKS, host_gib=0.05, link_gbps=0.05, asynchronous=True)
POLICIES: Mapping[str, tuple[type, ...]] = {  # and what has to happen under them while a step is in flight
    "vllm": (e.CallPreempted,),
    "tokencake:gate=off": (e.CallPreempted, e.OffloadStarted, e.OffloadFinished, e.LoadStarted, e.LoadFinished),
    "tokencake-time:gate=off,upload=pause": (e.CallPreempted, e.LoadFinished, e.UploadStarted, e.UploadFinished),
    "native-offload": (e.CallPreempted, e.StoreStarted, e.StoreFinished, e.LoadStarted, e.LoadFinished),
}
MOST_RUNS = 5  # how calls fall together depends on how fast the machine is just now
Answers = Mapping[CallId, list[int]]


def workload() -> list[Application]:
    """Code writers with a 24th of their tokens, and tools of a fiftieth of their time."""
    return list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.02), 24))[:5]


@pytest.fixture(scope="module", autouse=True)
def asynchronously() -> Iterator[None]:
    with schedules_asynchronously():
        yield


@pytest.fixture(scope="module")
def stock(asynchronously: None) -> Answers:
    """What stock vLLM answers."""
    with InProcess(OPTIONS, stock=True) as engine:
        assert type(engine.scheduler).__name__ == "AsyncScheduler"
        return engine.play(workload(), RunSettings(), outputs=True).outputs


@pytest.fixture(scope="module")
def engine(stock: Answers) -> Iterator[InProcess]:
    with InProcess(OPTIONS) as running:
        assert type(running.scheduler).__name__ == "TokencakeAsyncScheduler"
        assert running.info()["asynchronous"] is True
        yield running


class Played:
    """A run, its facts, and how many of each kind came while a step was in flight."""

    def __init__(self, engine: InProcess, policy: str, journal: EventsWriter) -> None:
        self._engine = engine
        self.facts: list[Any] = []
        self.in_flight: Counter[type] = Counter()
        settings = RunSettings(policy, steps=True)
        self.stats: LiveStats = engine.play(workload(), settings, [self._hear], journal.add, outputs=True)

    def _hear(self, fact: Record) -> None:
        self.facts.append(fact)
        self.in_flight[type(fact)] += self._engine.adapter.computing


def assert_all_is_free(engine: InProcess) -> None:
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS
    assert engine.adapter.copies.host_free == engine.info()["host_blocks"]
    assert engine.adapter.at_rest
    assert not engine.adapter.computing


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_those_of_stock_vllm(
    engine: InProcess, stock: Answers, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.adapter, "load_policy", lambda spec, *, seed: Witness(load_policy(spec, seed=seed)))
    seen: Counter[type] = Counter()
    for run in range(MOST_RUNS):
        path = tmp_path / f"{run}.jsonl"
        with EventsWriter(path) as journal:
            played = Played(engine, policy, journal)
        assert played.stats.outputs == stock
        assert (played.stats.errors, played.stats.disagreements) == ([], [])
        assert_all_is_free(engine)
        check_order(played.facts)
        check_overlap(played.facts)
        replayed = replay_file(path)[1]
        assert replayed.equal, replayed.first
        seen.update(played.in_flight)
        if all(seen[kind] for kind in POLICIES[policy]):
            return
    raise AssertionError(f"{MOST_RUNS} runs of {policy} came to {seen}")


def check_order(facts: list[Any]) -> None:
    """What happens to a call happens in an order that makes sense, also by its times."""
    times: dict[CallId, list[float]] = defaultdict(list)
    started: dict[CallId, float] = {}
    for fact in facts:
        if isinstance(fact, e.CallArrived):
            times[fact.request.id].append(fact.at_s)
        elif isinstance(fact, e.CallAdmitted | e.CallPreempted | e.FirstToken | e.CallFinished | e.LoadStarted):
            times[fact.call].append(fact.at_s)
        if isinstance(fact, e.CallAdmitted):
            started.setdefault(fact.call, fact.at_s)
        elif isinstance(fact, e.FirstToken):
            assert started[fact.call] < fact.at_s
    assert all(happened == sorted(happened) for happened in times.values())


def check_overlap(facts: list[Any]) -> None:
    """Steps end in the order in which they began, and most of them began before the one before them had ended."""
    steps = [fact for fact in facts if isinstance(fact, e.Stepped)]
    pairs = list(pairwise(steps))
    assert all(before.from_s < after.from_s and before.at_s < after.at_s for before, after in pairs)
    overlapping = sum(after.from_s < before.at_s for before, after in pairs)
    assert overlapping > len(steps) / 2
