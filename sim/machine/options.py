"""The options that say which machine is simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...traces.console.options import Option, collected

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
