"""A machine as a TOML file that `load_machine` reads back equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ...traces.files.escaping import one_line
from .machine import Machine


def machine_toml(machine: Machine, comments: Iterable[str] = ()) -> str:
    """The text of a file with every field of the machine, below comments, a line each."""
    settings = machine.settings()
    beliefs = settings.pop("beliefs")
    assert isinstance(beliefs, Mapping)
    lines = [f"# {one_line(comment)}".rstrip() for comment in comments]
    lines += [f"{key} = {_value(value)}" for key, value in settings.items()]
    if beliefs:
        lines += ["", "[beliefs]", *(f"{key} = {_value(value)}" for key, value in beliefs.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """A setting as TOML writes it, which JSON does alike: a name is printable, a number finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
