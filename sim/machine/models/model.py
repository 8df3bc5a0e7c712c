"""A model's shape out of its configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....traces.files.fields import MAX_NAME, shown
from .config import Config, read_config
from .families import FAMILIES
from .layers import layers_of
from .shapes import Model

# What a `quantization_config` says of the released weights: its method, or what it says beside "modelopt".
FORMATS: Mapping[str, str] = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "awq": "int4",
    "gptq": "int4",
    "NVFP4": "nvfp4",
    "FP8": "fp8",
}


def read_model(path: Path) -> tuple[Model, list[str]]:
    """The shape of the model whose configuration this file is; and what was assumed.

    Raises MachineError, in one line that names the file and the field, for what is missing or means nothing.
    """
    config = read_config(path)
    if not config.values.get("_name_or_path"):
        config.values["_name_or_path"] = path.resolve().parent.name
    return model_of(config), config.assumed


def model_from(title: str, values: Mapping[str, Any], stated_params: float | None = None) -> Model:
    """The shape of a configuration that is at hand."""
    return model_of(Config({"_name_or_path": title, **values}, title), stated_params)


def model_of(config: Config, stated_params: float | None = None) -> Model:
    if config.model_type in FAMILIES:
        config.defaults = FAMILIES[config.model_type]
    else:
        config.assume(f"model_type {shown(config.model_type)} is not known: read by the names of its fields alone")
    hidden, layers = config.size("hidden_size"), layers_of(config)
    return Model(
        title=_title(config),
        hidden=hidden,
        vocab=config.size("vocab_size"),
        layers=layers,
        max_context_tokens=config.size("max_position_embeddings", "max_sequence_length", "n_positions"),
        tied=config.flag("tie_word_embeddings"),
        weights=_released(config),
        stated_params=stated_params,
    )


def _title(config: Config) -> str:
    name = str(config.values.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    return name if name.isprintable() and 0 < len(name) <= MAX_NAME else config.model_type or "model"


def _released(config: Config) -> str:
    """The format of the released weights."""
    quantized = config.values.get("quantization_config")
    if not isinstance(quantized, Mapping):
        return "bf16"
    found = _compressed(quantized) or FORMATS.get(str(quantized.get("quant_algo") or quantized.get("quant_method")))
    if found is None:
        config.assume(f"weights in bf16, for quantization_config.quant_method {shown(quantized.get('quant_method'))}")
    return found or "bf16"


def _compressed(quantized: Mapping[str, Any]) -> str | None:
    """What compressed-tensors says of its first group of weights."""
    groups = quantized.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    kinds = {"8 float": "fp8", "4 int": "int4", "4 float": "nvfp4"}
    return kinds.get(f"{weights.get('num_bits')} {weights.get('type')}")
