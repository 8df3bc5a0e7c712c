"""Machines by name: the system of the published measurements, and those that are derived.

They are made when they are asked for, and what derives them is loaded then: a run needs one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

from .machine import Machine

# The published system. Unlike the others it is no derivation: memory as published, step costs fitted to its
# measurements. docs/machines.md holds them against what the data sheet gives.
PUBLISHED = Machine(
    name="a800-qwen2.5-14b",
    gpu_blocks=3049,
    kv_bytes_per_token=196_608,
    host_gib=100.0,
    max_context_tokens=32_768,
    step_s=20.6e-3,
    prefill_token_s=129e-6,
    decode_call_s=54e-6,
    context_token_s=120e-9,
    link_gbps=25.0,
    copy_s=0.0005,
    client_s=0.075,
)


def preset(name: str) -> Machine | None:
    """The preset of this name, if there is one."""
    if name == PUBLISHED.name:
        return PUBLISHED
    from .derivation.derived_presets import derived_preset

    return derived_preset(name)


def preset_names() -> Iterable[str]:
    """Every preset's name, GPU by GPU."""
    from .derivation.derived_presets import names

    return names()


@cache
def presets() -> Mapping[str, Machine]:
    """Every preset by name."""
    return MappingProxyType({name: machine for name in preset_names() if (machine := preset(name))})
