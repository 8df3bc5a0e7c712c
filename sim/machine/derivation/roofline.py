"""A machine out of a model's shape and a GPU's figures.

The derivation is a roofline: linear layers cost the larger of their arithmetic and the reading of their weights, and a
step has a fixed cost. docs/machines.md holds each formula, its source and the error to expect.
"""

from __future__ import annotations

from typing import NamedTuple

from ....traces.errors import MachineError
from ..machine import Machine
from ..models.shapes import Mixer, Model
from .formats import BF16_BYTES, KV_BYTES, WEIGHT_FORMATS
from .gpus import Gpu
from .grouping import BLOCK_TOKENS, Pages, pages_of, state_bytes_of, token_bytes

GIB = 2**30

CUDA_SHARE = 0.99  # of a data sheet's memory that CUDA reports: about 139 of 141 on an H200, 79.2 of 80 on an A100
MEMORY_SHARE = 0.9  # vLLM's default gpu_memory_utilization
ATTENTION_SHARE = 0.59  # prefill attention's FLOP/s over the linear layers': 131 of 222 TFLOP/s in a fit to an A100
HOST_GIB_PER_GPU = 100.0  # a choice: the published system's pool
COPY_S = 0.0005  # a copy job's launch and completion: a choice, not measured
LOGITS_BYTES = 12.7  # an entry of the vocabulary and a running call in vLLM's trial run: three copies in fp32
VOCAB_BYTES = 0.355 * GIB / 131_072  # an entry of the vocabulary
CLIENT_S = 0.05  # the lower end of the 50 to 100 ms seen on the published system
LONGEST_PRESET_TOKENS = 262_144  # the context that a preset is for, where the model would take more
MOST_GPUS = 8  # what one board carries


class Deployment(NamedTuple):
    """A model on GPUs of one board, by tensor parallelism."""

    gpu: Gpu
    model: Model
    gpus: int
    weights: str  # of `WEIGHT_FORMATS`
    kv: str  # of `KV_BYTES`
    memory_share: float = MEMORY_SHARE
    step_budget_tokens: int = 0  # 0: vLLM's default for the GPU
    max_running: int = 0  # 0: vLLM's default for the GPU
    max_context_tokens: int = 0  # 0: the model's

    @property
    def budget_tokens(self) -> int:
        return self.step_budget_tokens or self.gpu.step_budget_tokens

    @property
    def running(self) -> int:
        return self.max_running or self.gpu.max_running

    @property
    def context_tokens(self) -> int:
        return self.max_context_tokens or preset_context_tokens(self.gpu, self.model)

    def pages(self) -> Pages:
        """The pool of its KV cache. Raises MachineError if the layers are of no kind that is simulated."""
        latent = any(mixer.latent_flops for mixer in self.model.mixers)
        block_tokens = self.gpu.latent_block_tokens if latent else BLOCK_TOKENS
        return pages_of(self.model.mixers, self.gpus, KV_BYTES[self.kv], block_tokens)

    @property
    def dense_bytes(self) -> float:
        """Bytes of the weights that every step reads, of the layers."""
        weights = WEIGHT_FORMATS[self.weights]
        return self.model.dense_params * (BF16_BYTES if weights.experts_only else weights.weight_bytes)

    @property
    def expert_bytes(self) -> float:
        return self.model.expert_params * WEIGHT_FORMATS[self.weights].weight_bytes

    @property
    def weight_bytes(self) -> float:
        """Of all weights, on all GPUs."""
        if self.model.stated_params and self.weights == "bf16":
            return BF16_BYTES * self.model.stated_params
        outer_bytes = BF16_BYTES * (self.model.head_params + self.model.embedding_params)
        return self.dense_bytes + self.expert_bytes + outer_bytes


def derive(
    gpu: Gpu,
    model: Model,
    gpus: int,
    name: str,
    *,
    weights: str | None = None,
    kv: str = "bf16",
    memory_share: float = MEMORY_SHARE,
    step_budget_tokens: int | None = None,
    max_running: int | None = None,
    max_context_tokens: int | None = None,
) -> Machine:
    """`model` on `gpus` GPUs by tensor parallelism, at `memory_share` of their memory.

    Linear layers: 2 FLOPs a weight that a token meets, at least the time to read the weights that the step's tokens
    touch. Attention: 2 FLOPs an element of a key or a value, and pair of tokens. Decoding: the reading of the context's
    KV and of the states. Two all-reduces a layer by the ring formula, 2 (n - 1) / n of the data over the link, not
    overlapped. `weights` are in the released format, `step_budget_tokens` and `max_running` vLLM's defaults for the
    GPU unless given. Raises MachineError if no block fits, or the model cannot be divided among so many.
    """
    return machine_of(
        Deployment(
            gpu,
            model,
            gpus,
            weights or model.weights,
            kv,
            memory_share,
            step_budget_tokens or 0,
            max_running or 0,
            max_context_tokens or 0,
        ),
        name,
    )


def machine_of(deployment: Deployment, name: str) -> Machine:
    """As `derive`."""
    gpu, model, gpus = deployment.gpu, deployment.model, deployment.gpus
    check_division(model, gpus)
    pages, parts = deployment.pages(), len(model.mixers) + len(model.feed_forwards)
    blocks = gpu_blocks(deployment, pages)
    if blocks < 1:
        weights_gib, memory_gib = deployment.weight_bytes / GIB, gpus * gpu.memory_gib
        raise MachineError(
            f"expected more GPUs: weights of {weights_gib:.0f} GiB leave no block of {memory_gib:.0f} GiB"
        )
    format_ = WEIGHT_FORMATS[deployment.weights]
    flops = gpus * gpu.tflops * 1e12
    dense_gain = 1.0 if format_.experts_only else format_.gain(gpu)
    all_reduce_bytes = parts * 2 * (gpus - 1) / gpus * model.hidden * BF16_BYTES
    all_reduce_token_s = all_reduce_bytes / (gpu.peer_gbps * 1e9)
    all_reduce_step_s = parts * gpu.peer_s if gpus > 1 else 0.0
    experts, experts_per_token = model.experts
    whole = [mixer for mixer in model.mixers if not mixer.sees_tokens]
    windowed = [mixer for mixer in model.mixers if mixer.sees_tokens]
    weights_rate = gpus * gpu.weights_tbps * 1e12
    return Machine(
        name=name,
        gpu_blocks=blocks,
        block_tokens=pages.block_tokens,
        kv_bytes_per_token=pages.token_bytes * gpus,
        kv_groups=pages.groups,
        host_gib=HOST_GIB_PER_GPU * gpus,
        max_context_tokens=deployment.context_tokens,
        step_budget_tokens=deployment.budget_tokens,
        max_running=deployment.running,
        step_s=gpu.engine_s + parts / 2 * gpu.layer_s + all_reduce_step_s,
        floor_s=(deployment.dense_bytes + BF16_BYTES * model.head_params) / weights_rate,
        experts_s=deployment.expert_bytes / weights_rate,
        experts=experts,
        experts_per_token=experts_per_token,
        token_s=2 * model.dense_params / (dense_gain * flops) + 2 * model.chosen_params / (format_.gain(gpu) * flops),
        prefill_token_s=all_reduce_token_s
        + sum(mixer.state_flops for mixer in model.mixers) / (ATTENTION_SHARE * flops),
        prefill_context_token_s=sum(mixer.latent_flops for mixer in model.mixers) / flops,
        attention_s=sum(mixer.pair_flops for mixer in whole) / (ATTENTION_SHARE * flops) + _index_pair_s(deployment),
        decode_call_s=2 * model.head_params / flops + all_reduce_token_s + _states_s(deployment),
        context_token_s=_context_token_s(deployment, whole) + _index_token_s(deployment),
        window_tokens=_window(windowed),
        window_attention_s=sum(mixer.pair_flops for mixer in windowed) / (ATTENTION_SHARE * flops),
        window_context_token_s=_context_token_s(deployment, windowed),
        link_gbps=gpu.link_gbps * gpus,
        copy_s=COPY_S,
        client_s=CLIENT_S,
    )


def check_division(model: Model, gpus: int) -> None:
    """Raises MachineError if the heads of a layer are not to be divided among so many GPUs."""
    for mixer in model.mixers:
        if mixer.heads % gpus or (mixer.kv_heads and mixer.kv_heads % gpus and gpus % mixer.kv_heads):
            kv_heads = f", {mixer.kv_heads} of keys and values" if mixer.kv_heads else ""
            raise MachineError(f"expected GPUs among which {mixer.heads} heads{kv_heads} can be divided, got {gpus}")


def gpu_blocks(deployment: Deployment, pages: Pages) -> int:
    """Usable blocks. Every GPU holds its share of each; one is vLLM's null block."""
    gpu, gpus = deployment.gpu, deployment.gpus
    usable_bytes = gpu.memory_gib * CUDA_SHARE * deployment.memory_share * GIB - _reserve_bytes(deployment)
    room_bytes = gpus * usable_bytes - deployment.weight_bytes
    return int(room_bytes // (pages.token_bytes * gpus * pages.block_tokens)) - 1


def _reserve_bytes(deployment: Deployment) -> float:
    """What a GPU holds beside weights and blocks, as vLLM's trial run at its start finds it.

    The process itself; hidden states and residuals of a step's tokens; what grows with the vocabulary, for the sampler:
    a few copies of the logits of all calls that may run, and an amount of its own. Fitted to eight block counts. A
    mixture of experts adds the inputs and outputs of each chosen expert, and what is between them.
    """
    gpu, model, gpus, tokens = deployment.gpu, deployment.model, deployment.gpus, deployment.budget_tokens
    hidden_states = 2 * tokens * model.hidden * BF16_BYTES
    logits = LOGITS_BYTES * deployment.running * model.vocab
    experts = max(
        (
            part.experts_per_token * (max(2 * part.expert_width // gpus, model.hidden) + part.expert_width // gpus)
            for part in model.feed_forwards
        ),
        default=0,
    )
    return gpu.context_gib * GIB + VOCAB_BYTES * model.vocab + hidden_states + logits + tokens * experts * BF16_BYTES


def _context_token_s(deployment: Deployment, mixers: list[Mixer]) -> float:
    """Seconds of a token of context of a decoding call: to read it, or to multiply with it where that takes longer."""
    gpu, gpus = deployment.gpu, deployment.gpus
    kv_bytes = KV_BYTES[deployment.kv]
    read_bytes = sum(token_bytes(mixer, gpus, kv_bytes) - mixer.index_bytes for mixer in mixers)
    computed_s = sum(mixer.context_flops for mixer in mixers) / (ATTENTION_SHARE * gpus * gpu.tflops * 1e12)
    return max(gpus * read_bytes / (gpus * gpu.context_tbps * 1e12), computed_s)


def _index_token_s(deployment: Deployment) -> float:
    """The same of sparse indexers."""
    index_bytes = sum(mixer.index_bytes for mixer in deployment.model.mixers)
    return max(index_bytes / (deployment.gpu.context_tbps * 1e12), _index_pair_s(deployment))


def _index_pair_s(deployment: Deployment) -> float:
    """Seconds of a token and a token that sparse indexers look at. Every GPU runs them for itself."""
    index_flops = sum(mixer.index_flops for mixer in deployment.model.mixers)
    return index_flops / (ATTENTION_SHARE * deployment.gpu.tflops * 1e12)


def _states_s(deployment: Deployment) -> float:
    """Seconds to read and write the states of a decoding call."""
    states_bytes = sum(state_bytes_of(mixer, deployment.gpus) for mixer in deployment.model.mixers)
    return 2 * states_bytes / (deployment.gpu.context_tbps * 1e12)


def _window(mixers: list[Mixer]) -> int:
    """What windowed layers see. Raises MachineError if there are several windows: one is simulated."""
    windows = sorted({mixer.sees_tokens for mixer in mixers})
    if len(windows) > 1:
        raise MachineError(f"kv_groups: expected one window, got {', '.join(map(str, windows))}")
    return windows[0] if windows else 0


def gpus_needed(gpu: Gpu, model: Model, *, weights: str | None = None, kv: str = "bf16", tokens: int = 0) -> int | None:
    """The fewest GPUs, a power of two, that hold the weights and one context; None if no board does."""
    gpus = 1
    while gpus <= MOST_GPUS:
        deployment = Deployment(gpu, model, gpus, weights or model.weights, kv, max_context_tokens=tokens)
        pages = deployment.pages()
        if gpu_blocks(deployment, pages) >= pages.of_one_request(deployment.context_tokens, deployment.budget_tokens):
            return gpus
        gpus *= 2
    return None


def preset_context_tokens(gpu: Gpu, model: Model) -> int:
    """The longest context of a preset."""
    return min(model.max_context_tokens, gpu.max_context_tokens or model.max_context_tokens, LONGEST_PRESET_TOKENS)
