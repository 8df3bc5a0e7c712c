"""A group of commands that says when who read its output has gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


class ReaderGone(Exception):
    """Who read our output has gone."""


class CommandGroup(click.Group):
    """click makes an exit of its own of a pipe that nobody reads any more, by which nobody could tell what it was."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _reader_gone():  # --help and --version are printed here
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_gone():
            return super().invoke(ctx)


@contextmanager
def _reader_gone() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
