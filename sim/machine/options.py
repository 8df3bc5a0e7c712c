"""The options that say which machine is simulated, and of what one is derived."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...traces.console.options import Option, collected, with_options

if TYPE_CHECKING:
    from .files import MachineChoice

setting_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the machine."
)


def machine_option(text: str) -> Option:
    """`--machine M`."""
    return click.option("--machine", "machine_name", metavar="M", help=text)


def _machine(machine_name: str | None, settings: tuple[str, ...]) -> MachineChoice:
    from .files import MachineChoice

    return MachineChoice(machine_name, settings)


as_machine = collected("machine", _machine, ("machine_name", "settings"))

DERIVE_OPTIONS = (
    click.option(
        "--config", type=click.Path(path_type=Path), required=True, metavar="FILE", help="A model's config.json."
    ),
    click.option(
        "--gpu", required=True, metavar="GPU", help="a100, a800, h100, h200, b200, l40s, rtx4090 or rtxpro6000."
    ),
    click.option("--tp", type=int, metavar="N", help="GPUs, by tensor parallelism. [default: the fewest that hold it]"),
    click.option("--dp", type=int, default=1, metavar="N", help="Data-parallel attention: not simulated, only 1."),
    click.option("--weights", metavar="FORMAT", help="bf16, fp8, int4, nvfp4 or mxfp4. [default: as released]"),
    click.option("--kv", default="bf16", metavar="FORMAT", help="bf16 or fp8. [default: bf16]"),
    click.option("--max-context-tokens", type=click.IntRange(1), metavar="N", help="[default: the model's]"),
    click.option("--step-budget-tokens", type=click.IntRange(1), metavar="N", help="[default: vLLM's for the GPU]"),
    click.option("--max-running", type=click.IntRange(1), metavar="N", help="[default: vLLM's for the GPU]"),
    click.option("--name", metavar="NAME", help="The machine's. [default: the GPU's and the model's]"),
    click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: standard output]"),
)
derive_options = with_options(DERIVE_OPTIONS)
