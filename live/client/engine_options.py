"""What an engine that we start is asked to be. Whatever is None is left to vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...policies.run_settings import STALL_S
from ...traces.errors import EngineError
from .start.available_memory import usual_host_gib

TINY = "tiny"  # the model that needs no weights, see `live.client.start.tiny_model`
CPU_BLOCK_TOKENS = 32  # what vLLM's attention for CPUs works in
CPU_HOST_GIB = 1.0  # memory for copies, where nobody said how much: many times what a CPU computes in a minute
CPU_ENVIRONMENT: Mapping[str, str] = {  # what we choose for an engine without a GPU where the user has not
    "OMP_NUM_THREADS": "1",  # threads that spin while another process has the core make steps many times slower
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, where nobody said how many blocks
}

COMPILE = ("none", "graphs", "full")  # eager; CUDA graphs of decode steps alone; torch.compile and all CUDA graphs
MODEL_RUNNERS: Mapping[str, str] = {"v1": "0", "v2": "1"}  # and what vLLM calls them in MODEL_RUNNER
MODEL_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
GRAPH_STEP_TOKENS = 8  # between the sizes of steps that have a CUDA graph, beyond the smallest: as vLLM has them


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """A model, and how vLLM is to serve it."""

    model: str = TINY  # a name, a folder, or TINY
    gpu_blocks: int | None = None  # usable ones: vLLM's null block is not among them
    block_tokens: int | None = None
    host_gib: float | None = None  # memory for copies of blocks, in GiB; None: by what is available, see `settled`
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
    asynchronous: bool | None = None  # whether a step is scheduled while the one before it runs
    compile: str | None = None  # one of COMPILE; None: `none` where there is no GPU, else vLLM's choice, `full`
    largest_graph_tokens: int | None = None  # of a step that has a CUDA graph; None: as many as `max_running` needs
    model_runner: str | None = None  # one of MODEL_RUNNERS
    stall_s: float = STALL_S  # a run in which nothing happens for so long, though calls wait, has failed
    verbose: bool = False  # whether vLLM's log is shown


def settled(options: EngineOptions, *, on_cpu: bool) -> EngineOptions:
    """With what we choose ourselves where nobody asked for anything.

    The engine that is started here and the server whose command is printed are so one and the same. `on_cpu`: whether
    the vLLM is the one for machines without a GPU. Raises `EngineError` for options that contradict each other, or
    mean nothing there.
    """
    _check(options, on_cpu)
    options = replace(options, dtype="float32" if options.model == TINY and options.dtype == "auto" else options.dtype)
    if not on_cpu:
        gib = usual_host_gib(options.tensor_parallel_size) if options.host_gib is None else options.host_gib
        return replace(options, host_gib=gib)
    return replace(
        options,
        host_gib=CPU_HOST_GIB if options.host_gib is None else options.host_gib,
        block_tokens=CPU_BLOCK_TOKENS if options.block_tokens is None else options.block_tokens,
        compile="none" if options.compile is None else options.compile,  # compiling takes half a minute
    )


def compilation(options: EngineOptions) -> dict[str, object]:
    """vLLM's `compilation_config`, as far as it is not vLLM's own; empty if it is.

    With CUDA graphs of decode steps alone, a graph beyond `max_running` would never be used.
    """
    told: dict[str, object] = {}
    largest = options.largest_graph_tokens
    if options.compile == "graphs":
        told = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
        largest = largest or options.max_running
    if largest is not None:
        told["cudagraph_capture_sizes"] = graph_sizes(largest)
    return told


def graph_sizes(largest_tokens: int) -> list[int]:
    """The sizes of steps that get a CUDA graph: a smaller step is filled up to the next of them."""
    sizes = {1, 2, 4, *range(GRAPH_STEP_TOKENS, largest_tokens, GRAPH_STEP_TOKENS), largest_tokens}
    return sorted(size for size in sizes if size <= largest_tokens)


def _check(options: EngineOptions, on_cpu: bool) -> None:
    for name, value, known in (
        ("--compile", options.compile, COMPILE),
        ("--model-runner", options.model_runner, tuple(MODEL_RUNNERS)),
    ):
        if value is not None and value not in known:
            raise EngineError(f"{name} {value}: expected one of {', '.join(known)}")
    if on_cpu and options.compile == "graphs":
        raise EngineError("--compile graphs: this vLLM is for machines without a GPU, which have no CUDA graphs")
    if options.largest_graph_tokens is not None and (on_cpu or options.compile == "none"):
        why = "in a vLLM for machines without a GPU" if on_cpu else "with --compile none"
        raise EngineError(f"--largest-graph {options.largest_graph_tokens}: there are no CUDA graphs {why}")
