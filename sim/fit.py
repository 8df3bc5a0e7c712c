"""A machine from measurements: constants with their intervals, what is left unexplained, and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..traces.errors import MachineError
from .copy_fit import CopyFit, fit_copies
from .machine import ENGINE_VERSIONS, PS_PER_S, RULES, Machine, Real, Switch, Whole, simulated_version
from .samples import CopySample, Samples, StepSample
from .step_fit import Estimate, StepFit, fit_steps

WRONG = 0.1  # relative error from which on a kind of steps is warned about
DISTURBED = 0.5  # error of the worst twentieth of all steps from which on something disturbed them
UNEQUAL = 1.25  # ratio of the link's two ways from which on one rate for both is a compromise


MAY_BE_NONE = ("host_blocks", "long_prefill_token_threshold")
USUAL = {"long_prefill_token_threshold": 0}  # what an engine did that does not tell: vLLM's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
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
    engine_version: str = ENGINE_VERSIONS[-1]

    def settings(self) -> dict[str, Any]:
        """As fields of a `Machine`."""
        return {
            "gpu_blocks": self.gpu_blocks,
            "block_tokens": self.block_tokens,
            "kv_bytes_per_token": self.block_bytes // self.block_tokens,
            "host_gib": self.host_blocks * self.block_bytes / 2**30,
            "max_context_tokens": self.max_context_tokens,
            "step_budget_tokens": self.step_budget_tokens,
            "max_running": self.max_running,
            "long_prefill_token_threshold": self.long_prefill_token_threshold,
            "asynchronous": self.asynchronous,
            "engine_version": self.engine_version,
        }


def limits_of(info: Mapping[str, object]) -> Limits:
    """The limits that an engine tells. Raises MachineError, naming the field, if one is missing or means nothing."""
    values: dict[str, Any] = {}
    if "vllm" in info:  # else the latest is meant, as where a machine does not tell
        values["engine_version"] = _version(info["vllm"])
    for name in Limits.__slots__:
        if name == "engine_version":
            continue
        rule = Switch() if name == "asynchronous" else Whole(0 if name in MAY_BE_NONE else 1, 2**63)
        values[name] = info.get(name, USUAL.get(name))
        if problem := rule.problem(values[name]):
            raise MachineError(f"what the engine tells of itself: {name}: {problem}")
    return Limits(**values)


def _version(vllm: object) -> str:
    try:
        return simulated_version(vllm)
    except MachineError as error:
        raise MachineError(f"what the engine tells of itself: {error}") from None


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted. `constants` are by field of `Machine`."""

    limits: Limits
    steps: StepFit
    copies: CopyFit

    @property
    def constants(self) -> dict[str, Estimate]:
        return {**self.steps.constants, "link_gbps": self.copies.link_gbps, "copy_s": self.copies.copy_s}

    def machine(self, name: str) -> Machine:
        """The machine with these constants. Its client takes no time: a live run's reacts in the same round."""
        costs: dict[str, Any] = {field: _possible(field, estimate.value) for field, estimate in self.constants.items()}
        if not costs["step_s"] + costs["floor_s"]:
            costs["step_s"] = 1 / PS_PER_S  # a machine's steps take time
        return Machine(name=name, **self.limits.settings(), **costs)

    def warnings(self) -> list[str]:
        """What a reader of the constants has to know."""
        found = []
        if self.steps.overall.p95 > DISTURBED:
            found.append(
                f"5 % of the steps are more than {self.steps.overall.p95:.0%} off: measure where nothing else runs"
            )
        found += [
            f"{error.kind}: fitted steps are {error.median:+.0%} off what was measured (median of {error.steps})"
            for error in self.steps.kinds
            if abs(error.median) > WRONG
        ]
        ways = self.copies.to_host_gbps, self.copies.to_gpu_gbps
        if ways[0] and ways[1] and not 1 / UNEQUAL < ways[0] / ways[1] < UNEQUAL:
            found.append(
                f"the link's two ways differ: {ways[0]:.3g} GB/s to the host, {ways[1]:.3g} GB/s to the GPU;"
                " a machine has one rate for both, which lies between"
            )
        return found


def fit(steps: Sequence[StepSample], copies: Sequence[CopySample], limits: Limits, seed: int = 0) -> Fit:
    """Fits a machine's constants; `seed` draws their intervals. Raises MachineError for too little data."""
    return Fit(limits, fit_steps(steps, seed), fit_copies(copies, limits.block_bytes, seed))


def fit_facts(facts: Iterable[object], limits: Limits, seed: int = 0) -> Fit:
    """Fits the facts of runs whose steps were reported, as `fit` does."""
    samples = Samples()
    for fact in facts:
        samples.add(fact)
    return fit(samples.steps, samples.copies, limits, seed)


def _possible(field: str, value: float) -> float:
    """A value that a machine may have: below a picosecond is nothing."""
    rule = RULES[field]
    assert isinstance(rule, Real)
    return 0.0 if value < rule.low and rule.zero else min(max(value, rule.low), rule.high)
