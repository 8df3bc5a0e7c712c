"""A preset a GPU and a model that is served, on as many GPUs as it needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ..machine import Machine
from ..models.published import PUBLISHED_MODELS, published_model
from .gpus import GPUS
from .roofline import derive, gpus_needed


def derived_preset(name: str) -> Machine | None:
    """The machine of this name, such as `h100-qwen3-32b-tp2`, if there is one."""
    gpu, _, rest = name.partition("-")
    model = rest.partition("-tp")[0]
    if gpu not in GPUS or model not in PUBLISHED_MODELS or name != name_of(gpu, model):
        return None
    return derive(GPUS[gpu], published_model(model), gpus_of(gpu, model) or 1, name)


@cache
def gpus_of(gpu: str, model: str) -> int | None:
    """On how many GPUs a preset of a model is; None if no board of them holds it."""
    return gpus_needed(GPUS[gpu], published_model(model))


def name_of(gpu: str, model: str) -> str | None:
    """What a GPU's preset of a model is called, if there is one."""
    gpus = gpus_of(gpu, model)
    return None if gpus is None else f"{gpu}-{model}" + (f"-tp{gpus}" if gpus > 1 else "")


def names() -> Iterator[str]:
    """In the order of `GPUS` and `PUBLISHED_MODELS`."""
    for gpu in GPUS:
        for model in PUBLISHED_MODELS:
            if name := name_of(gpu, model):
                yield name
