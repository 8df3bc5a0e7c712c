"""The models of the presets: what their published configuration files say, as far as it matters here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from .model import model_from
from .shapes import Model


class Published(NamedTuple):
    """A model's name, its configuration, and the number of parameters that its memory is counted by, if stated."""

    title: str
    config: Mapping[str, Any]
    params: float | None = None


def dense(
    model_type: str,
    layers: int,
    heads: int,
    hidden: int,
    ffn: int,
    vocab: int,
    context: int,
    kv_heads: int = 8,
    head_dim: int = 128,
) -> Mapping[str, Any]:
    """A configuration of full attention in all layers, and gated MLPs."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "use_sliding_window": False,
    }


def _gpt_oss(layers: int, experts: int) -> Mapping[str, Any]:
    return {
        **dense("gpt_oss", layers, 64, 2880, 2880, 201_088, 131_072),
        "use_sliding_window": True,
        "head_dim": 64,
        "sliding_window": 128,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "quantization_config": {"quant_method": "mxfp4"},
    }


def _qwen3_moe(layers: int, heads: int, hidden: int, ffn: int, expert: int, context: int) -> Mapping[str, Any]:
    return {
        **dense("qwen3_moe", layers, heads, hidden, ffn, 151_936, context, kv_heads=4),
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": expert,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


PUBLISHED_MODELS: Mapping[str, Published] = MappingProxyType(
    {
        "qwen2.5-14b": Published("Qwen2.5-14B", dense("qwen2", 48, 40, 5120, 13824, 152_064, 32_768), 14.77e9),
        "qwen2.5-7b": Published("Qwen2.5-7B", dense("qwen2", 28, 28, 3584, 18944, 152_064, 32_768, 4), 7.615e9),
        "llama-3.1-8b": Published("Llama-3.1-8B", dense("llama", 32, 32, 4096, 14336, 128_256, 131_072), 8.03e9),
        "llama-3.3-70b": Published("Llama-3.3-70B", dense("llama", 80, 64, 8192, 28672, 128_256, 131_072), 70.55e9),
        "qwen3-14b": Published("Qwen3-14B", dense("qwen3", 40, 40, 5120, 17408, 151_936, 40_960), 14.768e9),
        "qwen3-32b": Published("Qwen3-32B", dense("qwen3", 64, 64, 5120, 25600, 151_936, 40_960), 32.76e9),
        "gpt-oss-20b": Published("gpt-oss-20b", _gpt_oss(24, 32)),
        "gpt-oss-120b": Published("gpt-oss-120b", _gpt_oss(36, 128)),
        "qwen3-30b-a3b": Published("Qwen3-30B-A3B", _qwen3_moe(48, 32, 2048, 6144, 768, 40_960)),
        "qwen3-235b-a22b": Published("Qwen3-235B-A22B", _qwen3_moe(94, 64, 4096, 12288, 1536, 40_960)),
        "qwen3-next-80b": Published(
            "Qwen3-Next-80B-A3B",
            {
                **_qwen3_moe(48, 16, 2048, 5120, 512, 262_144),
                "model_type": "qwen3_next",
                "num_key_value_heads": 2,
                "head_dim": 256,
                "num_experts": 512,
                "num_experts_per_tok": 10,
                "shared_expert_intermediate_size": 512,
                "full_attention_interval": 4,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 32,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
                "linear_conv_kernel_dim": 4,
            },
        ),
        "gemma-3-27b": Published(
            "Gemma-3-27B",
            {
                **dense("gemma3_text", 62, 32, 5376, 21504, 262_208, 131_072, kv_heads=16),
                "use_sliding_window": True,
                "sliding_window": 1024,
                "sliding_window_pattern": 6,
                "tie_word_embeddings": True,
            },
        ),
        "llama-4-scout": Published(
            "Llama-4-Scout-17B-16E",
            {
                **dense("llama4_text", 48, 40, 5120, 8192, 202_048, 10_485_760),
                "num_local_experts": 16,
                "num_experts_per_tok": 1,
                "interleave_moe_layer_step": 1,
                "intermediate_size_mlp": 16_384,
                "attention_chunk_size": 8192,
                "no_rope_layer_interval": 4,
            },
        ),
        "glm-4.5-air": Published(
            "GLM-4.5-Air",
            {
                **dense("glm4_moe", 46, 96, 4096, 10_944, 151_552, 131_072),
                "n_routed_experts": 128,
                "num_experts_per_tok": 8,
                "n_shared_experts": 1,
                "moe_intermediate_size": 1408,
                "first_k_dense_replace": 1,
            },
        ),
        "minimax-m2": Published(
            "MiniMax-M2",
            {
                **dense("minimax_m2", 62, 48, 3072, 1536, 200_064, 196_608),
                "num_local_experts": 256,
                "num_experts_per_tok": 8,
                "quantization_config": {"quant_method": "fp8"},
            },
        ),
        "deepseek-v3": Published(
            "DeepSeek-V3",
            {
                "model_type": "deepseek_v3",
                "num_hidden_layers": 61,
                "num_attention_heads": 128,
                "num_key_value_heads": 128,
                "hidden_size": 7168,
                "intermediate_size": 18_432,
                "vocab_size": 129_280,
                "max_position_embeddings": 163_840,
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "n_routed_experts": 256,
                "num_experts_per_tok": 8,
                "n_shared_experts": 1,
                "moe_intermediate_size": 2048,
                "first_k_dense_replace": 3,
                "moe_layer_freq": 1,
                "quantization_config": {"quant_method": "fp8"},
            },
        ),
    }
)


@cache
def published_model(name: str) -> Model:
    """The shape of one of `PUBLISHED_MODELS`."""
    published = PUBLISHED_MODELS[name]
    return model_from(published.title, published.config, published.params)
