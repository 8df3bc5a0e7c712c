"""Machines derived from hardware figures and model shapes.

The derivation is a roofline: linear layers cost the larger of their arithmetic and the reading of their weights, and a
step has a fixed cost. docs/machines.md holds each formula, its source and the error to expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from .machine import Machine

BF16_BYTES = 2
GIB = 2**30

CUDA_SHARE = 0.99  # of a data sheet's memory that CUDA reports: about 139 of 141 on an H200, 79.2 of 80 on an A100
MEMORY_SHARE = 0.9  # vLLM's default gpu_memory_utilization
ATTENTION_SHARE = 0.59  # prefill attention's FLOP/s over the linear layers': 131 of 222 TFLOP/s in a fit to an A100
WEIGHTS_SHARE = 0.89  # of a data sheet's bandwidth that reading weights reaches
CONTEXT_SHARE = 0.82  # of a data sheet's bandwidth that reading paged keys and values reaches
ENGINE_S = 1.2e-3  # a step of a Hopper engine beside its layers: inputs, sampling, what the host does not hide
LAYER_S = 19e-6  # a layer's fixed cost inside a CUDA graph: some seven kernels that start and drain in 2 to 3 µs each
NVLINK_SHARE = 0.63  # of a data sheet's NVLink rate, both ways together, that an all-reduce reaches
NVLINK_S = 5e-6  # an all-reduce of few bytes over NVLink, inside a CUDA graph
HOST_GIB_PER_GPU = 100.0  # a choice: the published system's pool
COPY_S = 0.0005  # a copy job's launch and completion: a choice, not measured
LOGITS_BYTES = 12.7  # an entry of the vocabulary and a running call in vLLM's trial run: three copies in fp32
VOCAB_BYTES = 0.355 * GIB / 131_072  # an entry of the vocabulary
CLIENT_S = 0.05  # the lower end of the 50 to 100 ms seen on the published system
LONGEST_AGENT_TOKENS = 32_768  # the context that a preset of a card with little memory is for
MOST_GPUS = 8  # of a preset: what one board carries


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: memory and links by data sheet; rates and fixed costs as an engine achieves them.

    With vLLM's defaults for it: tokens of a step and running calls.
    """

    title: str
    memory_gib: float  # data sheets write GB and mean GiB
    weights_tbps: float  # reading weights, TB/s
    context_tbps: float  # reading paged keys and values, TB/s
    tflops: float  # linear layers in bf16, TFLOP/s
    link_gbps: float  # to the host, each way
    peer_gbps: float  # an all-reduce, by the ring formula
    peer_s: float  # an all-reduce, whatever its size
    engine_s: float = ENGINE_S  # a step, whatever is in it
    layer_s: float = LAYER_S  # a layer, whatever is in it
    context_gib: float = 0.675  # CUDA's context, graphs and buffers of a process
    max_context_tokens: int | None = None  # of presets; None: the model's
    step_budget_tokens: int = 8192
    max_running: int = 1024


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


def _nvlink(gbps: float) -> float:
    """What an all-reduce reaches of NVLink's rate, both ways together."""
    return NVLINK_SHARE * gbps


_SMALL = {"max_context_tokens": LONGEST_AGENT_TOKENS, "step_budget_tokens": 2048, "max_running": 256}
_HOPPER_TFLOPS = 740.0  # of 989: large matrix products of this chip reach 700 to 790

_A100 = Gpu("A100-SXM4-80G", 80.0, 1.66, 1.67, 250.0, 25.0, _nvlink(600), NVLINK_S, engine_s=2.0e-3)
_H100 = Gpu(
    "H100-SXM-80G", 80.0, WEIGHTS_SHARE * 3.35, CONTEXT_SHARE * 3.35, _HOPPER_TFLOPS, 50.0, _nvlink(900), NVLINK_S
)

GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        # Data sheet 2.04 TB/s, 312 TFLOP/s, NVLink 600 GB/s.
        "a100": replace(_A100, step_budget_tokens=2048, max_running=256),
        # An A100 with less NVLink. The link's 25 GB/s is what the authors of the published system measured.
        "a800": replace(_A100, title="A800-SXM4-80G", peer_gbps=_nvlink(400)),
        # Data sheet 3.35 TB/s, 989 TFLOP/s, NVLink 900 GB/s. Link to the host: twice PCIe 4's, not measured.
        "h100": _H100,
        # Data sheet 4.8 TB/s; otherwise an H100's chip. Nothing was measured.
        "h200": replace(
            _H100,
            title="H200-SXM-141G",
            memory_gib=141.0,
            weights_tbps=WEIGHTS_SHARE * 4.8,
            context_tbps=CONTEXT_SHARE * 4.8,
        ),
        # Data sheet 8 TB/s, 2,250 TFLOP/s, NVLink 1,800 GB/s, by an H100's shares. Nothing was measured.
        "b200": Gpu(
            "B200-SXM-180G",
            180.0,
            WEIGHTS_SHARE * 8,
            CONTEXT_SHARE * 8,
            _HOPPER_TFLOPS / 989 * 2250,
            50.0,
            _nvlink(1800),
            NVLINK_S,
        ),
        # Data sheet 0.864 TB/s, 362 TFLOP/s, by an H100's shares; no peer access, so all-reduces go over PCIe 4.
        "l40s": Gpu(
            "L40S-48G",
            48.0,
            WEIGHTS_SHARE * 0.864,
            CONTEXT_SHARE * 0.864,
            _HOPPER_TFLOPS / 989 * 362,
            25.0,
            15.0,
            30e-6,
            context_gib=0.39,
            **_SMALL,
        ),
        # Data sheet 1.008 TB/s, 165 TFLOP/s with sums in fp32, of which 0.9 are reached (measured); 23.5 GiB by CUDA.
        "rtx4090": Gpu(
            "RTX-4090-24G",
            23.75,
            WEIGHTS_SHARE * 1.008,
            CONTEXT_SHARE * 1.008,
            148.0,
            25.0,
            15.0,
            70e-6,
            context_gib=0.39,
            **_SMALL,
        ),
        # Data sheet 1.792 TB/s, 504 TFLOP/s; this architecture's kernels reach less and start slower (measured).
        "rtxpro6000": Gpu(
            "RTX-PRO-6000-96G",
            96.0,
            WEIGHTS_SHARE * 1.792,
            1.254,
            302.0,
            50.0,
            18.0,
            50e-6,
            layer_s=72e-6,
            context_gib=0.39,
        ),
    }
)

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "qwen2.5-14b": Model("Qwen2.5-14B", 48, 40, 8, 128, 5120, 13824, 152_064, 14.77e9, 32_768),
        "qwen2.5-7b": Model("Qwen2.5-7B", 28, 28, 4, 128, 3584, 18944, 152_064, 7.615e9, 32_768),
        "llama-3.1-8b": Model("Llama-3.1-8B", 32, 32, 8, 128, 4096, 14336, 128_256, 8.03e9, 131_072),
        "llama-3.3-70b": Model("Llama-3.3-70B", 80, 64, 8, 128, 8192, 28672, 128_256, 70.55e9, 131_072),
        "qwen3-14b": Model("Qwen3-14B", 40, 40, 8, 128, 5120, 17408, 151_936, 14.768e9, 40_960),
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


def derive(
    gpu: Gpu,
    model: Model,
    gpus: int,
    name: str,
    *,
    memory_share: float = MEMORY_SHARE,
    step_budget_tokens: int | None = None,
    max_running: int | None = None,
) -> Machine:
    """`model` on `gpus` GPUs by tensor parallelism, at `memory_share` of their memory.

    Linear layers: 2 FLOPs a weight and token, at least the time to read the weights once. Attention: 4 FLOPs a head
    element and pair of tokens. Decoding: the reading of the context's KV. Two all-reduces a layer by the ring formula,
    2 (n - 1) / n of the data over the link, not overlapped. `step_budget_tokens` and `max_running` are vLLM's defaults
    for the GPU unless given. Raises MachineError if no block fits.
    """
    budget_tokens, running = step_budget_tokens or gpu.step_budget_tokens, max_running or gpu.max_running
    all_reduce_bytes = 2 * model.layers * 2 * (gpus - 1) / gpus * model.hidden * BF16_BYTES
    all_reduce_token_s = all_reduce_bytes / (gpu.peer_gbps * 1e9)
    all_reduce_step_s = 2 * model.layers * gpu.peer_s if gpus > 1 else 0.0
    flops = gpus * gpu.tflops * 1e12
    blocks = _gpu_blocks(gpu, model, gpus, memory_share, budget_tokens, running)
    return Machine(
        name=name,
        gpu_blocks=blocks,
        kv_bytes_per_token=model.kv_bytes_per_token,
        host_gib=HOST_GIB_PER_GPU * gpus,
        max_context_tokens=_longest_tokens(gpu, model),
        step_budget_tokens=budget_tokens,
        max_running=running,
        step_s=gpu.engine_s + model.layers * gpu.layer_s + all_reduce_step_s,
        floor_s=BF16_BYTES * (model.layer_params + model.head_params) / (gpus * gpu.weights_tbps * 1e12),
        token_s=2 * model.layer_params / flops,
        prefill_token_s=all_reduce_token_s,
        attention_s=4 * model.layers * model.q_heads * model.head_dim / (ATTENTION_SHARE * flops),
        decode_call_s=2 * model.head_params / flops + all_reduce_token_s,
        context_token_s=model.kv_bytes_per_token / (gpus * gpu.context_tbps * 1e12),
        link_gbps=gpu.link_gbps * gpus,
        copy_s=COPY_S,
        client_s=CLIENT_S,
    )


def _gpu_blocks(
    gpu: Gpu, model: Model, gpus: int, memory_share: float, step_budget_tokens: int, max_running: int
) -> int:
    """Usable blocks of 16 tokens. Every GPU holds its share of each block; one block is vLLM's null block."""
    reserve_bytes = _reserve_bytes(gpu, model, step_budget_tokens, max_running)
    room_bytes = gpus * (gpu.memory_gib * CUDA_SHARE * memory_share * GIB - reserve_bytes) - model.weight_bytes
    return int(room_bytes // (model.kv_bytes_per_token * 16)) - 1


def _reserve_bytes(gpu: Gpu, model: Model, step_budget_tokens: int, max_running: int) -> float:
    """What a GPU holds beside weights and blocks, as vLLM's trial run at its start finds it.

    The process itself; hidden states and residuals of a step's tokens; what grows with the vocabulary, for the sampler:
    a few copies of the logits of all calls that may run, and an amount of its own. Fitted to eight block counts.
    """
    hidden_states = 2 * step_budget_tokens * model.hidden * BF16_BYTES
    logits = LOGITS_BYTES * max_running * model.vocab
    return gpu.context_gib * GIB + VOCAB_BYTES * model.vocab + hidden_states + logits


def _longest_tokens(gpu: Gpu, model: Model) -> int:
    """The longest context of a preset."""
    return min(model.max_context_tokens, gpu.max_context_tokens or model.max_context_tokens)


def gpus_needed(gpu: Gpu, model: Model) -> int | None:
    """The fewest GPUs, a power of two, that hold the weights and one context of full length; None if no board does."""
    gpus = 1
    while gpus <= MOST_GPUS:
        blocks = _gpu_blocks(gpu, model, gpus, MEMORY_SHARE, gpu.step_budget_tokens, gpu.max_running)
        if blocks * 16 >= _longest_tokens(gpu, model):
            return gpus
        gpus *= 2
    return None


@cache
def presets() -> Mapping[str, Machine]:
    """Every preset by name, in the order of `GPUS` and `MODELS`."""
    found = {}
    for gpu_name, gpu in GPUS.items():
        for model_name, model in MODELS.items():
            gpus = gpus_needed(gpu, model)
            if gpus is None:
                continue
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


def gpu_table() -> str:
    """The hardware figures that `derive` is given, as a Markdown table, for docs/machines.md."""
    headings = ("", "memory", "weights TB/s", "context TB/s", "TFLOP/s", "a step", "a layer", "all-reduce", "process")
    rows = [_markdown((*headings, "link GB/s")), "|---" + "|--:" * len(headings) + "|"]
    return "\n".join(rows + [_gpu_row(gpu) for gpu in GPUS.values()]) + "\n"


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


def _gpu_row(gpu: Gpu) -> str:
    rates = (f"{gpu.memory_gib:g} GiB", f"{gpu.weights_tbps:.3g}", f"{gpu.context_tbps:.3g}", f"{gpu.tflops:,.0f}")
    fixed = (f"{gpu.engine_s * 1e3:.2g} ms", f"{gpu.layer_s * 1e6:.2g} µs")
    all_reduce = f"{gpu.peer_s * 1e6:.2g} µs, {gpu.peer_gbps:.0f} GB/s"
    return _markdown((gpu.title, *rates, *fixed, all_reduce, f"{gpu.context_gib:.2g} GiB", f"{gpu.link_gbps:g}"))


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
