"""vLLM's KV cache groups for those of a machine: a layer each, as small as can be."""

from __future__ import annotations

import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import Machine


def kv_group_specs(machine: Machine) -> list[KVCacheGroupSpec]:
    return [
        KVCacheGroupSpec([f"layer-{at}"], _spec(group, machine.block_tokens))
        for at, group in enumerate(machine.kv_groups)
    ]


def retention(machine: Machine) -> int | None:
    """As vLLM says it."""
    interval = machine.prefix_cache_retention_interval
    return None if interval < 0 else interval


def _spec(group: KvGroup, block_tokens: int) -> KVCacheSpec:
    if group.kind == "mamba":
        state = ((2 * block_tokens,),)  # as many numbers as the keys and values of a block
        return MambaSpec(block_size=block_tokens, shapes=state, dtypes=(torch.float32,), mamba_cache_mode="align")
    layer = {"block_size": block_tokens, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    if group.kind == "sliding_window":
        return SlidingWindowSpec(**layer, sliding_window=group.window_tokens)
    if group.kind == "chunked_local":
        return ChunkedLocalAttentionSpec(**layer, attention_chunk_size=group.window_tokens)
    return FullAttentionSpec(**layer)
