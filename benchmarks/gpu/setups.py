"""The engines and workloads of the phases: on a GPU, and what stands in for them on a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.start.available_memory import available_bytes
from tokencake.sim.calibration.probes.effort import QUICK, Effort
from tokencake.sim.machine.derivation.gpus import GPUS
from tokencake.sim.machine.derivation.roofline import derive
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.models.published import PUBLISHED_MODELS, dense, published_model
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.generate.workloads import code_writer
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

from .plan import COMPILED, EAGER, SMALL, TRITON
from .work import Work

SHAPE_7B = PUBLISHED_MODELS["qwen2.5-7b"].config
SHAPE_05B = dense("qwen2", 24, 14, 896, 4864, 151_936, 32_768, kv_heads=2, head_dim=64)
ONE_LAYER = dense("qwen2", 1, 8, 1024, 2048, 32_000, 32_768, kv_heads=2)
SMALLEST = dense("qwen2", 2, 4, 256, 512, 4_096, 32_768, kv_heads=2, head_dim=64)  # for a CPU
TRITON_BACKEND = "TRITON_ATTN"
RATE = 1.0  # applications a second, before times are scaled
HOST_GIB = 16.0  # for copies of the 7B shape's blocks
LEAST_HOST_GIB = 1.0
DRY_LINK_GBPS = 0.05  # of the copies of a CPU engine: as slow, for blocks as small, as a real link is


@dataclass(frozen=True, slots=True)
class Shape:
    """An engine that a workload is played on, how it is measured, and how much can be played."""

    title: str
    engine: EngineOptions
    effort: Effort
    counts: tuple[int, ...]  # of applications, the most that is worth while first
    time_scale: float  # of arrivals and tools
    shrink: int = 1  # of this many tokens one is left

    def workload(self, applications: int) -> list[Application]:
        whole = code_writer(applications, RATE)
        return list(scaled(shrunk(whole, self.shrink) if self.shrink > 1 else whole, self.time_scale))


def shape_7b(work: Work, *, asynchronous: bool | None = None) -> Shape:
    """The published benchmark's memory pressure with a model that starts in half the time."""
    if work.dry:
        return _dry_shape(work, asynchronous)
    small = work.variant == SMALL
    engine = EngineOptions(
        model=str(config_only(work.folder("qwen2.5-7b"), SHAPE_7B)),
        load_format="dummy",
        dtype="bfloat16",
        gpu_blocks=2033 if small else PUBLISHED.gpu_blocks,
        block_tokens=PUBLISHED.block_tokens,
        max_context_tokens=PUBLISHED.max_context_tokens,
        step_budget_tokens=PUBLISHED.step_budget_tokens,
        max_running=64,
        host_gib=host_gib(),
        verbose=True,
        asynchronous=asynchronous,
        **_way_up(work.variant),  # type: ignore[arg-type]
    )
    # Contexts that fit into the cache together; prompts and copies as large as the workload's.
    effort = replace(
        QUICK,
        prefill_tokens=(8, 64, 256, 1024, 2048, 4096, 8192),
        context_tokens=(64, 2048, 8192),
        cached_tokens=16_384,
        largest_batch=64,
        copy_bytes=(1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 30),
    )
    counts = (8, 6, 4, 2) if small else (12, 10, 8, 6, 4, 2)
    return Shape("Qwen2.5-7B's shape, dummy weights", engine, effort, counts, time_scale=0.5)


def _way_up(variant: str) -> dict[str, object]:
    """How to bring the engine up: the usual way, and what may still do where that fails."""
    if variant in (EAGER, SMALL):
        return {"compile": "none", "model_runner": "v1"}
    known: dict[str, dict[str, object]] = {
        COMPILED: {"largest_graph_tokens": 64},
        TRITON: {"largest_graph_tokens": 64, "attention_backend": TRITON_BACKEND},
    }
    return known[variant]


def _dry_shape(work: Work, asynchronous: bool | None) -> Shape:
    engine = EngineOptions(
        gpu_blocks=60, max_context_tokens=1_600, host_gib=0.05, link_gbps=DRY_LINK_GBPS, asynchronous=asynchronous
    )
    effort = Effort(
        repeats=2,
        prefill_tokens=(8, 128, 512),
        context_tokens=(64, 256),
        cached_tokens=1_024,
        largest_batch=4,
        decode_steps=4,
        copy_bytes=(1 << 18, 1 << 20, 1 << 21),
    )
    return Shape("the tiny model", engine, effort, (4, 2, 1), time_scale=0.02, shrink=24)


def preset(gpu_name: str, shape: Shape) -> Machine | None:
    """What the derived presets say of this GPU and model, with the engine's sizes; None of a GPU that has none."""
    known = next((gpu for name, gpu in GPUS.items() if name in gpu_name.lower()), None)
    if known is None:
        return None
    engine = shape.engine
    assert engine.gpu_blocks is not None
    assert engine.max_running is not None
    assert engine.host_gib is not None
    return replace(
        derive(known, published_model("qwen2.5-7b"), 1, "preset"),
        gpu_blocks=engine.gpu_blocks,
        max_running=engine.max_running,
        host_gib=engine.host_gib,
        client_s=0.0,  # a live run's client reacts in the same round
    )


# -- answers


def tiny_engine(work: Work, dtype: str, attention_backend: str | None) -> EngineOptions:
    """The tiny model with so few blocks that contexts are preempted, copied and loaded."""
    return EngineOptions(
        dtype=dtype,
        gpu_blocks=60,
        block_tokens=32,
        host_gib=0.02,
        compile="none",
        attention_backend=None if work.dry else attention_backend,
        link_gbps=0.02 if work.dry else None,
        verbose=True,
    )


def answered(work: Work) -> list[Application]:
    """What is played for its answers: code writers with a 24th of their tokens."""
    return list(scaled(shrunk(code_writer(3 if work.dry else 6, RATE), 24), 0.03))


# -- steps


def small_engine(work: Work) -> EngineOptions:
    """A model so small that a step takes about as long as what it takes to schedule it."""
    if work.dry:
        return EngineOptions(
            model=str(config_only(work.folder("smallest"), SMALLEST)),
            load_format="dummy",
            gpu_blocks=600,
            max_context_tokens=2_048,
            host_gib=0.05,
        )
    return EngineOptions(
        model=str(config_only(work.folder("qwen2.5-0.5b"), SHAPE_05B)),
        load_format="dummy",
        dtype="bfloat16",
        gpu_blocks=8_192,
        block_tokens=16,
        max_context_tokens=8_192,
        max_running=64,
        host_gib=2.0,
        compile="graphs",
        verbose=True,
    )


def one_layer(work: Work) -> EngineOptions:
    """The least that runs the kernels of bf16."""
    model = SMALLEST if work.dry else ONE_LAYER
    return EngineOptions(
        model=str(config_only(work.folder("one-layer"), model)),
        load_format="dummy",
        dtype="bfloat16",
        gpu_blocks=64,
        max_context_tokens=512,
        host_gib=0.05,
        compile="none",
        verbose=True,
    )


def decoding(calls: int, prompt_tokens: int, output_tokens: int) -> list[Application]:
    """One application whose calls all arrive at once and do nothing but decode side by side."""
    made = tuple(
        Call(
            id=f"a/{index}",
            app="a",
            agent=f"a/agent{index}",
            agent_type="decoding",
            prompt=Prompt((Segment(f"a/{index}.prompt", 0, prompt_tokens),), tokens=prompt_tokens),
            output_tokens=output_tokens,
            max_output_tokens=output_tokens,
        )
        for index in range(calls)
    )
    return [Application("a", 0.0, made)]


# -- models and memory


def config_only(folder: Path, shape: Mapping[str, Any]) -> Path:
    """A model's folder that holds nothing but its shape: enough for dummy weights."""
    config = {
        **shape,
        "architectures": ["Qwen2ForCausalLM"],
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def host_gib() -> float:
    """Memory for copies: half of what is available, at most what the workload needs."""
    return max(LEAST_HOST_GIB, min(HOST_GIB, available_gib() / 2))


def available_gib() -> float:
    """Memory that programs can still take."""
    return available_bytes() / 2**30


def calls_of(applications: Sequence[Application]) -> int:
    return sum(len(application.calls) for application in applications)
