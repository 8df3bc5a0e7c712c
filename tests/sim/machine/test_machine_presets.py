"""Presets: derived figures held against fits to measured profiles, and every machine against common sense."""

from dataclasses import replace

import pytest

from tokencake.sim.machine.derivation.gpus import GPUS
from tokencake.sim.machine.derivation.roofline import CUDA_SHARE, GIB, Deployment, derive, gpus_needed
from tokencake.sim.machine.models.model import model_from
from tokencake.sim.machine.models.published import PUBLISHED_MODELS, dense, published_model
from tokencake.sim.machine.presets import PUBLISHED, presets


def parts_of(name):
    """A preset's GPU, model and number of GPUs."""
    gpu, _, rest = name.partition("-")
    model, _, gpus = rest.partition("-tp")
    return GPUS[gpu], published_model(model), int(gpus or 1)


@pytest.mark.parametrize("name", presets())
def test_a_preset_holds_its_weights_and_a_whole_context(name):
    machine = presets()[name]
    gpu, model, gpus = parts_of(name)
    deployment = Deployment(gpu, model, gpus, model.weights, "bf16")

    used_bytes = deployment.weight_bytes + (machine.gpu_blocks + 1) * machine.block_bytes

    assert gpus_needed(gpu, model) == gpus
    assert used_bytes < gpus * gpu.memory_gib * CUDA_SHARE * 0.9 * GIB
    assert machine.gpu_blocks >= deployment.pages().of_one_request(
        machine.max_context_tokens, machine.step_budget_tokens
    )
    assert machine.max_context_tokens == min(model.max_context_tokens, gpu.max_context_tokens or 2**31, 262_144)
    assert machine.host_blocks > machine.gpu_blocks / 8
    assert 0.001 < machine.timing().of_step([], [1000]) / 1e12 < 0.1  # between 10 and 1,000 tokens a second


def test_every_gpu_comes_with_every_model_that_a_board_of_them_holds():
    assert len(presets()) == 117
    missing = {(gpu, model) for gpu in GPUS for model in PUBLISHED_MODELS}
    missing -= {(name.partition("-")[0], name.partition("-")[2].partition("-tp")[0]) for name in presets()}
    assert missing == {
        *((gpu, "deepseek-v3") for gpu in ("a100", "a800", "h100", "l40s", "rtx4090", "rtxpro6000")),
        ("l40s", "qwen3-235b-a22b"),
        *(("rtx4090", model) for model in ("qwen3-235b-a22b", "llama-4-scout", "glm-4.5-air", "minimax-m2")),
    }
    assert all(machine.name == name for name, machine in presets().items())


def test_seventy_billion_parameters_need_several_gpus():
    names = [name for name in presets() if "70b" in name]

    assert [name.rpartition("-")[2] for name in names] == ["tp4", "tp4", "tp4", "tp2", "tp2", "tp4", "tp8", "tp4"]


def test_a_model_that_no_board_holds_has_no_preset():
    tiny = replace(GPUS["rtx4090"], memory_gib=12.0)

    assert gpus_needed(tiny, published_model("llama-3.3-70b")) is None


# Blocks that vLLM 0.15.1 found on H100s at 0.9 of their memory with at most 128 calls, and 0.19.0 on an RTX 4090 with
# 256 (docs/accuracy.md); the null block is counted. Models that have no preset are given by their shape.
OTHERS = {
    "llama-2-70b": (dense("llama", 80, 64, 8192, 28672, 32_000, 4096), 68.977e9),
    "codellama-34b": (dense("llama", 48, 64, 8192, 22016, 32_016, 16_384), 33.744e9),
    "mistral-nemo": ({**dense("mistral", 40, 32, 5120, 14336, 131_072, 131_072), "sliding_window": None}, 12.248e9),
}


def shape(name):
    return model_from(name, *OTHERS[name]) if name in OTHERS else published_model(name)


@pytest.mark.parametrize(
    ("gpu", "model", "gpus", "step_budget_tokens", "max_running", "blocks"),
    [
        ("h100", "llama-2-70b", 4, 2048, 128, 31_357),
        ("h100", "codellama-34b", 2, 2048, 128, 26_603),
        ("h100", "llama-3.3-70b", 4, 8192, 128, 30_251),
        ("h100", "llama-3.3-70b", 4, 2048, 128, 30_425),
        ("h100", "mistral-nemo", 1, 2048, 128, 19_251),
        ("h100", "qwen2.5-7b", 1, 2048, 128, 65_352),
        ("h100", "qwen2.5-7b", 1, 1024, 128, 65_368),
        ("rtx4090", "llama-3.1-8b", 1, 2048, 256, 2_588),
    ],
)
def test_derived_blocks_are_those_of_a_real_engine(gpu, model, gpus, step_budget_tokens, max_running, blocks):
    settings = {"step_budget_tokens": step_budget_tokens, "max_running": max_running}
    derived = derive(GPUS[gpu], shape(model), gpus, "derived", **settings)

    assert derived.gpu_blocks + 1 == pytest.approx(blocks, rel=0.005)


# Fits to Vidur's published operator profiles of Llama-3-8B on an A100 (docs/machines.md), in seconds: sums of kernels
# of 2024, without CUDA graphs. Engines have become faster since, most where a step is short.
def profiled_prefill_s(tokens):
    return 7.78e-3 + 64.3e-6 * tokens + 4.01e-9 * tokens * (tokens + 1) / 2


def profiled_decode_s(calls, context_tokens):
    return 10.1e-3 + 53.6e-6 * calls + 69.4e-9 * calls * context_tokens


def error(derived_ps, profiled_s):
    return derived_ps / 1e12 / profiled_s - 1


def test_derived_prefill_is_faster_than_the_kernels_of_2024():
    timing = presets()["a100-llama-3.1-8b"].timing()
    errors = [error(timing.of_step([(tokens, 0)], []), profiled_prefill_s(tokens)) for tokens in (256, 1024, 8192)]

    assert errors == pytest.approx([-0.30, -0.19, -0.13], abs=0.01)


def test_derived_decode_is_near_the_kernels_of_2024():
    timing = presets()["a100-llama-3.1-8b"].timing()

    for context_tokens in (500, 1000, 2000, 4000):
        for calls in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            derived_ps = timing.of_step([], [context_tokens] * calls)
            assert -0.20 < error(derived_ps, profiled_decode_s(calls, context_tokens)) < 0.15


def test_the_published_system_is_exactly_that():
    assert (PUBLISHED.gpu_blocks, PUBLISHED.block_tokens, PUBLISHED.kv_bytes_per_token) == (3049, 16, 196_608)
    assert (PUBLISHED.step_budget_tokens, PUBLISHED.max_running, PUBLISHED.asynchronous) == (8192, 1024, True)
    assert (PUBLISHED.host_gib, PUBLISHED.link_gbps, PUBLISHED.max_context_tokens) == (100, 25, 32_768)


def test_the_memory_reserve_is_about_what_the_published_system_left():
    derived = derive(GPUS["a800"], published_model("qwen2.5-14b"), 1, "half", memory_share=0.5)

    assert derived.gpu_blocks == pytest.approx(PUBLISHED.gpu_blocks, rel=0.008)


def test_the_derivation_comes_near_the_published_engine_where_it_decodes():
    derived = derive(GPUS["a800"], published_model("qwen2.5-14b"), 1, "half", memory_share=0.5)
    busy = [9_000] * 8  # its mean batch and prompt

    assert derived.timing().of_step([], busy) == pytest.approx(PUBLISHED.timing().of_step([], busy), rel=0.15)


def test_more_gpus_make_a_step_cheaper_and_leave_more_blocks():
    two, four = (derive(GPUS["h200"], published_model("llama-3.3-70b"), gpus, f"tp{gpus}") for gpus in (2, 4))

    assert four.gpu_blocks > 2 * two.gpu_blocks  # the weights are held once
    assert four.timing().of_step([(8192, 0)], []) < two.timing().of_step([(8192, 0)], [])
    assert four.prefill_token_s > two.prefill_token_s > 0  # but more is sent around
