"""What a live run is told: the policy, what it believes that things cost, and what is to be written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..policies.costs import LinearCosts
from ..traces.errors import EngineError

# A 7B-class model on a PCIe 4 GPU, roughly: where nobody measured, a policy has to believe something.
UNMEASURED = LinearCosts(copy_s=0.0005, copy_block_s=0.0001, prefill_token_s=0.00008, attention_s=2e-9)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One run of a policy on a live engine. Travels as plain data (`as_record`, `from_record`)."""

    policy: str = "vllm"  # as `load_policy` takes it
    seed: int = 0
    costs: LinearCosts = field(default=UNMEASURED)
    steps: bool = False  # whether each step is reported as a fact
    events: str | None = None  # a file that the engine's process writes facts, questions and plans into
    keep_facts: bool = False  # whether the facts are kept in memory for those who ask for them
    app_timeout_s: float | None = None  # an application of which nothing was heard for so long has ended

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def from_record(record: Mapping[str, Any]) -> RunSettings:
    """Settings from plain data. Raises `EngineError` that names the field."""
    known = {f.name: f for f in fields(RunSettings)}
    for key in record:
        if key not in known:
            raise EngineError(f"tokencake settings: unknown field {key!r}: known are {', '.join(known)}")
    values = dict(record)
    if "costs" in values:
        values["costs"] = _costs(values["costs"])
    _expect(values, "policy", str, "text")
    _expect(values, "seed", int, "a whole number")
    _expect(values, "steps", bool, "true or false")
    _expect(values, "keep_facts", bool, "true or false")
    _expect(values, "events", (str, type(None)), "a file's name or null")
    _expect(values, "app_timeout_s", (int, float, type(None)), "seconds or null")
    return RunSettings(**values)


def _expect(values: Mapping[str, Any], key: str, kind: Any, expected: str) -> None:
    if key in values and (not isinstance(values[key], kind) or (kind is int and isinstance(values[key], bool))):
        raise EngineError(f"tokencake settings: {key}: expected {expected}, got {values[key]!r}")


def _costs(said: object) -> LinearCosts:
    names = {f.name for f in fields(LinearCosts)}
    if not isinstance(said, Mapping) or set(said) != names:
        raise EngineError(f"tokencake settings: costs: expected an object of {', '.join(sorted(names))}, got {said!r}")
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise EngineError(f"tokencake settings: costs.{key}: expected seconds, at least 0, got {value!r}")
    return LinearCosts(**said)
