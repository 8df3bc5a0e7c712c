"""Groups and pages of derived machines against those that vLLM makes of the same layers; defaults of model types."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

import torch
from transformers import CONFIG_MAPPING
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)
from vllm_grouping import get_kv_cache_groups

from tokencake.sim.machine.derivation.grouping import Pages, pages_of, state_bytes_of, token_bytes
from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.models.config import Config
from tokencake.sim.machine.models.families import FAMILIES
from tokencake.sim.machine.models.model import model_from, model_of
from tokencake.sim.machine.models.published import PUBLISHED_MODELS
from tokencake.sim.machine.models.shapes import Mixer

BF16 = torch.bfloat16
V32 = {**PUBLISHED_MODELS["deepseek-v3"].config, "model_type": "deepseek_v32"}
JAMBA = {
    "model_type": "jamba",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "vocab_size": 65_536,
}
NEMOTRON_H = {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    "hidden_size": 4096,
    "intermediate_size": 21_504,
    "num_attention_heads": 32,
    "vocab_size": 131_072,
    "max_position_embeddings": 8192,
}
CONFIGS = {
    **{name: one.config for name, one in PUBLISHED_MODELS.items()},
    "deepseek-v3.2": V32,
    "jamba": JAMBA,
    "nemotron-h-8b": NEMOTRON_H,
    "gpt-oss with two more layers of full attention": {
        **PUBLISHED_MODELS["gpt-oss-20b"].config,
        "layer_types": ["sliding_attention", "full_attention"] * 11 + ["full_attention"] * 2,
    },
}


class OneByOne:
    """A layout of the cache in which each layer has its own memory: vLLM's default."""

    is_block_outermost = False


def vllm_config() -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        cache_config=SimpleNamespace(get_resolved_kv_cache_layout=OneByOne),
        speculative_config=None,
        hisparse_config=None,
    )


def specs_of(mixers: Sequence[Mixer], gpus: int, block_tokens: int) -> dict[str, KVCacheSpec]:
    """What the layers tell vLLM on one of so many GPUs, each cache of a layer by its name."""
    page_bytes = block_tokens * max(token_bytes(mixer, gpus, 2) for mixer in mixers)
    return {
        f"{index}.{part}": spec
        for index, mixer in enumerate(mixers)
        for part, spec in enumerate(specs_of_layer(mixer, gpus, block_tokens, page_bytes))
    }


def specs_of_layer(mixer: Mixer, gpus: int, block_tokens: int, page_bytes: int) -> list[KVCacheSpec]:
    if mixer.kind == "mamba":
        state: dict[str, Any] = {
            "block_size": block_tokens,
            "shapes": ((mixer.conv_elements // gpus,), (mixer.state_elements // gpus,)),
            "dtypes": (BF16, torch.float32 if mixer.state_bytes == 4 else BF16),
        }
        assert MambaSpec(**state).page_size_bytes == state_bytes_of(mixer, gpus) <= page_bytes
        return [MambaSpec(**state, page_size_padded=page_bytes)]
    if mixer.context_flops:
        latent: KVCacheSpec = MLAAttentionSpec(block_tokens, num_kv_heads=1, head_size=mixer.kv_elements, dtype=BF16)
        index = MLAAttentionSpec(block_tokens, num_kv_heads=1, head_size=mixer.index_bytes, dtype=torch.uint8)
        return [latent, index] if mixer.index_bytes else [latent]
    heads = max(1, mixer.kv_heads // gpus)
    shared: dict[str, Any] = {"num_kv_heads": heads, "head_size": mixer.kv_elements // 2, "dtype": BF16}
    if mixer.kind == "sliding_window":
        return [SlidingWindowSpec(block_tokens, sliding_window=mixer.window_tokens, **shared)]
    if mixer.kind == "chunked_local":
        return [ChunkedLocalAttentionSpec(block_tokens, attention_chunk_size=mixer.window_tokens, **shared)]
    return [FullAttentionSpec(block_tokens, **shared)]


def kv_group(spec: KVCacheSpec) -> KvGroup:
    if isinstance(spec, UniformTypeKVCacheSpecs):
        spec = next(iter(spec.kv_cache_specs.values()))
    if isinstance(spec, MambaSpec):
        return KvGroup("mamba")
    if isinstance(spec, SlidingWindowSpec):
        return KvGroup("sliding_window", spec.sliding_window)
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return KvGroup("chunked_local", spec.attention_chunk_size)
    assert isinstance(spec, FullAttentionSpec)
    return KvGroup("full")


def vllm_pages(mixers: Sequence[Mixer], gpus: int, block_tokens: int) -> Pages:
    groups = get_kv_cache_groups(vllm_config(), specs_of(mixers, gpus, block_tokens))
    specs = [group.kv_cache_spec for group in groups]
    (one_block,) = {spec.block_size for spec in specs}
    # vLLM divides its memory by the pages of the largest group; a spec of unlike layers is the sum of theirs
    layers = [
        1 if isinstance(group.kv_cache_spec, UniformTypeKVCacheSpecs) else len(group.layer_names) for group in groups
    ]
    page_bytes = max(count * spec.page_size_bytes for count, spec in zip(layers, specs, strict=True))
    return Pages(tuple(kv_group(spec) for spec in specs), one_block, page_bytes // one_block)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_groups_and_pages_are_vllm_s(name: str, gpus: int) -> None:
    mixers = model_from(name, CONFIGS[name]).mixers
    if any(mixer.heads % gpus for mixer in mixers):
        pytest.skip("its heads are not to be divided so")
    pages = pages_of(mixers, gpus, 2)

    assert pages == vllm_pages(mixers, gpus, pages.block_tokens)
    if any(mixer.kind == "mamba" for mixer in mixers):  # and no shorter page would do
        state_bytes = max(state_bytes_of(mixer, gpus) for mixer in mixers)
        assert (pages.block_tokens - 16) * max(token_bytes(mixer, gpus, 2) for mixer in mixers) < state_bytes


BARE = {
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 1_000_000,
    "head_dim": 128,
    "sliding_window": 256,
    "hybrid_override_pattern": "M-M*",
    "attn_type_list": [0, 1] * 12,
}
KNOWN = [name for name in FAMILIES if name in CONFIG_MAPPING]


@pytest.mark.parametrize("model_type", KNOWN)
def test_defaults_are_those_of_the_published_configuration_classes(model_type: str) -> None:
    """A file that leaves out what it can gives the same model as one in which transformers has filled everything in."""
    if model_type == "nemotron_h":
        pytest.skip("its class is given layers by words, its files by letters")
    bare = {name: value for name, value in BARE.items() if name in CONFIG_MAPPING[model_type]().to_dict()}
    filled = CONFIG_MAPPING[model_type](**bare).to_dict()
    ours = Config({"model_type": model_type, **bare}, "bare")
    full = Config({**filled, "model_type": model_type}, "filled")

    assert model_of(ours).layers == model_of(full).layers
    assert model_of(ours).tied == model_of(full).tied
