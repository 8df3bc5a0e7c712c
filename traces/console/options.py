"""What commands' options are made of: numbers, groups that are one argument, and what has no effect refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

Command = Callable[..., Any]
Option = Callable[[Command], Command]  # a decorator, as click makes it


class Number(click.FloatRange):
    """A number in a range. click lets NaN through, which is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class RenamedOption(click.Option):
    """An option that is accepted under its former name, too, which the help does not show."""

    def __init__(self, *declarations: Any, formerly: str, **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self._formerly = formerly

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        shown = self.opts
        self.opts = [*shown, self._formerly]
        super().add_to_parser(parser, ctx)
        self.opts = shown


def with_options(options: Sequence[Option]) -> Option:
    """Gives a command all of these options, in this order."""

    def decorated(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


def collected(argument: str, make: Callable[..., object], parameters: Collection[str]) -> Option:
    """Gives a command those of the `parameters` that it has as one argument: what `make` makes of them, by name."""

    def decorated(command: Command) -> Command:
        @wraps(command)
        def with_argument(**values: Any) -> Any:
            own = {name: values.pop(name) for name in parameters if name in values}
            return command(**values, **{argument: make(**own)})

        return with_argument

    return decorated


def given() -> dict[str, str]:
    """What the command line gives of the command, by parameter: an option by its present name, or an argument."""
    context = click.get_current_context()
    return {
        parameter.name: parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.human_readable_name
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def refuse(why: str, *names: str) -> None:
    """Refuses these parameters, if they are given: they would have no effect, and nobody would be told."""
    for name, written in given().items():
        if name in names:
            raise click.UsageError(f"{written} has no effect {why}")


def refuse_all_but(why: str, *names: str) -> None:
    """Refuses what is given beside these parameters: see `refuse`."""
    refuse(why, *(given().keys() - set(names)))
