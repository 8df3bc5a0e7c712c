"""What an engine says of itself, checked: its limits, a name for its machine, and how loaded its host was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...traces.errors import MachineError
from ...traces.files.fields import shown
from ..machine.engine_versions import DEFAULT_ENGINE_VERSION, simulated_version
from ..machine.kv_groups import FULL, groups_of
from ..machine.machine import RULES, Machine, Real, Whole, retention_of

MAY_BE_NONE = ("host_blocks", "long_prefill_token_threshold")
OF_ITSELF = "what the engine tells of itself"
USUAL = {"long_prefill_token_threshold": 0}  # what an engine did that does not tell: vLLM's default
OPTIONAL = ("kv_groups", "prefix_cache_retention_interval")  # of an engine that does not tell: one group, the default
AS_SETTINGS = ("asynchronous", *OPTIONAL)  # may be what a machine's may be


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLimits:
    """What an engine can hold and do in a step: the part of a machine that is known. Names as in `Machine`."""

    gpu_blocks: int
    block_tokens: int
    block_bytes: int
    host_blocks: int
    max_context_tokens: int
    step_budget_tokens: int
    max_running: int
    asynchronous: bool
    long_prefill_token_threshold: int = 0
    engine_version: str = DEFAULT_ENGINE_VERSION
    kv_groups: str = FULL  # as settings have them
    prefix_cache_retention_interval: int | None = None  # None: the version's default

    def settings(self) -> dict[str, Any]:
        """As fields of a `Machine`."""
        version, interval = self.engine_version, self.prefix_cache_retention_interval
        return {
            "gpu_blocks": self.gpu_blocks,
            "block_tokens": self.block_tokens,
            "kv_groups": groups_of(self.kv_groups),
            "prefix_cache_retention_interval": retention_of(version) if interval is None else interval,
            "kv_bytes_per_token": self.block_bytes // self.block_tokens,
            "host_gib": self.host_blocks * self.block_bytes / 2**30,
            "max_context_tokens": self.max_context_tokens,
            "step_budget_tokens": self.step_budget_tokens,
            "max_running": self.max_running,
            "long_prefill_token_threshold": self.long_prefill_token_threshold,
            "asynchronous": self.asynchronous,
            "engine_version": version,
        }


def limits_of(info: Mapping[str, object]) -> MachineLimits:
    """The limits that an engine tells. Raises MachineError, naming the field, if one is missing or means nothing."""
    values: dict[str, Any] = {}
    if "vllm" in info:  # else the latest is meant, as where a machine does not tell
        values["engine_version"] = _version(info["vllm"])
    for name in MachineLimits.__slots__:
        if name == "engine_version" or (name in OPTIONAL and info.get(name) is None):
            continue
        rule = RULES[name] if name in AS_SETTINGS else Whole(0 if name in MAY_BE_NONE else 1, 2**63)
        values[name] = info.get(name, USUAL.get(name))
        if problem := rule.problem(values[name]):
            raise MachineError(f"{OF_ITSELF}: {name}: {problem}")
    limits = MachineLimits(**values)
    try:
        Machine(name="engine", **limits.settings(), step_s=1.0, link_gbps=1.0)  # found now, and not after measuring
    except MachineError as error:
        raise MachineError(f"{OF_ITSELF}: {error}") from None
    return limits


def with_limits(machine: Machine, limits: MachineLimits) -> Machine:
    """The machine with what an engine can hold and do in a step. Its client takes no time, as a live run's."""
    return replace(machine, **limits.settings(), client_s=0.0)


def name_of(info: Mapping[str, object]) -> str:
    """What a machine is called that is fitted to an engine: the end of its model's name, if a machine may have that."""
    name = Path(str(info.get("model", ""))).name
    return "engine" if RULES["name"].problem(name) else name


def _version(vllm: object) -> str:
    try:
        return simulated_version(vllm)
    except MachineError as error:
        raise MachineError(f"{OF_ITSELF}: {error}") from None


def host_load_of(info: Mapping[str, object]) -> dict[str, float | None]:
    """The load of the host while the engine was measured; empty for an engine of an earlier version.

    Raises MachineError for a value that is no share.
    """
    load = info.get("host_load", {})
    if not isinstance(load, Mapping):
        raise MachineError(f"{OF_ITSELF}: host_load: expected an object, got {shown(load)}")
    found: dict[str, float | None] = {}
    for name in ("waited_share", "stolen_share"):
        value = load.get(name)
        if value is not None and (problem := Real(0.0, 1.0).problem(value)):
            raise MachineError(f"{OF_ITSELF}: host_load: {name}: {problem}")
        found[name] = value
    return found
