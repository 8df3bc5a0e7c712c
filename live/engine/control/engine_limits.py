"""What an engine is: its sizes, how many blocks the host holds, and whether its kind is supported."""

from __future__ import annotations

from ....traces.errors import EngineError
from ..vllm_surface import VllmConfiguration, VllmKVCacheConfig, VllmScheduler


def block_bytes_of_rank(kv_cache_config: VllmKVCacheConfig) -> int:
    """Bytes of one block on one rank: all layers of a group. Groups lie over each other in the same memory.

    Told by the memory itself: a scheduler sees of layers of several page sizes only one.
    """
    tensors = kv_cache_config.kv_cache_tensors
    if tensors:
        sizes = [tensor.size for tensor in tensors]
        in_one = hasattr(tensors[0], "layers")  # then each says the size of all of them together
        return (max(sizes) if in_one else sum(sizes)) // kv_cache_config.num_blocks
    groups = kv_cache_config.kv_cache_groups  # a scheduler without workers
    return max(int(group.kv_cache_spec.page_size_bytes) * len(group.layer_names) for group in groups)


def ranks(vllm_config: VllmConfiguration) -> int:
    """Workers that hold a shard of each block."""
    return int(vllm_config.parallel_config.world_size)


def host_slots(vllm_config: VllmConfiguration, kv_cache_config: VllmKVCacheConfig) -> int:
    """Blocks that fit into the host memory of the connector's `host_gib`, on all ranks together."""
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    host_gib = extra.get("host_gib", 4.0)
    if isinstance(host_gib, bool) or not isinstance(host_gib, int | float) or not 0 <= host_gib < 2**20:
        raise EngineError(
            f"kv_connector_extra_config: host_gib: expected a number of GiB, at least 0, got {host_gib!r}"
        )
    return int(host_gib * 2**30) // (block_bytes_of_rank(kv_cache_config) * ranks(vllm_config))


def check_supported(scheduler: VllmScheduler) -> None:
    """Raise `EngineError` for an engine whose blocks cannot be moved by their hashes alone."""
    config = scheduler.vllm_config
    if scheduler.hash_block_size != scheduler.block_size:
        raise EngineError(
            f"hash_block_size {scheduler.hash_block_size}: expected the block size, {scheduler.block_size}"
        )
    if not scheduler.cache_config.enable_prefix_caching:
        raise EngineError("prefix caching is off: expected it on, policies are about what is cached")
    if scheduler.policy.value != "fcfs":
        raise EngineError(
            f"vLLM's scheduling policy {scheduler.policy.value!r}: expected fcfs, policies give the order"
        )
    parallel = config.parallel_config
    if parallel.data_parallel_size > 1 or parallel.data_parallel_index > 0:  # dense models' engines are told of size 1
        raise EngineError("data parallelism: expected 1, each engine would need a policy of its own")


def longest_context_tokens(scheduler: VllmScheduler) -> int:
    """The longest prompt and answer that vLLM takes and the blocks hold.

    Up to 0.28 vLLM fits its own limit to all blocks, the null block among them: a call of that length waits for ever.
    """
    usable_blocks = int(scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1
    return min(int(scheduler.max_model_len), usable_blocks * int(scheduler.block_size))


def about(scheduler: VllmScheduler, version: str) -> dict[str, object]:
    """What clients are told of the engine, as plain data."""
    config = scheduler.vllm_config
    return {
        "vllm": version,
        "model": config.model_config.model,
        "served_model": config.model_config.served_model_name,
        "block_tokens": scheduler.block_size,
        "block_bytes": block_bytes_of_rank(scheduler.kv_cache_config) * ranks(config),
        "max_context_tokens": longest_context_tokens(scheduler),
        "step_budget_tokens": scheduler.max_num_scheduled_tokens,
        "max_running": scheduler.max_num_running_reqs,
        "long_prefill_token_threshold": config.scheduler_config.long_prefill_token_threshold,
        "asynchronous": bool(config.scheduler_config.async_scheduling),
    }
