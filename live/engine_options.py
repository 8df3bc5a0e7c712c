"""What an engine that we start is asked to be. Whatever is None is left to vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

TINY = "tiny"  # the model that needs no weights, see `live.tiny`
CPU_BLOCK_TOKENS = 32  # what vLLM's attention for CPUs works in
CPU_ENVIRONMENT: Mapping[str, str] = {  # what we choose for an engine without a GPU where the user has not
    "OMP_NUM_THREADS": "1",  # threads that spin while another process has the core make steps many times slower
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, where nobody said how many blocks
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """A model, and how vLLM is to serve it."""

    model: str = TINY  # a name, a folder, or TINY
    gpu_blocks: int | None = None  # usable ones: vLLM's null block is not among them
    block_tokens: int | None = None
    host_gib: float = 1.0  # memory for copies of blocks, in GiB
    link_gbps: float | None = None  # no copy goes faster than this, in 1e9 bytes a second; None: as fast as it goes
    max_context_tokens: int | None = None  # of a prompt and its answer
    step_budget_tokens: int | None = None  # vLLM's max_num_batched_tokens
    max_running: int | None = None  # vLLM's max_num_seqs
    long_prefill_token_threshold: int | None = None  # vLLM's
    dtype: str = "auto"
    load_format: str = "auto"  # `dummy` for a folder without weights
    seed: int = 0
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    attention_backend: str | None = None  # vLLM's name of one
    enforce_eager: bool | None = None  # None: what is fastest to start where there is no GPU, else vLLM's choice
    verbose: bool = False  # whether vLLM's log is shown


def settled(options: EngineOptions, *, on_cpu: bool) -> EngineOptions:
    """With what we choose ourselves where nobody asked for anything.

    The engine that is started here and the server whose command is printed are so one and the same. `on_cpu`: whether
    the vLLM is the one for machines without a GPU.
    """
    dtype = "float32" if options.model == TINY and options.dtype == "auto" else options.dtype
    if not on_cpu:
        return replace(options, dtype=dtype)
    return replace(
        options,
        dtype=dtype,
        block_tokens=CPU_BLOCK_TOKENS if options.block_tokens is None else options.block_tokens,
        enforce_eager=True if options.enforce_eager is None else options.enforce_eager,  # compiling takes half a minute
    )
