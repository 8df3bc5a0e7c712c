"""Models with several KV cache groups on vLLM's real scheduler in virtual time, with workers that check contents."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import Adversary, hard_workload
from differential.workloads import Workload
from mover import Mover
from untied import POLICIES
from virtual_engine import Virtual, scheduler_of

from tokencake.live.engine.memory.gpu_pool import Source
from tokencake.live.engine.memory.grouped_gpu_pool import GroupedGpuPool, gpu_pool
from tokencake.live.engine.memory.page_rules import PageRule, Rules
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.machine.kv_groups import groups_of
from tokencake.sim.machine.machine import Machine

SHAPES = (
    "full+sliding_window:10",
    "6*sliding_window:6+full",
    "full+3*chunked_local:CHUNK",
    "3*mamba+full",
    "full+mamba+sliding_window:9",
)
KINDS = ("OffloadFinished", "HostDropped", "UploadTaken", "UploadCancelled", "UploadReleased", "LoadFinished",
         "StoreFinished", "StoreRefused", "CallPreempted")  # fmt: skip


def grouped(workload: Workload, shape: str, seed: int) -> Workload:
    """The same on a model with several groups, whose largest call fills the memory, or nearly."""
    rng = random.Random(f"{shape} {seed}")
    applications, machine = workload
    size = machine.block_tokens
    groups = groups_of(shape.replace("CHUNK", str(2 * size)))
    longest = max(call.prompt_tokens + call.max_output_tokens for app in applications for call in app.calls)
    # Of a state a call holds that before, that of the step under way, and the one that it writes.
    least = sum(3 if group.kind == "mamba" else -(-longest // size) + 1 for group in groups)
    sparse = any(group.kind in ("sliding_window", "mamba") for group in groups)
    machine = replace(
        machine,
        kv_groups=groups,
        prefix_cache_retention_interval=rng.choice((0, 0, -1, 2 * size)) if sparse else 0,
        gpu_blocks=least + rng.choice((0, 1, least // 2, least)),
        host_gib=machine.host_gib * len(groups),
    )
    return Workload(applications, machine)


def play(workload: Workload, settings: RunSettings, policy: object = None) -> Counter[str]:
    """Play it to its end: how often which fact came."""
    applications, machine = workload
    engine, seen = Virtual(machine), Counter[str]()
    if policy is not None:
        engine.adapter.load_policy = lambda spec, seed: policy  # type: ignore[assignment,return-value]
    engine.play(applications, settings, [lambda fact: seen.update([type(fact).__name__])])
    assert engine.adapter.errors == []
    assert engine.leaked_blocks() == 0
    assert engine.adapter.copies.host_free == machine.host_blocks
    return seen


def test_whatever_a_policy_does_no_token_is_computed_on_a_wrong_page() -> None:
    """And no page is lost, on either side."""
    seen: Counter[str] = Counter()
    for seed in range(80):
        applications, machine = grouped(hard_workload(seed), SHAPES[seed % len(SHAPES)], seed)
        if seed % 2:
            seen += play(Workload(applications, machine), RunSettings(), Adversary(seed))
        else:
            quick = replace(machine, copy_s=0.0, link_gbps=10.0, host_gib=40 * machine.block_bytes / 2**30)
            seen += play(Workload(applications, quick), RunSettings(), Mover(seed))
    assert not [kind for kind in KINDS if not seen[kind]], seen


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_made_for_one_group_run_unchanged(policy: str) -> None:
    for seed, shape in enumerate(SHAPES):
        applications, machine = grouped(hard_workload(seed + 100), shape, seed)
        play(Workload(applications, machine), RunSettings(policy=policy, costs=machine.beliefs()))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hit_ends_where_vllm_says(shape: str) -> None:
    """Whichever pages are cached."""
    rng = random.Random(shape)
    for seed in range(40):
        machine = replace(grouped(hard_workload(seed), shape, seed).machine, gpu_blocks=200)
        manager = scheduler_of(machine).kv_cache_manager
        gpu = gpu_pool(manager.block_pool, rules_of(machine))
        assert isinstance(gpu, GroupedGpuPool)
        context = Source([f"block {at}".encode() for at in range(12)])
        share = rng.choice((0.5, 0.8, 0.95))
        cached = [(group, at) for group in range(len(machine.kv_groups)) for at in range(12) if rng.random() < share]
        gpu.register_pages(context, gpu.take(len(cached)), cached)
        for upto in range(13):
            blocks, tokens, _ = manager.coordinator.find_longest_cache_hit(
                context.block_hashes, upto * gpu.block_tokens
            )
            assert gpu.hit(context.block_hashes, upto) * gpu.block_tokens == tokens
            held = [page for of_group in reversed(blocks) for page in of_group if not page.is_null]
            assert gpu.pages(context.block_hashes, tokens // gpu.block_tokens) == held


def rules_of(machine: Machine) -> Rules:
    return [PageRule(group.kind, machine.block_tokens, group.window_tokens) for group in machine.kv_groups]  # type: ignore[arg-type]
