"""Shapes of models: parameters and bytes a token against the published figures."""

import pytest

from tokencake.sim.machine.derivation.grouping import pages_of
from tokencake.sim.machine.kv_groups import groups_text
from tokencake.sim.machine.models.model import model_from
from tokencake.sim.machine.models.published import PUBLISHED_MODELS, dense, published_model

# Billions of parameters, and of those that a token meets, as their authors state them. Where they count the embedding
# among the active ones (all but gpt-oss), it is added here, too.
STATED = {
    "gpt-oss-20b": (20.91, 3.61),
    "gpt-oss-120b": (116.83, 5.13),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "qwen3-next-80b": (80, None),  # "3 B" leaves out what is not in the layers
    "gemma-3-27b": (27.0, 27.0),
    "llama-4-scout": (108, 17),  # 109 with the vision encoder
    "glm-4.5-air": (106, None),  # "12 B" leaves out the embedding and the head
    "minimax-m2": (230, None),  # as GLM
    "deepseek-v3": (671, 37),
}


@pytest.mark.parametrize("name", STATED)
def test_a_mixture_adds_up_to_the_stated_parameters(name):
    model, (total, active) = published_model(name), STATED[name]
    met = model.active_params + (0 if name.startswith("gpt-oss") or model.tied else model.embedding_params)

    assert model.params / 1e9 == pytest.approx(total, rel=0.01)
    if active:
        assert met / 1e9 == pytest.approx(active, rel=0.03)


def test_active_parameters_where_the_rounding_leaves_something_to_test():
    assert published_model("gpt-oss-120b").active_params == pytest.approx(5.13e9, rel=0.002)
    assert published_model("gpt-oss-20b").active_params == pytest.approx(3.61e9, rel=0.002)
    next_80b = published_model("qwen3-next-80b")
    assert next_80b.active_params - next_80b.head_params == pytest.approx(3.2e9, rel=0.02)
    for name, billions in (("glm-4.5-air", 12), ("minimax-m2", 10)):
        model = published_model(name)
        assert model.active_params - model.head_params == pytest.approx(billions * 1e9, rel=0.025)


@pytest.mark.parametrize("name", [name for name, one in PUBLISHED_MODELS.items() if one.params])
def test_a_dense_model_adds_up_to_the_stated_parameters(name):
    assert published_model(name).params == pytest.approx(published_model(name).stated_params, rel=1e-4)


DEEPSEEK = PUBLISHED_MODELS["deepseek-v3"].config

# Models that have no preset, as their files have them, and their billions of parameters, as stated: what each type's
# rules of layers, experts and states come to.
OTHERS = {
    "Mixtral-8x7B": ({**dense("mixtral", 32, 32, 4096, 14336, 32_000, 32_768), "sliding_window": None}, 46.7),
    "Mixtral-8x22B": ({**dense("mixtral", 56, 48, 6144, 16384, 32_768, 65_536), "sliding_window": None}, 141),
    "Phi-3.5-MoE": (dense("phimoe", 32, 32, 4096, 6400, 32_064, 131_072), 41.9),
    "phi-2": (dense("phi", 32, 32, 2560, 10_240, 51_200, 2048, kv_heads=32, head_dim=80), 2.78),
    "Gemma-2-27B": (
        {**dense("gemma2", 46, 32, 4608, 36_864, 256_000, 8192, kv_heads=16), "tie_word_embeddings": True},
        27.2,
    ),
    "Jamba-v0.1": (dense("jamba", 32, 32, 4096, 14_336, 65_536, 262_144), 51.6),
    "Nemotron-H-8B": (
        {
            **dense("nemotron_h", 52, 32, 4096, 21_504, 131_072, 8192),
            "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        },
        8.1,
    ),
    "MiniMax-Text-01": (
        {
            **dense("minimax_text_01", 80, 64, 6144, 9216, 200_064, 10_240_000),
            "num_local_experts": 32,
            "num_experts_per_tok": 2,
            "attn_type_list": ([0] * 7 + [1]) * 10,
        },
        456,
    ),
    "GLM-4.5": (
        {
            **dense("glm4_moe", 92, 96, 5120, 12_288, 151_552, 131_072),
            "n_routed_experts": 160,
            "moe_intermediate_size": 1536,
            "first_k_dense_replace": 3,
        },
        355,
    ),
    "Llama-4-Maverick": (
        {
            **dense("llama4_text", 48, 40, 5120, 8192, 202_048, 1_048_576),
            "num_local_experts": 128,
            "interleave_moe_layer_step": 2,
        },
        400,
    ),
    "DeepSeek-V2": (
        {
            **DEEPSEEK,
            "model_type": "deepseek_v2",
            "hidden_size": 5120,
            "num_hidden_layers": 60,
            "intermediate_size": 12_288,
            "moe_intermediate_size": 1536,
            "n_routed_experts": 160,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "vocab_size": 102_400,
        },
        236,
    ),
    "Kimi-K2": (
        {
            **DEEPSEEK,
            "model_type": "kimi_k2",
            "num_attention_heads": 64,
            "n_routed_experts": 384,
            "first_k_dense_replace": 1,
            "vocab_size": 163_840,
        },
        1030,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_family_s_rules_add_up_to_the_stated_parameters(name):
    config, billions = OTHERS[name]

    assert model_from(name, config).params / 1e9 == pytest.approx(billions, rel=0.007)


@pytest.mark.parametrize(("name", "billions"), [("Mixtral-8x7B", 12.9), ("Mixtral-8x22B", 39), ("Phi-3.5-MoE", 6.6)])
def test_a_family_s_active_parameters(name, billions):
    model = model_from(name, OTHERS[name][0])

    assert (model.active_params + model.embedding_params) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "groups", "block_tokens", "kv_bytes"),
    [
        ("qwen2.5-14b", "full", 16, 196_608),
        ("llama-3.1-8b", "full", 16, 131_072),
        ("deepseek-v3", "full", 16, 70_272),  # (512 + 64) x 2 bytes x 61 layers, as published
        ("qwen3-30b-a3b", "full", 16, 98_304),
        ("gpt-oss-120b", "sliding_window:128+full", 16, 36_864),
        ("llama-4-scout", "3*chunked_local:8192+full", 16, 49_152),
        ("qwen3-next-80b", "3*mamba+full", 544, 24_576),
        ("gemma-3-27b", "6*sliding_window:1024+full", 16, 81_920),
    ],
)
def test_pages_follow_from_the_shape(name, groups, block_tokens, kv_bytes):
    pages = pages_of(published_model(name).mixers, 1, 2)

    assert (groups_text(pages.groups), pages.block_tokens, pages.token_bytes) == (groups, block_tokens, kv_bytes)


def test_each_gpu_holds_a_head_and_latents_are_held_by_all():
    """Qwen3-30B-A3B has 4 KV heads: on 8 GPUs each head is there twice. A latent is not divided at all."""
    qwen, deepseek = published_model("qwen3-30b-a3b").mixers, published_model("deepseek-v3").mixers

    assert 8 * pages_of(qwen, 8, 2).token_bytes == 2 * pages_of(qwen, 1, 2).token_bytes
    assert pages_of(deepseek, 8, 2).token_bytes == pages_of(deepseek, 1, 2).token_bytes
    assert pages_of(qwen, 1, 1).token_bytes == pages_of(qwen, 1, 2).token_bytes / 2  # in FP8
