"""GPUs: memory and links by data sheet, rates and fixed costs as an engine achieves them.

docs/machines.md has the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

WEIGHTS_SHARE = 0.89  # of a data sheet's bandwidth that reading weights reaches
CONTEXT_SHARE = 0.82  # of a data sheet's bandwidth that reading paged keys and values reaches
ENGINE_S = 1.2e-3  # a step of a Hopper engine beside its layers: inputs, sampling, what the host does not hide
LAYER_S = 19e-6  # a layer's fixed cost inside a CUDA graph: some seven kernels that start and drain in 2 to 3 µs each
NVLINK_SHARE = 0.63  # of a data sheet's NVLink rate, both ways together, that an all-reduce reaches
NVLINK_S = 5e-6  # an all-reduce of few bytes over NVLink, inside a CUDA graph
LONGEST_AGENT_TOKENS = 32_768  # the context that a preset of a card with little memory is for


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: memory and links by data sheet; rates and fixed costs as an engine achieves them.

    With vLLM's defaults for it: tokens of a step and running calls.
    """

    title: str
    memory_gib: float  # data sheets write GB and mean GiB
    weights_tbps: float  # reading weights, TB/s
    context_tbps: float  # reading paged keys and values, TB/s
    tflops: float  # linear layers in bf16, TFLOP/s
    link_gbps: float  # to the host, each way
    peer_gbps: float  # an all-reduce, by the ring formula
    peer_s: float  # an all-reduce, whatever its size
    engine_s: float = ENGINE_S  # a step, whatever is in it
    layer_s: float = LAYER_S  # a layer, whatever is in it
    context_gib: float = 0.675  # CUDA's context, graphs and buffers of a process
    fp8: bool = True  # multiplies in FP8; a GPU that does not computes in bf16 what is stored in 8 bits
    fp4: bool = False  # multiplies in 4 bits
    latent_block_tokens: int = 16  # a block of vLLM's first choice of MLA kernels for it
    max_context_tokens: int | None = None  # of presets; None: the model's
    step_budget_tokens: int = 8192
    max_running: int = 1024


def _nvlink(gbps: float) -> float:
    """What an all-reduce reaches of NVLink's rate, both ways together."""
    return NVLINK_SHARE * gbps


_SMALL: Mapping[str, Any] = {"max_context_tokens": LONGEST_AGENT_TOKENS, "step_budget_tokens": 2048, "max_running": 256}
_HOPPER_TFLOPS = 740.0  # of 989: large matrix products of this chip reach 700 to 790

_A100 = Gpu("A100-SXM4-80G", 80.0, 1.66, 1.67, 250.0, 25.0, _nvlink(600), NVLINK_S, engine_s=2.0e-3, fp8=False)
_H100 = Gpu(
    "H100-SXM-80G", 80.0, WEIGHTS_SHARE * 3.35, CONTEXT_SHARE * 3.35, _HOPPER_TFLOPS, 50.0, _nvlink(900), NVLINK_S
)

GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        # Data sheet 2.04 TB/s, 312 TFLOP/s, NVLink 600 GB/s.
        "a100": replace(_A100, step_budget_tokens=2048, max_running=256),
        # An A100 with less NVLink. The link's 25 GB/s is what the authors of the published system measured.
        "a800": replace(_A100, title="A800-SXM4-80G", peer_gbps=_nvlink(400)),
        # Data sheet 3.35 TB/s, 989 TFLOP/s, NVLink 900 GB/s. Link to the host: twice PCIe 4's, not measured.
        "h100": _H100,
        # Data sheet 4.8 TB/s; otherwise an H100's chip. Nothing was measured.
        "h200": replace(
            _H100,
            title="H200-SXM-141G",
            memory_gib=141.0,
            weights_tbps=WEIGHTS_SHARE * 4.8,
            context_tbps=CONTEXT_SHARE * 4.8,
        ),
        # Data sheet 8 TB/s, 2,250 TFLOP/s, NVLink 1,800 GB/s, by an H100's shares. Nothing was measured.
        "b200": Gpu(
            "B200-SXM-180G",
            180.0,
            WEIGHTS_SHARE * 8,
            CONTEXT_SHARE * 8,
            _HOPPER_TFLOPS / 989 * 2250,
            50.0,
            _nvlink(1800),
            NVLINK_S,
            fp4=True,
            latent_block_tokens=32,
        ),
        # Data sheet 0.864 TB/s, 362 TFLOP/s, by an H100's shares; no peer access, so all-reduces go over PCIe 4.
        "l40s": Gpu(
            "L40S-48G",
            48.0,
            WEIGHTS_SHARE * 0.864,
            CONTEXT_SHARE * 0.864,
            _HOPPER_TFLOPS / 989 * 362,
            25.0,
            15.0,
            30e-6,
            context_gib=0.39,
            **_SMALL,
        ),
        # Data sheet 1.008 TB/s, 165 TFLOP/s with sums in fp32, of which 0.9 are reached (measured); 23.5 GiB by CUDA.
        "rtx4090": Gpu(
            "RTX-4090-24G",
            23.75,
            WEIGHTS_SHARE * 1.008,
            CONTEXT_SHARE * 1.008,
            148.0,
            25.0,
            15.0,
            70e-6,
            context_gib=0.39,
            **_SMALL,
        ),
        # Data sheet 1.792 TB/s, 504 TFLOP/s; this architecture's kernels reach less and start slower (measured).
        "rtxpro6000": Gpu(
            "RTX-PRO-6000-96G",
            96.0,
            WEIGHTS_SHARE * 1.792,
            1.254,
            302.0,
            50.0,
            18.0,
            50e-6,
            layer_s=72e-6,
            context_gib=0.39,
            fp4=True,
        ),
    }
)
