"""The folder that a suite's paths are told from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....policies.registry import policy_file
from ...machine.files import load_machine, machine_path
from ...machine.kv_groups import groups_of, groups_text
from ...machine.machine import Machine


@dataclass(frozen=True, slots=True)
class SuitePaths:
    """Finds what is named from a folder, wherever the command was started."""

    folder: Path

    def path(self, written: str | Path) -> Path:
        return self.folder / written

    def policy(self, spec: str) -> str:
        """A policy as `load_policy` takes it."""
        file, mark, rest = spec.partition(".py:")
        return f"{self.path(file)}{mark}{rest}" if mark else spec

    def policy_file(self, spec: str) -> Path | None:
        """The file that a policy comes from, if it is the user's own."""
        file = policy_file(spec)
        return None if file is None else self.path(file)

    def machine(self, name: str, settings: Sequence[str] = ()) -> Machine:
        """A preset, or a TOML file, with settings. Raises MachineError if there is none, or one is wrong."""
        file = self.machine_file(name)
        return load_machine(name if file is None else str(file), settings)

    def machine_file(self, name: str) -> Path | None:
        """The file of a machine; None if it is a preset."""
        file = machine_path(name)
        return None if file is None else self.path(file)


def as_settings(table: Mapping[str, object]) -> tuple[str, ...]:
    """Settings of a machine as `load_machine` takes them."""
    return tuple(f"{key}={_setting_text(value)}" for key, value in table.items())


def _setting_text(value: object) -> str:
    if isinstance(value, list):
        return groups_text(groups_of(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
