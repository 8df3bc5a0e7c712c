"""A machine from measurements: constants with their intervals, what is left unexplained, and warnings.

Of a fit it is also said what the probes reached, and, where it is known what will be played, where that lies beyond.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any

from ...traces.apps import Application
from ..machine.machine import RULES, Machine, Real
from ..machine.timing import PS_PER_S
from .costs.copy_costs import CopyFit, fit_copies
from .costs.host_costs import fit_host
from .costs.step_costs import Estimate, StepFit, fit_steps
from .engine_info import MachineLimits
from .host_load import loaded_words
from .samples import CopySample, Samples, StepSample
from .step_mix import REACHED, Beyond, Shape, StepMix, farthest, mix_of

WRONG = 0.1  # relative error from which on a kind of steps is warned about
DISTURBED = 0.5  # error of the worst twentieth of all steps from which on something disturbed them
UNSTEADY = 0.1  # spread of equal steps from which on it is said
UNEQUAL = 1.25  # ratio of the link's two ways from which on one rate for both is a compromise


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted. `constants` are by field of `Machine`."""

    limits: MachineLimits
    steps: StepFit
    copies: CopyFit
    host: Mapping[str, Estimate]
    probed: Mapping[str, int]  # how far the steps reach, by the keys of REACHED
    spread: float | None  # of equal steps' times: standard deviation over mean
    beyond: Sequence[Beyond] = ()  # where what will be played reaches farther
    host_load: Mapping[str, float | None] = field(default_factory=dict)  # while it was measured: `HostLoad.until`
    played: Container[str] | None = None  # kinds of steps that will be played; None: not known

    @property
    def constants(self) -> dict[str, Estimate]:
        return {**self.steps.constants, **self.host, "link_gbps": self.copies.link_gbps, "copy_s": self.copies.copy_s}

    def machine(self, name: str) -> Machine:
        """The machine with these constants. Its client takes no time: a live run's reacts in the same round."""
        costs: dict[str, Any] = {name: _possible(name, found.value) for name, found in self.constants.items()}
        if not costs["step_s"] + costs["floor_s"]:
            costs["step_s"] = 1 / PS_PER_S  # a machine's steps take time
        return Machine(name=name, **self.limits.settings(), **costs)

    def warnings(self) -> list[str]:
        """What a reader of the constants has to know."""
        found = [*self._unquiet(), *map(_extrapolated, self.beyond)]
        if self.steps.overall.p95 > DISTURBED:
            found.append(
                f"5 % of the steps are more than {self.steps.overall.p95:.0%} off: measure where nothing else runs"
            )
        found += [
            f"{error.kind}: fitted steps are {error.median:+.0%} off what was measured (median of {error.steps})"
            for error in self.steps.kinds
            if abs(error.median) > WRONG and (self.played is None or error.kind in self.played)
        ]
        ways = self.copies.to_host_gbps, self.copies.to_gpu_gbps
        if ways[0] and ways[1] and not 1 / UNEQUAL < ways[0] / ways[1] < UNEQUAL:
            found.append(
                f"the link's two ways differ: {ways[0]:.3g} GB/s to the host, {ways[1]:.3g} GB/s to the GPU;"
                " a machine has one rate for both, which lies between"
            )
        return found

    def probed_words(self) -> str:
        """How far the probes reached, in words."""
        return "probed up to " + ", ".join(f"{self.probed[name]:,} {label}" for name, label in REACHED.items())

    def _unquiet(self) -> list[str]:
        """That something else ran while the steps were measured, with figures."""
        found = loaded_words(self.host_load)
        if self.spread is not None and self.spread > UNSTEADY:
            found.append(
                f"equal steps did not take equally long: their times vary by {self.spread:.0%} (standard deviation);"
                " measure where nothing else runs"
            )
        return found


def fit(
    steps: Sequence[StepSample],
    copies: Sequence[CopySample],
    limits: MachineLimits,
    seed: int = 0,
    mix: StepMix | None = None,
    host_load: Mapping[str, float | None] | None = None,
) -> Fit:
    """Fits a machine's constants; `seed` draws their intervals. Raises MachineError for too little data.

    With a `mix` of what will be played, its kinds of steps matter as it says, and where it lies beyond is told.
    """
    host = fit_host(steps, seed)
    weights = None if mix is None else mix.weights()
    fitted = fit_steps(host.steps, seed, weights)
    probed = farthest(map(Shape.of, steps))
    return Fit(
        limits,
        fitted,
        fit_copies(copies, limits.block_bytes, seed),
        host.constants,
        probed,
        _spread(steps),
        () if mix is None else mix.beyond(probed),
        host_load or {},
        weights,
    )


def samples_of(facts: Iterable[object]) -> Samples:
    """The samples of runs whose steps were reported."""
    samples = Samples()
    for fact in facts:
        samples.add(fact)
    return samples


def fit_for(
    facts: Iterable[object],
    limits: MachineLimits,
    workload: Callable[[], Iterable[Application]] | None = None,
    seed: int = 0,
    host_load: Mapping[str, float | None] | None = None,
) -> Fit:
    """Fits the facts of runs whose steps were reported, as `fit` does; for a workload, if it is known what will be
    played."""
    samples = samples_of(facts)
    mix = None if workload is None else _mix(samples, limits, workload)
    return fit(samples.steps, samples.copies, limits, seed, mix, host_load)


def rough_mix(facts: Iterable[object], limits: MachineLimits, workload: Callable[[], Iterable[Application]]) -> StepMix:
    """The steps that a workload comes to on a machine that is fitted to these facts as they are."""
    return _mix(samples_of(facts), limits, workload)


def _mix(samples: Samples, limits: MachineLimits, workload: Callable[[], Iterable[Application]]) -> StepMix:
    return mix_of(workload(), fit(samples.steps, samples.copies, limits).machine("rough"))


def _spread(steps: Sequence[StepSample]) -> float | None:
    """By how much the times of equal steps vary: standard deviation over mean, of the middle set of equals.

    None if no two are equal.
    """
    equals: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for step in steps:
        equals[step[1:5]].append(step.seconds)
    found = [stdev(seconds) / fmean(seconds) for seconds in equals.values() if len(seconds) > 1]
    return median(found) if found else None


def _extrapolated(beyond: Beyond) -> str:
    return (
        f"extrapolated: {beyond.played:,} {REACHED[beyond.name]} will be played, {beyond.probed:,} were probed;"
        f" {beyond.share:.0%} of the time lies beyond"
    )


def _possible(name: str, value: float) -> float:
    """A value that a machine may have: below a picosecond is nothing."""
    rule = RULES[name]
    assert isinstance(rule, Real)
    return 0.0 if value < rule.low and rule.zero else min(max(value, rule.low), rule.high)
