"""Presets: derived figures held against fits to measured profiles, and every machine against common sense."""

import pytest

from tokencake.sim.presets import CUDA_SHARE, GIB, GPUS, MODELS, PUBLISHED, derive, gpus_needed, presets


@pytest.mark.parametrize("name", presets())
def test_a_preset_holds_its_weights_and_a_whole_context(name):
    machine = presets()[name]
    gpu_name, model_name = next((g, m) for g in GPUS for m in MODELS if name.startswith(f"{g}-{m}"))
    gpu, model = GPUS[gpu_name], MODELS[model_name]
    gpus = gpus_needed(gpu, model)

    used_bytes = model.weight_bytes + (machine.gpu_blocks + 1) * machine.block_bytes

    assert used_bytes < gpus * gpu.memory_gib * CUDA_SHARE * 0.9 * GIB
    assert machine.gpu_blocks * machine.block_tokens >= model.max_context_tokens
    assert machine.host_blocks > machine.gpu_blocks / 4
    assert 0.001 < machine.timing().of_step([], [1000]) / 1e12 < 0.1  # between 10 and 1,000 tokens a second


def test_every_gpu_comes_with_every_model():
    assert len(presets()) == len(GPUS) * len(MODELS) == 20
    assert all(machine.name == name for name, machine in presets().items())


def test_seventy_billion_parameters_need_several_gpus():
    names = [name for name in presets() if "70b" in name]

    assert [name.rpartition("-")[2] for name in names] == ["tp4", "tp4", "tp4", "tp2", "tp2"]


@pytest.mark.parametrize(("name", "kv_bytes"), [("qwen2.5-14b", 196_608), ("llama-3.1-8b", 131_072)])
def test_kv_bytes_follow_from_the_shape(name, kv_bytes):
    assert MODELS[name].kv_bytes_per_token == kv_bytes


@pytest.mark.parametrize("name", MODELS)
def test_the_shape_adds_up_to_the_stated_parameters(name):
    model = MODELS[name]
    embedding_and_head = 2 * model.head_params

    assert model.layer_params + embedding_and_head == pytest.approx(model.params, rel=1e-4)


# Fits to Vidur's published operator profiles of Llama-3-8B on an A100 (docs/machines.md), in seconds.
def profiled_prefill_s(tokens):
    return 7.78e-3 + 64.3e-6 * tokens + 4.01e-9 * tokens * (tokens + 1) / 2


def profiled_decode_s(calls, context_tokens):
    return 10.1e-3 + 53.6e-6 * calls + 69.4e-9 * calls * context_tokens


def error(derived_ps, profiled_s):
    return derived_ps / 1e12 / profiled_s - 1


@pytest.mark.parametrize("tokens", [512, 1024, 2048, 4096, 8192])
def test_derived_prefill_agrees_with_the_profile(tokens):
    timing = presets()["a100-llama-3.1-8b"].timing()

    assert -0.10 < error(timing.of_step([(tokens, 0)], []), profiled_prefill_s(tokens)) < -0.02


@pytest.mark.parametrize("tokens", [128, 256])
def test_derived_prefill_of_few_tokens_is_too_short(tokens):
    timing = presets()["a100-llama-3.1-8b"].timing()

    assert -0.17 < error(timing.of_step([(tokens, 0)], []), profiled_prefill_s(tokens)) < -0.13


@pytest.mark.parametrize("context_tokens", [500, 1000, 2000, 4000])
def test_derived_decode_agrees_with_the_profile(context_tokens):
    timing = presets()["a100-llama-3.1-8b"].timing()

    for calls in (32, 64, 128, 256):
        derived_ps = timing.of_step([], [context_tokens] * calls)
        assert -0.13 < error(derived_ps, profiled_decode_s(calls, context_tokens)) < 0.14
    for calls in (1, 2, 4, 8, 16):
        derived_ps = timing.of_step([], [context_tokens] * calls)
        assert 0.18 < error(derived_ps, profiled_decode_s(calls, context_tokens)) < 0.32


def test_the_published_system_is_exactly_that():
    assert (PUBLISHED.gpu_blocks, PUBLISHED.block_tokens, PUBLISHED.kv_bytes_per_token) == (3049, 16, 196_608)
    assert (PUBLISHED.step_budget_tokens, PUBLISHED.max_running, PUBLISHED.asynchronous) == (8192, 1024, True)
    assert (PUBLISHED.host_gib, PUBLISHED.link_gbps, PUBLISHED.max_context_tokens) == (100, 25, 32_768)


def test_the_memory_reserve_is_what_the_published_system_left():
    derived = derive(GPUS["a800"], MODELS["qwen2.5-14b"], 1, "half", memory_share=0.5)

    assert derived.gpu_blocks == pytest.approx(PUBLISHED.gpu_blocks, rel=0.001)


def test_the_derivation_comes_near_the_published_engine_where_it_decodes():
    derived = derive(GPUS["a800"], MODELS["qwen2.5-14b"], 1, "half", memory_share=0.5)
    busy = [9_000] * 8  # its mean batch and prompt

    assert derived.timing().of_step([], busy) == pytest.approx(PUBLISHED.timing().of_step([], busy), rel=0.15)


def test_more_gpus_make_a_step_cheaper_and_leave_more_blocks():
    two, four = (derive(GPUS["h200"], MODELS["llama-3.3-70b"], gpus, f"tp{gpus}") for gpus in (2, 4))

    assert four.gpu_blocks > 2 * two.gpu_blocks  # the weights are held once
    assert four.timing().of_step([(8192, 0)], []) < two.timing().of_step([(8192, 0)], [])
    assert four.prefill_token_s > two.prefill_token_s > 0  # but more is sent around
