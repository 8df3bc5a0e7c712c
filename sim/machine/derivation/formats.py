"""Formats of weights: bytes, which weights are in them, and how fast a GPU multiplies with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from .gpus import Gpu

BF16_BYTES = 2
FP8_GAIN = 1.7  # matrix products in FP8 over those in bf16: 1.6 to 1.8, for scales stay; FP4 is taken alike


class WeightFormat(NamedTuple):
    """`weight_bytes` of a weight, its share of scales included. Embedding and output head stay in bf16."""

    title: str
    weight_bytes: float
    experts_only: bool = False  # all other weights stay in bf16
    bits: int = 16  # that are multiplied with, where the GPU can

    def gain(self, gpu: Gpu) -> float:
        """How much faster than bf16 the GPU multiplies."""
        return FP8_GAIN if (self.bits == 8 and gpu.fp8) or (self.bits == 4 and gpu.fp4) else 1.0


WEIGHT_FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {
        "bf16": WeightFormat("bf16", BF16_BYTES),
        "fp8": WeightFormat("FP8", 1.0, bits=8),
        "int4": WeightFormat("INT4, in groups of 128", 0.52),
        "nvfp4": WeightFormat("NVFP4, in groups of 16", 0.5625, bits=4),
        "mxfp4": WeightFormat("MXFP4 experts, in groups of 32", 0.53125, experts_only=True, bits=4),
    }
)
KV_BYTES: Mapping[str, int] = MappingProxyType({"bf16": 2, "fp8": 1})  # of an element of keys and values
