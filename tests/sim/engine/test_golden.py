"""The oracle does what vLLM's scheduler did, as written down in golden files: no vLLM is needed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
from differential import golden
from differential.workloads import Workload, capped, hybrid, published, workload
from oracle import scheduler
from oracle.block_pool import Block, Key, OracleBlockPool
from oracle.kv_groups import Hit, KvGroups
from oracle.scheduler import Job, Scheduler


@pytest.mark.parametrize("seed", golden.SMALL_SEEDS)
def test_the_oracle_repeats_vllm_step_by_step(seed: int) -> None:
    assert_repeated(golden.read(f"small-{seed}", workload(seed)))


@pytest.mark.parametrize("seed", golden.CAPPED_SEEDS)
def test_the_oracle_repeats_vllm_where_long_prompts_are_cut(seed: int) -> None:
    assert_repeated(golden.read(f"small-capped-{seed}", capped(seed)))


@pytest.mark.parametrize("seed", golden.HYBRID_SEEDS)
def test_the_oracle_repeats_vllm_with_several_kv_cache_groups(seed: int) -> None:
    assert_repeated(golden.read(f"small-hybrid-{seed}", hybrid(seed)))


def assert_repeated(vllm: golden.Golden) -> None:
    steps = scheduler.simulate(*vllm.workload)
    for ours, theirs in zip(steps, vllm.kept, strict=True):
        assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_the_oracle_repeats_vllm_on_the_published_workload(asynchronous: bool) -> None:
    vllm = golden.read(f"published-{'asynchronous' if asynchronous else 'synchronous'}", published(asynchronous))
    steps = list(scheduler.simulate(*vllm.workload))
    for ours, theirs in zip((step for step in steps if golden.has_news(step)), vllm.kept, strict=True):
        assert ours == theirs
    assert len(steps) == vllm.steps
    assert golden.steps_digest(steps) == vllm.digest


def release_in_order(pool: OracleBlockPool, blocks: Iterable[Block]) -> None:
    """As vLLM 0.22 did: blocks without a hash wait in line with the others."""
    for block in blocks:
        block.users -= 1
        if not block.users:
            pool.free[block] = None


def release_head_first(pool: OracleBlockPool, blocks: Iterable[Block]) -> None:
    release(pool, reversed(list(blocks)))


def last_copy(pool: OracleBlockPool, key: Key) -> Block | None:
    return next(reversed(pool._cached.get(key, {})), None)


def hit_the_whole_prompt(groups: KvGroups, hashes: Sequence[int], max_tokens: int) -> Hit:
    """The last token is not computed again either."""
    return hit(groups, hashes, max_tokens + 1)


def forget_tokens_in_flight(engine: Scheduler, job: Job) -> None:
    preempt(engine, job)
    job.stale = 0


def return_behind_the_others(engine: Scheduler, job: Job) -> None:
    preempt(engine, job)
    engine._waiting.rotate(-1)


def cache_late(engine: Scheduler, job: Job, tokens: int) -> None:
    """Blocks can be hit when the next tokens are scheduled, not at once."""
    cache(engine, job, min(tokens, job.computed))


release, preempt, cache = OracleBlockPool.release, Scheduler._preempt, Scheduler._cache
hit = KvGroups.hit


@pytest.mark.parametrize(
    ("owner", "rule", "mutant"),
    [
        (OracleBlockPool, "release", release_in_order),
        (OracleBlockPool, "release", release_head_first),
        (OracleBlockPool, "cached", last_copy),
        (KvGroups, "hit", hit_the_whole_prompt),
        (Scheduler, "_preempt", forget_tokens_in_flight),
        (Scheduler, "_preempt", return_behind_the_others),
        (Scheduler, "_cache", cache_late),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_golden_files_notice_a_rule_that_is_only_a_little_different(
    owner: type, rule: str, mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, rule, mutant)
    assert any(differs(golden.read(f"small-{seed}", workload(seed))) for seed in golden.SMALL_SEEDS)


def differs(vllm: golden.Golden) -> bool:
    made: Workload = vllm.workload
    steps = scheduler.simulate(*made)
    try:
        return any(ours != theirs for ours, theirs in zip(steps, vllm.kept, strict=True))
    except (AssertionError, KeyError, IndexError, ValueError):  # a mutant may also break down
        return True


def test_a_golden_file_of_another_workload_is_refused() -> None:
    with pytest.raises(ValueError, match="small-0: the workload has changed"):
        golden.read("small-0", workload(1))
