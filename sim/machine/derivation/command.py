"""`tokencake machine derive`: a machine out of a model's configuration file and a GPU."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ....traces.errors import MachineError
from ....traces.files.fields import shown
from ....traces.files.outputs import check_outputs, outputs_of
from ....traces.files.whole_file import STANDARD_OUTPUT
from ....traces.results.reports.publishing import publish, show
from ..files import machine_toml
from ..machine import RULES, Machine
from ..models.model import read_model
from ..models.shapes import Model
from .formats import KV_BYTES, WEIGHT_FORMATS
from .gpus import GPUS
from .roofline import MOST_GPUS, derive, gpus_needed, preset_context_tokens

CONFIG_FILE = "config.json"  # in a model's folder
ALWAYS = (
    "tensor parallelism: every layer is divided among the GPUs, keys and values among them by heads, one at least each",
    "the language model alone: encoders of images or sound take memory that is not counted",
    "no speculative decoding: layers that only draft are not counted",
)


class DeriveOptions(NamedTuple):
    """What is asked for. None: what the model or the GPU has by default."""

    config: Path
    gpu: str
    tp: int | None = None
    weights: str | None = None
    kv: str = "bf16"
    dp: int = 1
    max_context_tokens: int | None = None
    step_budget_tokens: int | None = None
    max_running: int | None = None
    name: str | None = None
    output: Path | None = None


def run_derive(options: DeriveOptions) -> None:
    """Write the machine, and say what was assumed. Raises MachineError, in one line, for whatever a user can mend."""
    _check(options)
    config = options.config / CONFIG_FILE if options.config.is_dir() else options.config
    check_outputs(outputs_of(output=options.output), [config])
    model, assumed = read_model(config)
    machine, gpus = _derived(options, model, config)
    about = _about(options, model, gpus)
    assumed = [*assumed, *_assumed(options, model, machine), *ALWAYS]
    publish(
        [(options.output or STANDARD_OUTPUT, lambda: machine_toml(machine, [about, "assumed:", *assumed]))],
        lambda: show([about, f"{machine.name}: {machine.gpu_blocks:,} pages", *(f"assumed: {one}" for one in assumed)]),
    )


def _check(options: DeriveOptions) -> None:
    known: tuple[tuple[str, str | None, Collection[str]], ...] = (
        ("gpu", options.gpu, GPUS),
        ("weights", options.weights, WEIGHT_FORMATS),
        ("kv", options.kv, KV_BYTES),
    )
    for option, given, choices in known:
        if given is not None and given not in choices:
            raise MachineError(f"--{option}: expected one of {', '.join(choices)}, got {shown(given)}")
    if options.name is not None and (problem := RULES["name"].problem(options.name)):
        raise MachineError(f"--name: {problem}")
    if options.dp != 1:
        raise MachineError(f"--dp: expected 1: data-parallel attention is not simulated, got {options.dp}")
    if options.tp is not None and not 1 <= options.tp <= MOST_GPUS:
        raise MachineError(f"--tp: expected 1 to {MOST_GPUS}, what one board carries, got {options.tp}")


def _derived(options: DeriveOptions, model: Model, config: Path) -> tuple[Machine, int]:
    gpu = GPUS[options.gpu]
    try:
        longest_tokens = options.max_context_tokens or preset_context_tokens(gpu, model)
        gpus = options.tp or gpus_needed(gpu, model, weights=options.weights, kv=options.kv, tokens=longest_tokens)
        if gpus is None:
            raise MachineError(
                f"--tp: expected one, for {MOST_GPUS} do not hold the weights and {longest_tokens} tokens"
            )
        machine = derive(
            gpu,
            model,
            gpus,
            options.name or f"{options.gpu}-{model.title}" + (f"-tp{gpus}" if gpus > 1 else ""),
            weights=options.weights,
            kv=options.kv,
            step_budget_tokens=options.step_budget_tokens,
            max_running=options.max_running,
            max_context_tokens=longest_tokens,
        )
    except MachineError as error:
        raise MachineError(f"{config}: {error}") from None
    return machine, gpus


def _about(options: DeriveOptions, model: Model, gpus: int) -> str:
    """What it is, in one line."""
    weights = WEIGHT_FORMATS[options.weights or model.weights].title
    experts, chosen = model.experts
    mixture = f", {model.active_params / 1e9:.1f} B active ({chosen} of {experts} experts)" if experts else ""
    size = f"{model.title}: {model.params / 1e9:.1f} B parameters{mixture}"
    return f"{size}, weights in {weights}, KV in {options.kv}, on {gpus} x {GPUS[options.gpu].title}"


def _assumed(options: DeriveOptions, model: Model, machine: Machine) -> list[str]:
    gpu = GPUS[options.gpu]
    found = []
    if options.weights is None:
        found.append(f"weights as released: {model.weights}")
    if machine.max_context_tokens < model.max_context_tokens and options.max_context_tokens is None:
        found.append(f"contexts of {machine.max_context_tokens} tokens, of the model's {model.max_context_tokens}")
    if options.step_budget_tokens is None or options.max_running is None:
        found.append(f"vLLM's defaults for the GPU: {gpu.step_budget_tokens} tokens a step, {gpu.max_running} calls")
    if machine.block_tokens != 16:
        found.append(f"pages of {machine.block_tokens} tokens, as vLLM's kernels or states of layers need them")
    if machine.experts_s:
        found.append("tokens choose experts at random, and independently of each other")
    if not gpu.fp8 and WEIGHT_FORMATS[options.weights or model.weights].bits < 16:
        found.append("arithmetic in bf16: the GPU has none in fewer bits")
    return found
