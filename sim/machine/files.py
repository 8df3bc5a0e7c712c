"""Machines by name, from TOML files, and changed by `key=value` settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...policies.registry import policy_file
from ...traces.errors import MachineError
from ...traces.files.escaping import one_line
from ...traces.files.fields import MAX_NAME, shown
from ...traces.files.source_file import STANDARD_INPUT
from ...traces.files.toml_file import TomlFile, header, key_of, read_toml
from .kv_groups import Groups, groups_of
from .machine import BELIEVABLE, RULES, Choice, Machine, Name, Real, Switch, Whole, retention_of
from .presets import preset, preset_names

# What vLLM's configuration knows or knew, and its V1 engine never did: a machine that took it would promise something.
NOT_IN_VLLM = ("max_num_partial_prefills", "max_long_partial_prefills")

DEFAULT_MACHINE = "h200-llama-3.1-8b"

KEYS = (*RULES, *(f"beliefs.{key}" for key in BELIEVABLE))
REQUIRED = tuple(field.name for field in fields(Machine) if field.default is MISSING and field.name != "name")


class MachineChoice(NamedTuple):
    """A machine as it is asked for."""

    name: str | None = None  # or the path of a file; None: `DEFAULT_MACHINE`
    settings: tuple[str, ...] = ()  # `key=value`

    def load(self) -> Machine:
        """Errors as `load_machine`."""
        return load_machine(self.name or DEFAULT_MACHINE, self.settings)


def load_machine(name_or_path: str = DEFAULT_MACHINE, settings: Sequence[str] = ()) -> Machine:
    """A preset, or the TOML file at a path (it holds a `/` or ends in `.toml`, or is `-`), changed by settings.

    A file is a table of the fields of `Machine`, all that have no default, or a `base` (a preset) and what differs
    from it. The table `beliefs` says which costs policies are told otherwise. Settings are `key=value`, each key once.

    Raises MachineError, in one line that names the file, the line, the field and what was expected.
    """
    path = machine_path(name_or_path)
    machine = _preset(name_or_path) if path is None else _read(path)
    return changed(machine, _changes(settings))


def changed(machine: Machine, changes: Mapping[str, object]) -> Machine:
    """The machine with settings as `parse_setting` gives them. Raises MachineError if they do not go together."""
    believed = dict(machine.believed) | {
        key.removeprefix("beliefs."): _exact(key, value) for key, value in changes.items() if key.startswith("beliefs.")
    }
    truth: dict[str, Any] = {
        key: _exact(key, value) for key, value in _of_version(machine, changes).items() if key in RULES
    }
    ordered = tuple((key, believed[key]) for key in BELIEVABLE if key in believed)
    try:
        return replace(machine, **truth, believed=ordered)
    except MachineError as error:
        raise MachineError(f"--set: {error}") from None


def _of_version(machine: Machine, changes: Mapping[str, object]) -> dict[str, object]:
    """The changes, and what follows from another `engine_version`: a default of the old one gives way to the new's."""
    key = "prefix_cache_retention_interval"
    version = changes.get("engine_version")
    if isinstance(version, str) and machine.prefix_cache_retention_interval == retention_of(machine.engine_version):
        return {key: retention_of(version), **changes}
    return dict(changes)


def _changes(settings: Sequence[str]) -> dict[str, object]:
    changes: dict[str, object] = {}
    for setting in settings:
        key, value = parse_setting(setting)
        if key in changes:
            raise MachineError(f"--set {key}: given twice")
        changes[key] = value
    return changes


def parse_setting(setting: str) -> tuple[str, object]:
    """The key and the value of a `key=value` of the command line. Raises MachineError if they mean nothing."""
    key, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not key:
        raise MachineError(f"--set {shown(setting)}: expected key=value, such as gpu_blocks=20000")
    value = _value(key, text)
    if problem := setting_problem(key, value):
        raise MachineError(f"--set {problem}")
    return key, value


def machine_path(name_or_path: str) -> Path | None:
    """The file of a machine; None if it is a preset."""
    is_file = name_or_path.endswith(".toml") or "/" in name_or_path or name_or_path == STANDARD_INPUT
    return Path(name_or_path) if is_file else None


def inputs_of(*files: Path | None, machine: str | None = None, policies: Iterable[str] = ()) -> list[Path]:
    """All files that a command reads: those named, a machine's, and those of policies that lie in files."""
    found = [*files, None if machine is None else machine_path(machine), *map(policy_file, policies)]
    return [file for file in found if file is not None]


def _preset(name: str) -> Machine:
    found = preset(name)
    if found is None:
        raise MachineError(f"unknown machine {shown(name)}{_near(name, preset_names())}")
    return found


def _read(path: Path) -> Machine:
    file = read_toml(path, MachineError)
    values = flat_settings(file.table)
    base = values.pop("base", None)
    for key, value in values.items():
        if problem := setting_problem(key, value):
            raise MachineError(f"{path}:{_line_of(file, key)}: {problem}")
    if base is None:
        if missing := [key for key in REQUIRED if key not in values]:
            raise MachineError(f"{path}: expected {', '.join(missing)}, or base = the name of a preset")
        return _made({"name": path.stem, **values}, str(path))
    found = preset(base) if isinstance(base, str) else None
    if found is None:
        near = _near(base, preset_names()) if isinstance(base, str) else ""
        raise MachineError(f"{path}:{_line_of(file, 'base')}: base: expected a preset, got {shown(base)}{near}")
    return _made({**flat_settings(found.settings()), "name": path.stem, **_of_version(found, values)}, str(path))


def flat_settings(table: Mapping[str, object]) -> dict[str, object]:
    """The keys of a table of settings, those of `beliefs` with their prefix. A `beliefs` that is no table stays."""
    beliefs = table.get("beliefs")
    if not isinstance(beliefs, Mapping):
        return dict(table)
    flat = {key: value for key, value in table.items() if key != "beliefs"}
    return flat | {f"beliefs.{key}": value for key, value in beliefs.items()}


def _made(values: Mapping[str, object], where: str) -> Machine:
    """A machine of checked values; what only shows in their combination is reported with `where`."""
    truth: dict[str, Any] = {key: _exact(key, value) for key, value in values.items() if key in RULES}
    believed = tuple((key, _exact(key, values[f"beliefs.{key}"])) for key in BELIEVABLE if f"beliefs.{key}" in values)
    try:
        return Machine(**truth, believed=believed)
    except MachineError as error:
        raise MachineError(f"{where}: {error}") from None


def _exact(key: str, value: Any) -> Any:
    """A checked value in its field's type: `link_gbps = 12` is a real number that happens to be whole."""
    rule = RULES[key.removeprefix("beliefs.")]
    if isinstance(rule, Groups):
        return groups_of(value)
    return float(value) if isinstance(rule, Real) else value


def setting_problem(key: str, value: object) -> str | None:
    """What is wrong with a setting, its key included; None if nothing is."""
    if key == "beliefs":
        return f"beliefs: expected a table of {', '.join(BELIEVABLE)}, got {shown(value)}"
    if key in NOT_IN_VLLM:
        return (
            f"{key}: vLLM's V1 engine has no such limit, a step computes as many prompts as it has tokens for: expected"
            " long_prefill_token_threshold, the most that one of them gets"
        )
    if key not in KEYS:
        return f"unknown setting {shown(key)}{_near(key, KEYS)}"
    problem = RULES[key.removeprefix("beliefs.")].problem(value)
    return f"{key}: {problem}" if problem else None


def _value(key: str, text: str) -> object:
    """`text` as the type of its setting; as it is if that cannot be, for the error to show."""
    rule = RULES.get(key.removeprefix("beliefs."))
    if isinstance(rule, Name | Choice | Groups):
        return text
    if isinstance(rule, Switch):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return int(text) if isinstance(rule, Whole) else float(text)
    except ValueError:
        return text


def _line_of(file: TomlFile, key: str) -> int:
    """The line on which a file sets `key` (`beliefs.x`: also an `x` under `[beliefs]`), else the first."""
    table = ""
    for number, line in enumerate(file.lines, 1):
        if (name := header(line)) is not None:
            table = f"{name}."
        found = table + key_of(line)
        if found == key or table == f"{key}." or key.startswith(f"{found}."):
            return number
    return 1


def _near(name: str, known: Iterable[str]) -> str:
    """What a wrong name may have meant, else all that is known."""
    names = list(known)
    from difflib import get_close_matches  # only an error needs it

    near = get_close_matches(name[:MAX_NAME], names, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else f": expected one of {', '.join(names)}"


# -- writing


def machine_toml(machine: Machine, comments: Iterable[str] = ()) -> str:
    """The text of a file with every field of the machine, below comments, a line each."""
    settings = machine.settings()
    beliefs = settings.pop("beliefs")
    assert isinstance(beliefs, Mapping)
    del settings["kv_groups"]
    lines = [f"# {one_line(comment)}".rstrip() for comment in comments]
    lines += [f"{key} = {_toml_value(value)}" for key, value in settings.items()]
    for group in machine.kv_groups:
        lines += ["", "[[kv_groups]]", f"kind = {_toml_value(group.kind)}"]
        lines += [f"window_tokens = {group.window_tokens}"] if group.window_tokens else []
    if beliefs:
        lines += ["", "[beliefs]", *(f"{key} = {_toml_value(value)}" for key, value in beliefs.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    """A setting as TOML writes it, which JSON does alike: a name is printable, a number finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
