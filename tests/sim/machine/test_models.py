"""Shapes of models: parameters and bytes a token against the published figures."""

import pytest

from tokencake.sim.machine.derivation.grouping import pages_of
from tokencake.sim.machine.kv_groups import groups_text
from tokencake.sim.machine.models.published import PUBLISHED_MODELS, published_model

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
