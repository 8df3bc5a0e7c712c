"""A suite: which runs must not become worse, and how much worse is too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ....traces.errors import TokencakeError
from ....traces.generate.arrivals import ArrivalProcess
from ....traces.variants.vary import AS_IT_IS, Variation
from .suite_paths import SuitePaths

BASELINE = "baseline"  # what a gate compares with if it names no policy


@dataclass(frozen=True, slots=True)
class Gate:
    """One metric that must not become worse.

    A difference in the bad direction is allowed up to `relative` times what it is compared with, or up to `absolute`
    in the metric's own unit, whichever is more.
    """

    metric: str  # a dotted path of a report's metrics
    higher_is_better: bool
    relative: float = 0.0
    absolute: float = 0.0
    than: str | None = None  # a policy that plays the same; None: the baseline

    def allowed(self, base: float) -> float:
        """How much worse than `base` is tolerated, in the metric's unit."""
        return max(self.relative * abs(base), self.absolute)

    @property
    def against(self) -> str:
        return self.than or BASELINE


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that the suite runs. Paths are as the suite file writes them: from its folder."""

    name: str
    trace: str
    policy: str
    gates: tuple[Gate, ...]
    machine: str
    settings: tuple[str, ...] = ()  # of the machine, key=value
    repeats: int = 1
    variation: Variation = AS_IT_IS
    seed: int = 0
    rate: float | None = None
    arrivals: ArrivalProcess = "even"
    skip_oversized: bool = False
    live: Mapping[str, Any] | None = None  # the engine that `--live` starts for it, by options
    line: int = 1  # of the suite file

    @property
    def rivals(self) -> tuple[str, ...]:
        """Policies that this one must not be worse than."""
        return tuple(dict.fromkeys(gate.than for gate in self.gates if gate.than is not None))

    def definition(self) -> dict[str, object]:
        """What is run: a baseline of another definition is stale. Tolerances are no part of it."""
        return {
            "trace": self.trace,
            "machine": self.machine,
            "settings": list(self.settings),
            "policy": self.policy,
            "repeats": self.repeats,
            "vary": str(self.variation),
            "seed": self.seed,
            "rate": self.rate,
            "arrivals": self.arrivals,
            "skip_oversized": self.skip_oversized,
        }


@dataclass(frozen=True, slots=True)
class Suite:
    """All cases of a suite file, and what holds for the check as a whole."""

    file: Path
    cases: tuple[Case, ...] = ()
    baselines: str = "baselines"  # a folder, from the suite's
    budget_s: float | None = None  # of wall time
    policy_timeout_s: float | None = 60.0  # wall time that a policy has to be made, or for a plan
    confidence: float = 0.95
    comparisons: int = 1  # gates of the whole file that leave something to chance: each of them could fail by it

    @property
    def paths(self) -> SuitePaths:
        return SuitePaths(self.file.parent)

    @property
    def baselines_folder(self) -> Path:
        return self.paths.path(self.baselines)

    def only(self, patterns: tuple[str, ...]) -> Suite:
        """The cases that one of the patterns names (`*` and `?` as in a shell); without patterns all.

        Raises TokencakeError for a pattern that names none.
        """
        for pattern in patterns:
            if not any(fnmatchcase(case.name, pattern) for case in self.cases):
                known = ", ".join(case.name for case in self.cases)
                raise TokencakeError(f"--case {pattern!r}: {self.file} has no such case: expected one of {known}")
        chosen = (case for case in self.cases if any(fnmatchcase(case.name, pattern) for pattern in patterns))
        return replace(self, cases=tuple(chosen)) if patterns else self
