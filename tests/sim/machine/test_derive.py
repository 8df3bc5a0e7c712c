"""`tokencake machine derive`: a machine out of a model's configuration file, and what is said of a bad one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake.cli import run
from tokencake.sim.machine.derivation.grouping import pages_of
from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.kv_groups import groups_text
from tokencake.sim.machine.models.model import model_from
from tokencake.sim.machine.models.published import PUBLISHED_MODELS
from tokencake.sim.machine.presets import presets
from tokencake.traces.errors import MachineError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
}
SMALL = {**LLAMA, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def folder(tmp_path: Path):
    def write(config: object, name: str = "model") -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return place

    return write


def derived(config: Path, *options: str) -> Any:
    output = config.parent / "mine.toml"
    assert run(["machine", "derive", "--config", str(config), "--gpu", "h100", "-o", str(output), *options]) == 0
    return load_machine(str(output))


@pytest.mark.parametrize(
    "name", ["h100-llama-3.1-8b", "h100-gpt-oss-120b", "h100-qwen3-next-80b-tp4", "h200-deepseek-v3-tp8"]
)
def test_a_preset_is_what_is_derived_from_its_configuration(name: str, folder: Any) -> None:
    gpu, _, rest = name.partition("-")
    published = PUBLISHED_MODELS[rest.partition("-tp")[0]]
    machine = derived(folder(dict(published.config)), "--gpu", gpu, "--name", name)

    expected = presets()[name].settings()
    found = machine.settings()
    blocks, expected_blocks = found.pop("gpu_blocks"), expected.pop("gpu_blocks")
    assert found == expected
    assert blocks == pytest.approx(expected_blocks, rel=2e-4)  # of stated parameters, some are in no layer


def test_what_was_assumed_is_printed_and_written(folder: Any, capsys: Any) -> None:
    """Gemma's files leave out what its type has by default."""
    text = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    config = {"model_type": "gemma3", "vision_config": {}, "text_config": {**text, "model_type": "gemma3_text"}}
    machine = derived(folder(config, "tiny-gemma"), "--tp", "2")

    said = capsys.readouterr().out
    assert said.startswith("tiny-gemma: 0.1 B parameters, weights in bf16, KV in bf16, on 2 x H100-SXM-80G\n")
    assert "assumed: vocab_size = 262208, the default of gemma3_text\n" in said
    assert "# vocab_size = 262208, the default of gemma3_text\n" in (folder(config).parent / "mine.toml").read_text()
    assert groups_text(machine.kv_groups) == "6*sliding_window:4096+full"
    assert machine.name == "h100-tiny-gemma-tp2"


def test_eight_bits_halve_what_is_read_and_leave_more_pages(folder: Any) -> None:
    config = folder(LLAMA)
    plain, narrow = derived(config), derived(config, "--weights", "fp8", "--kv", "fp8")

    head_s = 2 * 4096 * 128_256 / (0.89 * 3.35e12)  # stays in bf16
    assert narrow.floor_s - head_s == pytest.approx((plain.floor_s - head_s) / 2)
    assert narrow.token_s == pytest.approx(plain.token_s / 1.7)
    assert narrow.attention_s == plain.attention_s
    assert (narrow.kv_bytes_per_token, narrow.context_token_s) == (65_536, pytest.approx(plain.context_token_s / 2))
    assert narrow.gpu_blocks > 2.2 * plain.gpu_blocks


def test_a_gpu_without_eight_bits_reads_them_and_multiplies_in_bf16(folder: Any) -> None:
    config = folder(LLAMA)
    plain, narrow = (derived(config, "--gpu", "a100", "--weights", weights) for weights in ("bf16", "fp8"))

    assert narrow.token_s == plain.token_s
    assert narrow.floor_s < 0.6 * plain.floor_s


# Published layer patterns: the groups that vLLM makes of them.
PATTERNS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({}, "full"),
    "mistral": ({"sliding_window": None}, "full"),
    "mixtral": ({"sliding_window": None, "num_local_experts": 8}, "full"),
    "qwen2": ({"use_sliding_window": False, "sliding_window": 131_072}, "full"),
    "qwen3": ({}, "full"),
    "qwen3_moe": ({}, "full"),
    "qwen3_next": ({"num_hidden_layers": 48}, "3*mamba+full"),
    "qwen3_5_text": ({"num_hidden_layers": 32}, "3*mamba+full"),
    "gemma2": ({"num_hidden_layers": 46, "max_position_embeddings": 8192}, "sliding_window:4096+full"),
    "gemma3_text": ({"num_hidden_layers": 62, "sliding_window": 1024}, "6*sliding_window:1024+full"),
    "gpt_oss": ({"num_hidden_layers": 24}, "sliding_window:128+full"),
    "deepseek_v2": ({"num_experts_per_tok": 6}, "full"),
    "deepseek_v3": ({}, "full"),
    "deepseek_v32": ({}, "full"),
    "glm4": ({}, "full"),
    "glm4_moe": ({}, "full"),
    "glm_moe_dsa": ({}, "full"),
    "minimax_m2": ({}, "full"),
    "minimax_m1": ({"num_hidden_layers": 80, "attn_type_list": [0] * 7 + [1]}, "full+mamba"),
    "phi": ({}, "full"),
    "phi3": ({"sliding_window": 262_144}, "full"),
    "phimoe": ({"sliding_window": 131_072}, "full"),
    "nemotron_h": ({"hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"}, "6*mamba+full"),
    "jamba": ({"num_hidden_layers": 32}, "7*mamba+full"),
    "llama4_text": ({"num_hidden_layers": 48}, "3*chunked_local:8192+full"),
}


@pytest.mark.parametrize("model_type", PATTERNS)
def test_the_groups_of_a_family(model_type: str) -> None:
    more, expected = PATTERNS[model_type]
    config = {**LLAMA, "num_attention_heads": 32, **more, "model_type": model_type}
    if model_type == "minimax_m1":
        config["attn_type_list"] = config["attn_type_list"] * 10
        expected = "7*mamba+full"

    assert groups_text(pages_of(model_from("x", config).mixers, 1, 2).groups) == expected


def test_a_list_of_layer_types_is_followed() -> None:
    types = ["sliding_attention", "full_attention"] * 16
    config = {**LLAMA, "sliding_window": 512, "layer_types": types}

    assert groups_text(pages_of(model_from("x", config).mixers, 1, 2).groups) == "sliding_window:512+full"


def test_layers_that_are_mixtures_are_those_of_the_published_rule() -> None:
    def sparse(**more: Any) -> list[int]:
        model = model_from("x", {**LLAMA, "num_experts": 8, "num_experts_per_tok": 2, **more})
        return [index for index, layer in enumerate(model.layers) if layer.feed_forward and layer.feed_forward.experts]

    assert sparse() == list(range(32))
    assert sparse(first_k_dense_replace=3) == list(range(3, 32))
    assert sparse(decoder_sparse_step=2, mlp_only_layers=[1]) == list(range(3, 32, 2))
    assert sparse(expert_layer_period=2, expert_layer_offset=1) == list(range(1, 32, 2))


@pytest.mark.parametrize(
    ("quantized", "weights"),
    [
        (None, "bf16"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": []}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": [8]}}}}, "bf16"),
        ({"quant_method": "new"}, "bf16"),
    ],
)
def test_weights_are_in_the_released_format(quantized: object, weights: str) -> None:
    assert model_from("x", {**LLAMA, "quantization_config": quantized}).weights == weights


def test_an_unknown_type_is_read_by_the_names_of_its_fields(folder: Any, capsys: Any) -> None:
    machine = derived(folder({**LLAMA, "model_type": "brand_new", "layer_types": ["full_attention"] * 32}))

    assert machine.gpu_blocks == pytest.approx(presets()["h100-llama-3.1-8b"].gpu_blocks, rel=1e-3)
    assert (
        'assumed: model_type "brand_new" is not known: read by the names of its fields alone' in capsys.readouterr().out
    )


def test_a_sparse_indexer_looks_at_everything_and_attention_at_what_it_chose(folder: Any) -> None:
    v3 = {**PUBLISHED_MODELS["deepseek-v3"].config}
    dense = derived(folder(v3), "--gpu", "h200", "--tp", "8")
    sparse = derived(folder({**v3, "model_type": "deepseek_v32"}), "--gpu", "h200", "--tp", "8")

    assert (sparse.window_tokens, sparse.block_tokens) == (2048, 64)
    assert sparse.kv_bytes_per_token - dense.kv_bytes_per_token == 8 * 61 * 132  # keys of 128 bytes and a scale of 4
    assert sparse.timing().of_step([], [100_000] * 8) < dense.timing().of_step([], [100_000] * 8)


def test_states_make_pages_long_and_cost_each_call_the_same(folder: Any) -> None:
    machine = derived(folder({**PUBLISHED_MODELS["qwen3-next-80b"].config}), "--tp", "4")
    bare = derived(folder({**PUBLISHED_MODELS["qwen3-30b-a3b"].config}), "--tp", "4")

    assert Counter(group.kind for group in machine.kv_groups) == {"mamba": 3, "full": 1}
    assert machine.block_tokens == 272  # a state of 32 / 4 heads, beside keys and values of one head
    assert machine.decode_call_s > 2 * bare.decode_call_s


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ("", (), "config.json: expected JSON: Expecting value in column 1"),
        ("[]", (), "config.json: expected an object, the config.json of a model, got a list"),
        ({**LLAMA, "hidden_size": "wide"}, (), 'hidden_size: expected a whole number from 1 to 2147483647, got "wide"'),
        ({**LLAMA, "hidden_size": 0}, (), "hidden_size: expected a whole number from 1"),
        ({"model_type": "llama"}, (), 'hidden_size: is missing, of a model of type "llama"'),
        ({**LLAMA, "num_hidden_layers": 10**6}, (), "num_hidden_layers: expected at most 1000, got 1000000"),
        ({**LLAMA, "layer_types": ["full_attention"]}, (), "layer_types: expected a list of 32 texts, got a list"),
        ({**LLAMA, "layer_types": ["ring"] * 32}, (), 'layer_types: expected kinds of layers from full_attention, '),
        ({**LLAMA, "sliding_window": 4096}, (), "kv_groups: expected a layer of full attention"),
        ({**LLAMA, "model_type": "jamba", "mamba_ssm_dtype": [2]}, (), "mamba_ssm_dtype: expected one of float32, "),
        ({**LLAMA, "tie_word_embeddings": 1}, (), "tie_word_embeddings: expected true or false, got 1"),
        (LLAMA, ("--gpu", "h20"), "--gpu: expected one of a100, a800, h100, h200, b200, l40s, rtx4090, rtxpro6000,"),
        (LLAMA, ("--weights", "fp7"), '--weights: expected one of bf16, fp8, int4, nvfp4, mxfp4, got "fp7"'),
        (LLAMA, ("--kv", "int4"), '--kv: expected one of bf16, fp8, got "int4"'),
        (LLAMA, ("--tp", "3"), "expected GPUs among which 32 heads, 8 of keys and values can be divided, got 3"),
        (LLAMA, ("--tp", "16"), "--tp: expected 1 to 8, what one board carries, got 16"),
        (LLAMA, ("--dp", "8"), "--dp: expected 1: data-parallel attention is not simulated, got 8"),
        ({**LLAMA, "num_hidden_layers": 900}, ("--tp", "1"), "expected more GPUs: weights of "),
        ({**LLAMA, "num_hidden_layers": 900}, (), "--tp: expected one, for 8 do not hold the weights and 131072"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    config: object, options: tuple[str, ...], said: str, folder: Any, capsys: Any
) -> None:
    assert run(["machine", "derive", "--config", str(folder(config)), "--gpu", "h100", *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert len(err.splitlines()) == 1


def is_shape_or_one_line(config: dict[str, object]) -> bool:
    try:
        return pages_of(model_from("x", config).mixers, 1, 2).token_bytes > 0
    except MachineError as error:
        return len(str(error).splitlines()) == 1


FIELDS = (*LLAMA, "layer_types", "kv_lora_rank", "num_experts", "sliding_window", "no_rope_layers", "head_dim")
values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.text(max_size=4), st.lists(st.integers(0, 2), max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PATTERNS)), st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
def test_any_configuration_is_a_shape_or_one_line(model_type: str, changes: dict[str, object]) -> None:
    assert is_shape_or_one_line({**LLAMA, **PATTERNS[model_type][0], "model_type": model_type, **changes})
