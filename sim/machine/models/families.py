"""What model types leave out of their configuration files: the defaults of their published configuration classes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Defaults = Mapping[str, Any]

_GEMMA: Defaults = {"head_dim": 256, "tie_word_embeddings": True}
_LATENT: Defaults = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_DELTA_NET: Defaults = {
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "attn_output_gate": True,
}
_SPARSE: Defaults = {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}

# By model type, what matters here. A type that is not here has no defaults: its file has to say everything.
FAMILIES: Mapping[str, Defaults] = MappingProxyType(
    {
        "llama": {},
        "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
        "ministral3": {"num_key_value_heads": 8, "head_dim": 128},
        "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
        "qwen2": {"max_window_layers": 28, "vocab_size": 151_936},
        "qwen2_moe": {
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "decoder_sparse_step": 1,
        },
        "qwen3": {"head_dim": 128, "max_window_layers": 28, "vocab_size": 151_936},
        "qwen3_moe": {
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
        },
        "qwen3_next": {
            **_DELTA_NET,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "decoder_sparse_step": 1,
        },
        "qwen3_5_text": {**_DELTA_NET, "mamba_ssm_dtype": "float32"},
        "qwen3_5_moe_text": {
            **_DELTA_NET,
            "mamba_ssm_dtype": "float32",
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        },
        "gemma2": {**_GEMMA, "num_key_value_heads": 4, "sliding_window": 4096, "vocab_size": 256_000},
        "gemma3_text": {
            **_GEMMA,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "max_position_embeddings": 131_072,
            "vocab_size": 262_208,
        },
        "cohere2": {"sliding_window": 4096, "sliding_window_pattern": 4, "tie_word_embeddings": True},
        "gpt_oss": {
            "head_dim": 64,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 131_072,
        },
        "deepseek_v2": {
            **_LATENT,
            "q_lora_rank": 1536,
            "n_shared_experts": 2,
            "n_routed_experts": 64,
            "first_k_dense_replace": 0,
            "moe_intermediate_size": 1407,
        },
        "deepseek_v3": {
            **_LATENT,
            "q_lora_rank": 1536,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "moe_intermediate_size": 2048,
        },
        "deepseek_v32": {
            **_LATENT,
            **_SPARSE,
            "q_lora_rank": 1536,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "moe_intermediate_size": 2048,
        },
        "kimi_k2": {**_LATENT, "n_shared_experts": 1},
        "glm4": {"num_key_value_heads": 2, "head_dim": 128},
        "glm4_moe": {
            "num_key_value_heads": 8,
            "n_shared_experts": 1,
            "n_routed_experts": 128,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 1408,
        },
        "glm4_moe_lite": {
            "q_lora_rank": 768,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
            "n_shared_experts": 1,
            "n_routed_experts": 64,
            "num_experts_per_tok": 4,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 1536,
        },
        "glm_moe_dsa": {
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
            "index_topk": 2048,
            "index_n_heads": 32,
            "index_head_dim": 128,
            "q_lora_rank": 2048,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "moe_intermediate_size": 2048,
        },
        "minimax_m2": {"num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 256, "num_experts_per_tok": 8},
        "minimax_text_01": {"head_dim": 128, "num_local_experts": 32, "num_experts_per_tok": 2},
        "minimax_m1": {"head_dim": 128, "num_local_experts": 32, "num_experts_per_tok": 2},
        "phi": {},
        "phi3": {},
        "phimoe": {"num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2},
        "nemotron": {"head_dim": 128},
        "nemotron_h": {
            "num_key_value_heads": 8,
            "head_dim": 128,
            "ssm_state_size": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "n_groups": 8,
            "conv_kernel": 4,
            "mamba_ssm_cache_dtype": "float32",
        },
        "jamba": {
            "num_key_value_heads": 8,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "max_position_embeddings": 262_144,
        },
        "llama4_text": {
            "head_dim": 128,
            "num_key_value_heads": 8,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "intermediate_size_mlp": 16_384,
            "attention_chunk_size": 8192,
            "no_rope_layer_interval": 4,
            "vocab_size": 202_048,
        },
    }
)

# A layer's MLP has two matrices there, not three.
NOT_GATED = frozenset({"phi", "nemotron", "nemotron_h", "starcoder2"})
