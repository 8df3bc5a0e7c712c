"""Which slot and which GPU block a copy gets: fewer pieces, and nothing else that anybody could see."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import hard_workload
from virtual_engine import Virtual

from tokencake.live.copier.jobs import CopyJob
from tokencake.live.copier.stretches import side_by_side, stretches
from tokencake.live.engine.memory import copies
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e

Arrange = Callable[[Sequence[int], Iterable[int]], list[int]]


def as_they_come(numbers: Sequence[int], places: Iterable[int]) -> list[int]:
    return list(places)


def anyhow(numbers: Sequence[int], places: Iterable[int]) -> list[int]:
    shuffled = list(places)
    random.Random(len(shuffled)).shuffle(shuffled)
    return shuffled


def played(monkeypatch: pytest.MonkeyPatch, arrange: Arrange, seed: int, policy: str) -> tuple[list[object], int]:
    """The facts, and how many pieces the copies were."""
    monkeypatch.setattr(copies, "side_by_side", arrange)
    applications, machine = hard_workload(seed)
    engine = Virtual(machine)
    begin, pieces = engine.workers.begin, 0

    def counting(jobs: Sequence[CopyJob], from_ps: int) -> None:
        nonlocal pieces
        pieces += sum(len(stretches(job.gpu_blocks, job.host_slots).counts) for job in jobs)
        begin(jobs, from_ps)

    monkeypatch.setattr(engine.workers, "begin", counting)
    facts: list[object] = []
    engine.play(applications, RunSettings(policy=policy, costs=machine.beliefs()), [facts.append])
    return [fact for fact in facts if not isinstance(fact, e.Occupied)], pieces  # whose samples come by the wall clock


@pytest.mark.parametrize("policy", ["native-offload", "prefetch-at-pause", "kvflow"])
def test_what_happens_does_not_depend_on_places(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """Above all which contents the host gives up for others: these are small hosts, full of copies."""
    fewer = 0
    for seed in range(3):
        facts, pieces = played(monkeypatch, side_by_side, seed, policy)
        before, more = played(monkeypatch, as_they_come, seed, policy)
        assert facts == before == played(monkeypatch, anyhow, seed, policy)[0]
        fewer += more - pieces
    assert fewer > 0
