"""Machines derived from hardware figures and model shapes.

The derivation is a roofline: linear layers cost the larger of their arithmetic and the reading of their weights, and
every layer has a fixed cost. docs/machines.md holds each formula, its source and the error to expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from .machine import Machine

BF16_BYTES = 2
GIB = 2**30

CUDA_SHARE = 0.99  # of a data sheet's memory that CUDA reports: about 139 of 141 on an H200, 79.2 of 80 on an A100
MEMORY_SHARE = 0.9  # vLLM's default gpu_memory_utilization
RESERVE_GIB = 3.15  # activations, CUDA context: what the published system left of 0.5 * 79.2 GiB beside weights and KV
ATTENTION_SHARE = 0.59  # prefill attention's FLOP/s over the linear layers': 131 of 222 TFLOP/s in the A100 fit
NVLINK_SHARE = 0.75  # of a data sheet's NVLink rate that an all-reduce reaches: an assumption, not measured
ALL_REDUCE_S = 15e-6  # latency of an all-reduce: an assumption, not measured
HOST_GIB_PER_GPU = 100.0  # a choice: the published system's pool
COPY_S = 0.0005  # a copy job's launch and completion: a choice, not measured
CLIENT_S = 0.05  # the lower end of the 50 to 100 ms seen on the published system


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: memory, link and NVLink by data sheet; the rates and the layer cost as achieved by an engine."""

    title: str
    memory_gib: float  # data sheets write GB and mean GiB
    memory_tbps: float  # achieved, TB/s
    tflops: float  # achieved by linear layers in bf16, TFLOP/s
    layer_s: float  # fixed cost of a layer: launches and what does not scale
    link_gbps: float  # achieved to the host, each way
    nvlink_gbps: float  # data sheet, each way


@dataclass(frozen=True, slots=True)
class Model:
    """A dense transformer with grouped-query attention and a gated MLP, in bf16."""

    title: str
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    params: float
    max_context_tokens: int

    @property
    def weight_bytes(self) -> float:
        return BF16_BYTES * self.params

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16_BYTES

    @property
    def layer_params(self) -> int:
        """Weights that every token is multiplied with: projections and MLP of all layers."""
        projections = 2 * self.hidden * (self.q_heads + self.kv_heads) * self.head_dim
        return self.layers * (projections + 3 * self.hidden * self.ffn)

    @property
    def head_params(self) -> int:
        """Weights of the output head: read in every step, but multiplied only with tokens that are sampled."""
        return self.hidden * self.vocab


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        # Data sheet 2.04 TB/s, 312 TFLOP/s; achieved: fits to published operator profiles.
        "a100": Gpu("A100-SXM4-80G", 80.0, 1.75, 222.0, 0.148e-3, 25.0, 300.0),
        # An A100 with less NVLink. The link's 25 GB/s is what the authors of the published system measured.
        "a800": Gpu("A800-SXM4-80G", 80.0, 1.75, 222.0, 0.148e-3, 25.0, 200.0),
        # Data sheet 3.35 TB/s, 989 TFLOP/s; achieved: fits as above. Link: twice PCIe 4's, not measured.
        "h100": Gpu("H100-SXM-80G", 80.0, 3.2, 630.0, 0.102e-3, 50.0, 450.0),
        # Data sheet 4.8 TB/s, 989 TFLOP/s; achieved: 4.3 TB/s seen in a device copy; the chip computes as an H100's.
        "h200": Gpu("H200-SXM-141G", 141.0, 4.3, 630.0, 0.102e-3, 50.0, 450.0),
        # Data sheet 8 TB/s, 2,250 TFLOP/s; achieved: the shares of an H200 (0.90) and an H100 (0.64), not measured.
        "b200": Gpu("B200-SXM-180G", 180.0, 7.2, 1433.0, 0.102e-3, 50.0, 900.0),
    }
)

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "qwen2.5-14b": Model("Qwen2.5-14B", 48, 40, 8, 128, 5120, 13824, 152_064, 14.77e9, 32_768),
        "llama-3.1-8b": Model("Llama-3.1-8B", 32, 32, 8, 128, 4096, 14336, 128_256, 8.03e9, 131_072),
        "llama-3.3-70b": Model("Llama-3.3-70B", 80, 64, 8, 128, 8192, 28672, 128_256, 70.55e9, 131_072),
        "qwen3-32b": Model("Qwen3-32B", 64, 64, 8, 128, 5120, 25600, 151_936, 32.76e9, 40_960),
    }
)

# The published system. Unlike the others it is no derivation: memory as published, step costs fitted to its
# measurements. docs/machines.md holds them against what the data sheet gives.
PUBLISHED = Machine(
    name="a800-qwen2.5-14b",
    gpu_blocks=3049,
    kv_bytes_per_token=196_608,
    host_gib=100.0,
    max_context_tokens=32_768,
    step_s=20.6e-3,
    prefill_token_s=129e-6,
    decode_call_s=54e-6,
    context_token_s=120e-9,
    link_gbps=25.0,
    copy_s=0.0005,
    client_s=0.075,
)


def derive(gpu: Gpu, model: Model, gpus: int, name: str, memory_share: float = MEMORY_SHARE) -> Machine:
    """`model` on `gpus` GPUs by tensor parallelism, at `memory_share` of their memory.

    Linear layers: 2 FLOPs a weight and token, at least the time to read the weights once. Attention: 4 FLOPs a head
    element and pair of tokens. Decoding: the reading of the context's KV. Two all-reduces a layer by the ring formula,
    2 (n - 1) / n of the data over the link, not overlapped. Raises MachineError if no block fits.
    """
    bytes_per_s, flops = gpus * gpu.memory_tbps * 1e12, gpus * gpu.tflops * 1e12
    all_reduce_bytes = 2 * model.layers * 2 * (gpus - 1) / gpus * model.hidden * BF16_BYTES
    all_reduce_token_s = all_reduce_bytes / (NVLINK_SHARE * gpu.nvlink_gbps * 1e9)
    all_reduce_step_s = 2 * model.layers * ALL_REDUCE_S if gpus > 1 else 0.0
    return Machine(
        name=name,
        gpu_blocks=_gpu_blocks(gpu, model, gpus, memory_share),
        kv_bytes_per_token=model.kv_bytes_per_token,
        host_gib=HOST_GIB_PER_GPU * gpus,
        max_context_tokens=model.max_context_tokens,
        step_s=model.layers * gpu.layer_s + all_reduce_step_s,
        floor_s=BF16_BYTES * (model.layer_params + model.head_params) / bytes_per_s,
        token_s=2 * model.layer_params / flops,
        prefill_token_s=all_reduce_token_s,
        attention_s=4 * model.layers * model.q_heads * model.head_dim / (ATTENTION_SHARE * flops),
        decode_call_s=2 * model.head_params / flops + all_reduce_token_s,
        context_token_s=model.kv_bytes_per_token / bytes_per_s,
        link_gbps=gpu.link_gbps * gpus,
        copy_s=COPY_S,
        client_s=CLIENT_S,
    )


def _gpu_blocks(gpu: Gpu, model: Model, gpus: int, memory_share: float) -> int:
    """Usable blocks of 16 tokens. Every GPU holds its share of each block; one block is vLLM's null block."""
    room_bytes = gpus * (gpu.memory_gib * CUDA_SHARE * memory_share - RESERVE_GIB) * GIB - model.weight_bytes
    return int(room_bytes // (model.kv_bytes_per_token * 16)) - 1


def gpus_needed(gpu: Gpu, model: Model) -> int:
    """The fewest GPUs, a power of two, that hold the weights and one context of full length."""
    gpus = 1
    while _gpu_blocks(gpu, model, gpus, MEMORY_SHARE) * 16 < model.max_context_tokens:
        gpus *= 2
    return gpus


@cache
def presets() -> Mapping[str, Machine]:
    """Every preset by name, in the order of `GPUS` and `MODELS`."""
    found = {}
    for gpu_name, gpu in GPUS.items():
        for model_name, model in MODELS.items():
            gpus = gpus_needed(gpu, model)
            name = f"{gpu_name}-{model_name}" + (f"-tp{gpus}" if gpus > 1 else "")
            found[name] = PUBLISHED if name == PUBLISHED.name else derive(gpu, model, gpus, name)
    return MappingProxyType(found)


def preset_lines() -> dict[str, str]:
    """Every preset's name and what it is, in one line."""
    return {name: _line(machine) for name, machine in presets().items()}


def preset_table() -> str:
    """The presets as a Markdown table, for docs/machines.md."""
    headings = ("machine", "blocks", "KV bytes a token", "host GiB", "context", *_COST_HEADINGS, "link GB/s")
    rows = [_markdown(headings), "|---" + "|--:" * (len(headings) - 1) + "|"]
    return "\n".join(rows + [_row(machine) for machine in presets().values()]) + "\n"


def published_table() -> str:
    """The published system's fitted step costs beside those that `derive` gives it, as a Markdown table."""
    derived = derive(GPUS["a800"], MODELS["qwen2.5-14b"], 1, "derived", memory_share=0.5)
    headings = (*_COST_HEADINGS, "8 calls decode at 9,000 tokens", "2,000 tokens prefill behind 7,000")
    columns = [(*_costs(machine), *_typical_steps(machine)) for machine in (PUBLISHED, derived)]
    rows = [_markdown(cells) for cells in zip(headings, *columns, strict=True)]
    return "\n".join([_markdown(("", "fitted", "derived")), "|---|--:|--:|", *rows]) + "\n"


def _typical_steps(machine: Machine) -> tuple[str, str]:
    timing = machine.timing()
    decode_ps, prefill_ps = timing.of_step((), [9_000] * 8), timing.of_step([(2_000, 7_000)], ())
    return f"{decode_ps / 1e9:.3g} ms", f"{prefill_ps / 1e9:.3g} ms"


def _line(machine: Machine) -> str:
    gpu_name, _, rest = machine.name.partition("-")
    model_name, _, gpus = rest.partition("-tp")
    what = f"{gpus + ' x ' if gpus else ''}{GPUS[gpu_name].title}, {MODELS[model_name].title}"
    published = ", as published: fitted to measurements" if machine is PUBLISHED else ""
    return f"{what}: {machine.gpu_blocks:,} blocks of {machine.block_tokens} tokens{published}"


def _row(machine: Machine) -> str:
    memory = (f"{machine.gpu_blocks:,}", f"{machine.kv_bytes_per_token:,}", f"{machine.host_gib:g}")
    context = f"{machine.max_context_tokens:,}"
    return _markdown((f"`{machine.name}`", *memory, context, *_costs(machine), f"{machine.link_gbps:g}"))


_COST_HEADINGS = ("step", "floor", "token", "prefill token", "attention", "decoding call", "context token")


def _costs(machine: Machine) -> tuple[str, ...]:
    """What a step is made of, in the order of `_COST_HEADINGS`."""
    return (
        f"{machine.step_s * 1e3:.3g} ms",
        f"{machine.floor_s * 1e3:.3g} ms",
        f"{machine.token_s * 1e6:.3g} µs",
        f"{machine.prefill_token_s * 1e6:.3g} µs",
        f"{machine.attention_s * 1e9:.3g} ns",
        f"{machine.decode_call_s * 1e6:.3g} µs",
        f"{machine.context_token_s * 1e9:.3g} ns",
    )


def _markdown(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
