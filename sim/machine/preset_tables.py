"""The presets as lines for `tokencake machines`, and as tables for docs/machines.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .derivation.derived_presets import gpus_of, name_of
from .derivation.gpus import GPUS, Gpu
from .derivation.grouping import pages_of
from .derivation.roofline import derive
from .kv_groups import groups_text
from .machine import Machine
from .models.published import PUBLISHED_MODELS, published_model
from .presets import PUBLISHED, preset, preset_names


def preset_lines(words: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """The name of each preset whose name holds all of these words, and what it is, in one line."""
    for name in preset_names():
        if all(word in name for word in words) and (machine := preset(name)):
            yield name, _line(machine)


def model_table() -> str:
    """The models of the presets, as a Markdown table."""
    headings = ("", "parameters", "active", "weights", "KV cache groups", "tokens a page", "KV bytes a token of a page")
    rows = [_markdown(headings), "|---" + "|--:" * (len(headings) - 1) + "|"]
    return "\n".join(rows + [_model_row(name) for name in PUBLISHED_MODELS]) + "\n"


def preset_table() -> str:
    """Of every GPU and model, the preset's number of GPUs and its pages, as a Markdown table."""
    rows = [_markdown(("", *GPUS)), "|---" + "|--:" * len(GPUS) + "|"]
    for model in PUBLISHED_MODELS:
        rows.append(_markdown((f"`{model}`", *(_preset_cell(gpu, model) for gpu in GPUS))))
    return "\n".join(rows) + "\n"


def _preset_cell(gpu: str, model: str) -> str:
    name = name_of(gpu, model)
    machine = None if name is None else preset(name)
    return "" if machine is None else f"{gpus_of(gpu, model)} x {machine.gpu_blocks:,}"


def _model_row(name: str) -> str:
    model = published_model(name)
    pages = pages_of(model.mixers, 1, 2)
    billions = (f"{model.params / 1e9:.1f} B", f"{model.active_params / 1e9:.1f} B")
    kv = (groups_text(pages.groups), f"{pages.block_tokens}", f"{pages.token_bytes:,}")
    return _markdown((f"`{name}`", *billions, model.weights, *kv))


def gpu_table() -> str:
    """The hardware figures that `derive` is given, as a Markdown table, for docs/machines.md."""
    headings = ("", "memory", "weights TB/s", "context TB/s", "TFLOP/s", "a step", "a layer", "all-reduce", "process")
    rows = [_markdown((*headings, "link GB/s")), "|---" + "|--:" * len(headings) + "|"]
    return "\n".join(rows + [_gpu_row(gpu) for gpu in GPUS.values()]) + "\n"


def published_table() -> str:
    """The published system's fitted step costs beside those that `derive` gives it, as a Markdown table."""
    derived = derive(GPUS["a800"], published_model("qwen2.5-14b"), 1, "derived", memory_share=0.5)
    headings = (*_COST_HEADINGS, "8 calls decode at 9,000 tokens", "2,000 tokens prefill behind 7,000")
    columns = [(*_costs(machine), *_typical_steps(machine)) for machine in (PUBLISHED, derived)]
    rows = [_markdown(cells) for cells in zip(headings, *columns, strict=True)]
    return "\n".join([_markdown(("", "fitted", "derived")), "|---|--:|--:|", *rows]) + "\n"


def _typical_steps(machine: Machine) -> tuple[str, str]:
    timing = machine.timing()
    decode_ps, prefill_ps = timing.of_step((), [9_000] * 8), timing.of_step([(2_000, 7_000)], ())
    return f"{decode_ps / 1e9:.3g} ms", f"{prefill_ps / 1e9:.3g} ms"


def _line(machine: Machine) -> str:
    gpu_name, _, rest = machine.name.partition("-")
    model_name, _, gpus = rest.partition("-tp")
    what = f"{gpus + ' x ' if gpus else ''}{GPUS[gpu_name].title}, {PUBLISHED_MODELS[model_name].title}"
    groups = f", {len(machine.kv_groups)} KV cache groups" if len(machine.kv_groups) > 1 else ""
    published = ", as published: fitted to measurements" if machine is PUBLISHED else ""
    return f"{what}: {machine.gpu_blocks:,} blocks of {machine.block_tokens} tokens{groups}{published}"


def _gpu_row(gpu: Gpu) -> str:
    rates = (f"{gpu.memory_gib:g} GiB", f"{gpu.weights_tbps:.3g}", f"{gpu.context_tbps:.3g}", f"{gpu.tflops:,.0f}")
    fixed = (f"{gpu.engine_s * 1e3:.2g} ms", f"{gpu.layer_s * 1e6:.2g} µs")
    all_reduce = f"{gpu.peer_s * 1e6:.2g} µs, {gpu.peer_gbps:.0f} GB/s"
    return _markdown((gpu.title, *rates, *fixed, all_reduce, f"{gpu.context_gib:.2g} GiB", f"{gpu.link_gbps:g}"))


_COST_HEADINGS = ("step", "floor", "token", "prefill token", "attention", "decoding call", "context token")


def _costs(machine: Machine) -> tuple[str, ...]:
    """What a step is made of, in the order of `_COST_HEADINGS`."""
    return (
        f"{machine.step_s * 1e3:.3g} ms",
        f"{machine.floor_s * 1e3:.3g} ms",
        f"{machine.token_s * 1e6:.3g} µs",
        f"{machine.prefill_token_s * 1e6:.3g} µs",
        f"{machine.attention_s * 1e9:.3g} ns",
        f"{machine.decode_call_s * 1e6:.3g} µs",
        f"{machine.context_token_s * 1e9:.3g} ns",
    )


def _markdown(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
