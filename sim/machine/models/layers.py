"""A model's layers, out of its configuration: which kind of attention or state each has, and which MLP."""

from __future__ import annotations

from collections.abc import Callable

from .config import Config
from .families import NOT_GATED
from .shapes import (
    FeedForward,
    Indexer,
    LatentDims,
    Layer,
    Mixer,
    attention,
    gated_delta_net,
    latent_attention,
    lightning_attention,
    mamba1,
    mamba2,
    mixture,
    mlp,
)

MOST_LAYERS = 1000
FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
MLP, MOE = "mlp", "moe"  # layers of an MLP alone, of models that count it apart
WORDS = {
    "full_attention": FULL,
    "attention": FULL,
    "indexed_attention": FULL,
    "sliding_attention": SLIDING,
    "chunked_attention": CHUNKED,
    "linear_attention": LINEAR,
    "mamba": LINEAR,
    "mamba2": LINEAR,
    "mlp": MLP,
    "moe": MOE,
}
LETTERS = {"M": LINEAR, "*": FULL, "-": MLP, "E": MOE}  # Nemotron-H's
STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def layers_of(config: Config) -> tuple[Layer, ...]:
    """All layers. Raises MachineError where the configuration does not say, or means nothing known."""
    kinds = kinds_of(config)
    by_kind: dict[str, Mixer] = {}
    found = []
    for index, kind in enumerate(kinds):
        if kind not in by_kind and kind not in (MLP, MOE):
            by_kind[kind] = _mixer(config, kind)
        mixer = by_kind.get(kind)
        if MLP in kinds or MOE in kinds:  # a layer is either
            part = None if mixer else _mixture(config) if kind == MOE else _mlp(config)
        else:
            part = _feed_forward(config, index, len(kinds))
        found.append(Layer(mixer, part))
    return tuple(found)


# -- attention and states


def kinds_of(config: Config) -> list[str]:
    """What kind each layer is of."""
    if (pattern := config.given("hybrid_override_pattern")) is not None:
        return _by_letters(config, pattern)
    if (blocks := config.given("layers_block_type")) is not None and isinstance(blocks, list):
        return _by_words(config, "layers_block_type", len(blocks))
    layers = config.size("num_hidden_layers")
    if layers > MOST_LAYERS:
        raise config.wrong("num_hidden_layers", f"at most {MOST_LAYERS}", layers)
    if config.given("layer_types") is not None:
        return _by_words(config, "layer_types", layers)
    pattern_of = PATTERNS.get(config.model_type, _plain)
    return _with_window(config, [pattern_of(config, index) for index in range(layers)])


def _by_letters(config: Config, pattern: object) -> list[str]:
    if isinstance(pattern, str) and 0 < len(pattern) <= MOST_LAYERS and set(pattern) <= set(LETTERS):
        return [LETTERS[letter] for letter in pattern]
    raise config.wrong("hybrid_override_pattern", f"a text of {', '.join(LETTERS)}", pattern)


def _by_words(config: Config, name: str, layers: int) -> list[str]:
    if layers > MOST_LAYERS:
        raise config.wrong(name, f"at most {MOST_LAYERS} layers", config.given(name))
    words = config.words(name, layers) or []
    for word in words:
        if word not in WORDS:
            raise config.wrong(name, f"kinds of layers from {', '.join(WORDS)}", word)
    return _with_window(config, [WORDS[word] for word in words])


def _with_window(config: Config, kinds: list[str]) -> list[str]:
    """The same; a window that holds the longest context is none."""
    longest = config.size_or(None, "max_position_embeddings")
    window = config.size_or(None, "sliding_window") if SLIDING in kinds else None
    if window and longest and window >= longest:
        config.assume(f"sliding_window {window} holds the longest context: full attention")
        return [FULL if kind == SLIDING else kind for kind in kinds]
    return kinds


def _plain(config: Config, _: int) -> str:
    """Without a list of layers a window is that of all, unless it is switched off."""
    window = config.given("sliding_window")
    return SLIDING if window and config.values.get("use_sliding_window", True) else FULL


def _qwen(config: Config, index: int) -> str:
    return SLIDING if config.flag("use_sliding_window") and index >= config.count("max_window_layers") else FULL


def _alternating(_: Config, index: int) -> str:
    return FULL if index % 2 else SLIDING


def _every(name: str, others: str) -> Callable[[Config, int], str]:
    """One in so many layers is of full attention, the last of each."""
    return lambda config, index: others if (index + 1) % config.size(name) else FULL


def _llama4(config: Config, index: int) -> str:
    without = config.sizes("no_rope_layers")
    if without:
        return CHUNKED if index < len(without) and without[index] else FULL
    return CHUNKED if (index + 1) % config.size("no_rope_layer_interval") else FULL


def _jamba(config: Config, index: int) -> str:
    return FULL if index % config.size("attn_layer_period") == config.count("attn_layer_offset") else LINEAR


def _minimax(config: Config, index: int) -> str:
    kinds = config.sizes("attn_type_list") or []
    return FULL if index >= len(kinds) or kinds[index] else LINEAR


PATTERNS: dict[str, Callable[[Config, int], str]] = {
    "qwen2": _qwen,
    "qwen2_moe": _qwen,
    "qwen3": _qwen,
    "qwen3_moe": _qwen,
    "gemma2": _alternating,
    "gpt_oss": _alternating,
    "gemma3_text": _every("sliding_window_pattern", SLIDING),
    "cohere2": _every("sliding_window_pattern", SLIDING),
    "qwen3_next": _every("full_attention_interval", LINEAR),
    "qwen3_5_text": _every("full_attention_interval", LINEAR),
    "qwen3_5_moe_text": _every("full_attention_interval", LINEAR),
    "llama4_text": _llama4,
    "jamba": _jamba,
    "minimax_text_01": _minimax,
    "minimax_m1": _minimax,
}


def _mixer(config: Config, kind: str) -> Mixer:
    hidden = config.size("hidden_size")
    if kind == LINEAR:
        return _state(config, hidden)
    heads = config.size("num_attention_heads")
    if config.given("kv_lora_rank") is not None:
        return latent_attention(hidden, heads, _latent_dims(config), _indexer(config))
    return attention(
        hidden,
        heads,
        config.size_or(heads, "num_key_value_heads") or heads,
        config.size_or(hidden // heads, "head_dim") or hidden // heads,
        sliding=config.size("sliding_window") if kind == SLIDING else 0,
        chunk=config.size("attention_chunk_size") if kind == CHUNKED else 0,
        gated=config.flag("attn_output_gate"),
    )


def _latent_dims(config: Config) -> LatentDims:
    return LatentDims(
        config.count("q_lora_rank"),
        config.size("kv_lora_rank"),
        config.size("qk_nope_head_dim"),
        config.size("qk_rope_head_dim"),
        config.size("v_head_dim"),
    )


def _indexer(config: Config) -> Indexer | None:
    if config.given("index_topk") is None:
        return None
    return Indexer(config.size("index_n_heads"), config.size("index_head_dim"), config.size("index_topk"))


def _state(config: Config, hidden: int) -> Mixer:
    """The state of a layer of linear attention or Mamba, of the kind that the fields describe."""
    element = _state_bytes(config)
    if config.given("linear_num_value_heads") is not None:
        return gated_delta_net(
            hidden,
            config.size("linear_num_key_heads"),
            config.size("linear_num_value_heads"),
            config.size("linear_key_head_dim"),
            config.size("linear_value_head_dim"),
            config.size("linear_conv_kernel_dim"),
            element,
        )
    if config.given("mamba_num_heads", "mamba_n_heads") is not None:
        return mamba2(
            hidden,
            config.size("mamba_num_heads", "mamba_n_heads"),
            config.size("mamba_head_dim", "mamba_d_head"),
            config.size("n_groups", "mamba_n_groups"),
            config.size("ssm_state_size", "mamba_d_state"),
            config.size("conv_kernel", "mamba_d_conv"),
            element,
        )
    if config.given("mamba_d_state") is not None:
        step_rank = config.given("mamba_dt_rank")
        rank = step_rank if type(step_rank) is int and step_rank > 0 else -(-hidden // 16)
        inner = config.size("mamba_expand") * hidden
        return mamba1(hidden, inner, config.size("mamba_d_state"), config.size("mamba_d_conv"), rank, element)
    return lightning_attention(hidden, config.size("num_attention_heads"), config.size("head_dim"), element)


def _state_bytes(config: Config) -> int:
    """Bytes of an element of a state, as vLLM keeps it by default."""
    dtype = config.given("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    if dtype is None:
        config.assume("states in bfloat16, as vLLM keeps them where a file does not say")
        return 2
    if isinstance(dtype, str) and dtype in STATE_BYTES:
        return STATE_BYTES[dtype]
    raise config.wrong("mamba_ssm_dtype", f"one of {', '.join(STATE_BYTES)}", dtype)


# -- MLPs


def _feed_forward(config: Config, index: int, layers: int) -> FeedForward:
    if not config.size_or(0, *EXPERTS, least=0):
        return _mlp(config)
    return _mixture(config) if _is_sparse(config, index, layers) else _mlp(config)


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _is_sparse(config: Config, index: int, layers: int) -> bool:
    """Whether a layer has experts."""
    if (types := config.words("mlp_layer_types", layers)) is not None:
        return types[index] == "sparse"
    if index in (config.sizes("mlp_only_layers") or ()) or index < config.count("first_k_dense_replace"):
        return False
    period = config.size_or(1, "decoder_sparse_step", "interleave_moe_layer_step") or 1
    offset = period - 1
    if config.given("expert_layer_period") is not None:
        period, offset = config.size("expert_layer_period"), config.count("expert_layer_offset")
    elif config.given("moe_layer_freq") is not None and isinstance(config.given("moe_layer_freq"), int):
        period, offset = config.size("moe_layer_freq"), 0
    return index % period == offset


def _mlp(config: Config) -> FeedForward:
    width = config.size_or(None, "intermediate_size_mlp") or config.size("intermediate_size")
    return mlp(config.size("hidden_size"), width, gated=config.model_type not in NOT_GATED)


def _mixture(config: Config) -> FeedForward:
    width = config.size_or(None, "moe_intermediate_size") or config.size("intermediate_size")
    return mixture(
        config.size("hidden_size"),
        width,
        config.size(*EXPERTS),
        config.size("num_experts_per_tok", "moe_topk", "num_experts_per_token"),
        _shared_width(config, width),
        gated=config.model_type not in NOT_GATED,
    )


def _shared_width(config: Config, width: int) -> int:
    """The width of all shared experts together."""
    if config.model_type == "llama4_text":
        return width
    shared = config.size_or(None, "shared_expert_intermediate_size", "shared_intermediate_size", least=0)
    if shared is not None:
        return shared
    return config.count("n_shared_experts", "num_shared_experts") * (
        config.size_or(width, "moe_shared_expert_intermediate_size") or width
    )
