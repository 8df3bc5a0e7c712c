"""Models whose layers are not alike: what their blocks are, and which of them are refused."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

import torch
from virtual_engine import vllm_config
from vllm.v1.core.kv_cache_utils import generate_scheduler_kv_cache_config
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec, MLAAttentionSpec
from vllm_grouping import get_kv_cache_config_from_groups, get_kv_cache_groups

from tokencake.live.engine.control.engine_limits import block_bytes_of_rank
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.presets import presets

MACHINE = presets()["a800-qwen2.5-14b"]
BLOCK_TOKENS = MACHINE.block_tokens


def kv_cache(layers: dict[str, KVCacheSpec], machine: Machine = MACHINE) -> tuple[KVCacheConfig, KVCacheConfig]:
    """What vLLM tells the scheduler and the workers of a model's layers, on 1 MiB of memory."""
    config = vllm_config(machine, host_gib=1.0)
    config.cache_config.kv_cache_layout = "LBNHC"
    groups = get_kv_cache_groups(config, layers)
    of_worker = get_kv_cache_config_from_groups(config, groups, 2**20)
    return generate_scheduler_kv_cache_config([of_worker]), of_worker


@pytest.mark.parametrize("first", ["latent", "indexer"])
def test_a_block_of_layers_of_several_page_sizes_has_the_bytes_of_all(first: str) -> None:
    """As of DeepSeek-V3.2: a latent vector and an indexer's key for each token. The scheduler hears of one."""
    latent = MLAAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    indexer = MLAAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=132, dtype=torch.uint8)
    sides = (
        [("latent", latent), ("indexer", indexer)] if first == "latent" else [("indexer", indexer), ("latent", latent)]
    )
    layers = {f"{layer}.{name}": spec for layer in range(3) for name, spec in sides}
    expected = 3 * (576 * 2 + 132) * BLOCK_TOKENS
    of_scheduler, of_worker = kv_cache(layers)
    (group,) = of_scheduler.kv_cache_groups
    assert group.kv_cache_spec == dict(sides)[first]
    assert block_bytes_of_rank(of_scheduler) == block_bytes_of_rank(of_worker) == expected
