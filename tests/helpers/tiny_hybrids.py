"""Tiny models with random weights and several KV cache groups, of kinds that vLLM runs on CPUs.

As `live.client.start.tiny_model`, whose sizes these have: answers depend on all that a layer sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokencake.live.client.start import tiny_model
from tokencake.live.client.start.tiny_model import CONFIG, HEAD_WIDTH, HEADS, LAYERS, WIDTH, Tensors

WINDOW_TOKENS = 100
CHUNK_TOKENS = 128
KEY_HEADS, VALUE_HEADS, STATE_WIDTH = 1, 2, 128  # of a delta net: the kernel for CPUs takes no narrower state
EXPERTS, EXPERT_WIDTH = 2, 128


class Hybrid(NamedTuple):
    """A kind of model: its own settings, and its weights, from those of the plain tiny model."""

    settings: Mapping[str, object]
    weights: Callable[[Tensors], Tensors]
    dtype: str = "float32"


def write(hybrid: Hybrid, folder: Path) -> Path:
    """A folder with the model."""
    folder.mkdir()
    weights = hybrid.weights(tiny_model._weights())
    (folder / "model.safetensors").write_bytes(tiny_model._safetensors(weights))
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(hybrid.settings)))
    return folder


def _gemma(weights: Tensors) -> Tensors:
    """Its norms have a one added to their weights, and it has more of them."""
    weights = {name: np.zeros_like(one) if "norm" in name else one for name, one in weights.items()}
    del weights["lm_head.weight"]  # the embedding's
    weights["model.embed_tokens.weight"] /= np.float32(WIDTH**0.5)  # which the model multiplies by it
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            weights[f"{name}{norm}.weight"] = np.zeros(WIDTH, "<f4")
        for norm in ("q_norm", "k_norm"):
            weights[f"{name}self_attn.{norm}.weight"] = np.zeros(HEAD_WIDTH, "<f4")
    return weights


def _llama4(weights: Tensors) -> Tensors:
    return {name.replace(".mlp.", ".feed_forward."): one for name, one in weights.items()}


def _qwen3_next(weights: Tensors) -> Tensors:
    """All layers but the last have a state in place of keys and values, and the last has gates on its heads."""
    random = np.random.Generator(np.random.PCG64(1))

    def drawn(*shape: int) -> Any:
        return (random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)).astype("<f4")

    keys, values = KEY_HEADS * STATE_WIDTH, VALUE_HEADS * STATE_WIDTH
    weights = {name: np.zeros_like(one) if "norm" in name else one for name, one in weights.items()}
    for layer in range(LAYERS - 1):
        name = f"model.layers.{layer}."
        weights = {other: one for other, one in weights.items() if not other.startswith(f"{name}self_attn.")}
        weights |= {
            name + "linear_attn.in_proj_qkvz.weight": drawn(2 * keys + 2 * values, WIDTH),
            name + "linear_attn.in_proj_ba.weight": drawn(2 * VALUE_HEADS, WIDTH),
            name + "linear_attn.conv1d.weight": drawn(2 * keys + values, 1, 4),
            name + "linear_attn.A_log": np.full(VALUE_HEADS, -4.0, "<f4"),  # it forgets slowly
            name + "linear_attn.dt_bias": np.zeros(VALUE_HEADS, "<f4"),
            name + "linear_attn.norm.weight": np.ones(STATE_WIDTH, "<f4"),
            name + "linear_attn.out_proj.weight": drawn(WIDTH, values),
        }
    weights = {other: one for other, one in weights.items() if not other.startswith(f"model.layers.{LAYERS - 1}.mlp.")}
    weights |= _experts(f"model.layers.{LAYERS - 1}.mlp.", drawn)
    name = f"model.layers.{LAYERS - 1}.self_attn."
    weights[name + "q_proj.weight"] = drawn(2 * HEADS * HEAD_WIDTH, WIDTH)
    weights |= {f"{name}{norm}.weight": np.zeros(HEAD_WIDTH, "<f4") for norm in ("q_norm", "k_norm")}
    return weights


def _experts(name: str, drawn: Callable[..., Any]) -> Tensors:
    """Of the one layer with experts; vLLM's model must have one."""
    weights = {f"{name}gate.weight": drawn(EXPERTS, WIDTH), f"{name}shared_expert_gate.weight": drawn(1, WIDTH)}
    for expert in (*(f"experts.{number}" for number in range(EXPERTS)), "shared_expert"):
        weights |= {
            f"{name}{expert}.gate_proj.weight": drawn(EXPERT_WIDTH, WIDTH),
            f"{name}{expert}.up_proj.weight": drawn(EXPERT_WIDTH, WIDTH),
            f"{name}{expert}.down_proj.weight": drawn(WIDTH, EXPERT_WIDTH),
        }
    return weights


GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "sliding_window": WINDOW_TOKENS,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": HEAD_WIDTH,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
}
HYBRIDS = {
    "gemma-3": Hybrid(GEMMA | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}, _gemma),
    "windows-in-turn": Hybrid(GEMMA | {"layer_types": ["sliding_attention", "full_attention"] * 2}, _gemma),
    "llama-4": Hybrid(
        {
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "attention_chunk_size": CHUNK_TOKENS,
            "intermediate_size_mlp": CONFIG["intermediate_size"],
            "interleave_moe_layer_step": LAYERS + 1,  # none is a mixture of experts
            "num_local_experts": 1,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "no_rope_layers": [1, 1, 1, 0],
            "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
        },
        _llama4,
    ),
    "qwen3-next": Hybrid(
        {
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "full_attention_interval": 4,
            "partial_rotary_factor": 0.25,
            "mlp_only_layers": list(range(LAYERS - 1)),
            "num_experts": EXPERTS,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": EXPERT_WIDTH,
            "shared_expert_intermediate_size": EXPERT_WIDTH,
            "linear_num_key_heads": KEY_HEADS,
            "linear_num_value_heads": VALUE_HEADS,
            "linear_key_head_dim": STATE_WIDTH,
            "linear_value_head_dim": STATE_WIDTH,
            "linear_conv_kernel_dim": 4,
        },
        _qwen3_next,
        dtype="bfloat16",
    ),
}
