"""A model's configuration file as Hugging Face writes it: its fields, and those that it leaves to the model's type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....traces.errors import MachineError
from ....traces.files.fields import WrongField, shown
from ....traces.files.input_limits import TOML_BYTES
from ....traces.files.source_file import whole
from ....traces.files.strict_json import strict_json

MOST = 2**31 - 1  # of any size
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")  # of a model that also sees or hears
_NO_JSON = re.compile(rb"-?\b(?:Infinity|NaN)\b")  # in fields that nobody needs here


class Config:
    """The fields of a model's text part. What is asked for and not given is noted in `assumed`.

    `defaults` are those that the model's type has for fields that its files leave out.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.values = dict(values)
        self.values.pop("model_type", None)
        self.model_type = str(values.get("model_type") or "")
        for part in TEXT_PARTS:
            if isinstance(inner := values.get(part), Mapping):
                self.values |= inner
                self.model_type = str(inner.get("model_type") or self.model_type)
        self.defaults: Mapping[str, Any] = {}
        self.assumed: list[str] = []

    def given(self, *names: str) -> Any:
        """The first of these fields that is there, of the file's or else of the type's; None if none is."""
        return self._named(names)[1]

    def size(self, *names: str, least: int = 1) -> int:
        """A whole number. Raises MachineError if it is none, or missing."""
        found = self.size_or(None, *names, least=least)
        if found is None:
            raise MachineError(f"{self.where}: {names[0]}: is missing, of a model of type {shown(self.model_type)}")
        return found

    def size_or(self, otherwise: int | None, *names: str, least: int = 1) -> int | None:
        """The same, or what it is otherwise."""
        name, value = self._named(names)
        if value is None:
            return otherwise
        if type(value) is int and least <= value <= MOST:
            return value
        raise self.wrong(name, f"a whole number from {least} to {MOST}", value)

    def count(self, *names: str) -> int:
        """A whole number that is 0 where it is missing."""
        return self.size_or(0, *names, least=0) or 0

    def flag(self, name: str) -> bool:
        """true or false; false where it is missing."""
        value = self.given(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.wrong(name, "true or false", value)

    def words(self, name: str, length: int) -> list[str] | None:
        """A list of so many texts, None where it is missing."""
        value = self.given(name)
        if value is None:
            return None
        if isinstance(value, list) and len(value) == length and all(isinstance(one, str) for one in value):
            return value
        raise self.wrong(name, f"a list of {length} texts", value)

    def sizes(self, name: str) -> list[int] | None:
        """A list of whole numbers, None where it is missing."""
        value = self.given(name)
        if value is None:
            return None
        if isinstance(value, list) and all(type(one) is int for one in value):
            return value
        raise self.wrong(name, "a list of whole numbers", value)

    def _named(self, names: tuple[str, ...]) -> tuple[str, Any]:
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        for name in names:
            if name not in self.values and self.defaults.get(name) is not None:
                self.assume(f"{name} = {shown(self.defaults[name])}, the default of {self.model_type}")
                return name, self.defaults[name]
        return names[0], None

    def assume(self, what: str) -> None:
        if what not in self.assumed:
            self.assumed.append(what)

    def wrong(self, name: str, expected: str, got: object) -> MachineError:
        return MachineError(f"{self.where}: {name}: expected {expected}, got {shown(got)}")


def read_config(file: Path) -> Config:
    """Raises MachineError, in one line, if a file is no configuration."""
    data = _NO_JSON.sub(b"null", whole(file, TOML_BYTES, MachineError))
    try:
        values = strict_json(data)
    except WrongField as wrong:
        raise MachineError(f"{file}: {wrong}") from None
    if not isinstance(values, dict):
        raise MachineError(f"{file}: expected an object, the config.json of a model, got {shown(values)}")
    return Config(values, str(file))
