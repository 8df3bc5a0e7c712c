"""The simulator, the oracle and vLLM's own scheduler, side by side in virtual time: every step is equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from differential import vllm_driver, vllm_engine_core
from differential.workloads import Workload, capped, hosted, published, workload
from engine_steps import by, by_the_simulator
from oracle import scheduler as oracle
from oracle.block_pool import Block, Key, OracleBlockPool
from oracle.play import Step

from tokencake.live.engine.control.versions import check_vllm
from tokencake.sim.machine.engine_versions import simulated_version
from tokencake.traces.apps import CallId

ENGINE_VERSION = simulated_version(check_vllm())
SEEDS = range(240)
CAPPED_SEEDS = range(100)


def assert_equal(made: Workload) -> list[Step]:
    """Runs the oracle, vLLM and the simulator, and returns the steps."""
    made = made._replace(machine=replace(made.machine, engine_version=ENGINE_VERSION))
    steps = []
    for ours, vllms in zip(oracle.simulate(*made), vllm_driver.simulate(*made), strict=True):
        assert ours == vllms
        steps.append(vllms)
    assert by_the_simulator(*made) == by(steps)
    return steps


@pytest.mark.parametrize("seed", SEEDS)
def test_every_step_is_equal(seed: int) -> None:
    made = workload(seed)
    steps = assert_equal(made)
    assert sorted(call for step in steps for call in step.finished) == sorted(
        call.id for application in made.applications for call in application.calls
    )


@pytest.mark.parametrize("seed", CAPPED_SEEDS)
def test_every_step_is_equal_where_long_prompts_are_cut(seed: int) -> None:
    assert_equal(capped(seed))


@pytest.mark.parametrize("seed", range(20))
def test_every_step_is_equal_where_the_host_has_work(seed: int) -> None:
    assert_equal(hosted(seed))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_every_step_of_the_published_workload_is_equal(asynchronous: bool) -> None:
    made = published(asynchronous)
    steps = assert_equal(made)
    assert sum(len(step.finished) for step in steps) == 24 * 27
    assert steps[-1].evicted_blocks > 0
    assert any(step.preempted for step in steps)


@pytest.mark.parametrize("seed", range(0, 240, 4))
def test_steps_are_scheduled_when_vllms_engine_loop_schedules_them(seed: int) -> None:
    made = workload(seed)
    assert vllm_engine_core.executed(*made) == [
        (step.scheduled_ps, step.start_ps, step.end_ps, step.tokens) for step in oracle.simulate(*made) if step.tokens
    ]


def test_the_workloads_reach_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    cache = OracleBlockPool.cache

    def counted(pool: OracleBlockPool, block: Block, key: Key) -> None:
        seen["duplicates"] += pool.cached(key) is not None
        cache(pool, block, key)

    monkeypatch.setattr(OracleBlockPool, "cache", counted)
    for seed in SEEDS:
        made = workload(seed)
        steps = list(oracle.simulate(*made))
        seen["asynchronous" if made.machine.asynchronous else "synchronous"] += 1
        seen["evictions"] += steps[-1].evicted_blocks
        seen["hits"] += sum(hits for step in steps for _, hits in step.admitted)
        seen["preemptions"] += sum(len(step.preempted) for step in steps)
        seen["steps that only preempt"] += sum(not step.tokens for step in steps)
        seen["full batches"] += any(len(step.tokens) == made.machine.max_running > 1 for step in steps)
        seen.update(coming_and_going(steps))
    enough = {
        "asynchronous": 80,
        "synchronous": 80,
        "evictions": 10_000,
        "hits": 10_000,
        "preemptions": 300,
        "duplicates": 300,
        "chunked prefills": 300,
        "finished while waiting": 5,
        "steps that only preempt": 1,
        "full batches": 20,
    }
    assert {name: seen[name] for name, least in enough.items() if seen[name] < least} == {}


def test_the_workloads_with_long_prompts_reach_the_rules() -> None:
    seen: Counter[str] = Counter()
    for seed in CAPPED_SEEDS:
        made = capped(seed)
        most, budget = made.machine.long_prefill_token_threshold, made.machine.step_budget_tokens
        seen["asynchronous" if made.machine.asynchronous else "synchronous"] += 1
        for step in oracle.simulate(*made):
            tokens = step.tokens.values()
            seen["cut"] += most > 1 and most in tokens and sum(tokens) < budget
            seen["several prompts at once"] += sum(n > 1 for n in tokens) > 1
            seen["one that is alone"] += any(n > most for n in tokens)
            seen["preemptions"] += len(step.preempted)
    enough = {
        "asynchronous": 35,
        "synchronous": 35,
        "cut": 1_000,
        "several prompts at once": 1_000,
        "one that is alone": 50,
        "preemptions": 300,
    }
    assert {name: seen[name] for name, least in enough.items() if seen[name] < least} == {}


def coming_and_going(steps: Iterable[Step]) -> Iterator[str]:
    """What became of calls whose prompts do not fit into one step, or that were preempted."""
    prefilling: set[CallId] = set()
    ended: set[CallId] = set()
    for step in steps:
        for call in prefilling:
            if step.tokens.get(call, 0) > 1:
                yield "chunked prefills"
        prefilling.update(call for call, _ in step.admitted)
        prefilling = {call for call in prefilling if step.tokens.get(call, 0) > 1}
        for call in step.preempted:
            if call in ended:  # by a token that was in flight: the step before this one ended after it was scheduled
                yield "finished while waiting"
        ended.update(step.finished)
