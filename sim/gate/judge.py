"""Whether a metric became worse: exactly for a single run, and by paired statistics for repeated ones.

A metric regresses if its mean is worse than what it is compared with by more than the gate tolerates, and, over
several repeats, if it is sure that it is worse at all: the interval of the ratio of the paired means (see
`trials.verdict`) leaves out "as good". So a run that is as it was never fails, a difference that chance alone can make
does not, and one that is real and larger than the tolerance does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Literal, NamedTuple, TypeAlias

from ..trials.verdict import judge_paired
from .suite import Gate

Word: TypeAlias = Literal["good", "regressed", "improved", "uncertain"]
ROUNDING = 1e-12  # a relative difference of two sums of equal values in another order


class Finding(NamedTuple):
    """What became of one metric of a case."""

    gate: Gate
    base: float | None  # means over the repeats
    value: float | None
    interval: tuple[float, float] | None  # of value / base; None for a single run
    word: Word

    @property
    def change(self) -> float | None:
        """How much more it is, as a share of what it is compared with; None where that says nothing."""
        return None if self.value is None or not self.base else self.value / self.base - 1

    @property
    def allowed(self) -> float | None:
        """How much worse was tolerated, in the metric's unit."""
        return None if self.base is None else self.gate.allowed(self.base)


class Chance(NamedTuple):
    """How sure a verdict must be."""

    confidence: float
    comparisons: int = 1
    seed: int = 0


def judge(gate: Gate, values: Sequence[float | None], base: Sequence[float | None], chance: Chance) -> Finding:
    """Compares a value for each repeat with another for the same repeat.

    A metric that has lost its value regressed; one that had none is good.
    """
    was, now = _numbers(base), _numbers(values)
    if was is None or now is None:
        vanished = now is None and was is not None
        return Finding(gate, _mean(was), _mean(now), None, "regressed" if vanished else "good")
    old, new = fsum(was) / len(was), fsum(now) / len(now)
    interval, sure = _interval(gate, now, was, chance) if len(now) > 1 else (None, True)
    worse_by = old - new if gate.higher_is_better else new - old
    allowed = gate.allowed(old) + ROUNDING * abs(old)
    return Finding(gate, old, new, interval, _word(worse_by, allowed, sure, gate))


def _word(worse_by: float, allowed: float, sure: bool, gate: Gate) -> Word:
    if worse_by > allowed:
        return "regressed" if sure else "uncertain"
    if worse_by < -allowed and sure and gate.than is None:  # to be better than a rival is what is hoped for
        return "improved"
    return "good"


def _interval(
    gate: Gate, values: Sequence[float], base: Sequence[float], chance: Chance
) -> tuple[tuple[float, float], bool]:
    """Of the ratio of the means, and whether it is sure that they differ."""
    judged = judge_paired(
        values,
        base,
        confidence=chance.confidence,
        margin=0.0,
        comparisons=chance.comparisons,
        higher_is_better=gate.higher_is_better,
        seed=chance.seed,
    )
    return judged.interval, judged.verdict != "undecided"


def _numbers(values: Sequence[float | None]) -> list[float] | None:
    """The values, None if one is missing."""
    there = [value for value in values if value is not None]
    return there if len(there) == len(values) else None


def _mean(values: Sequence[float] | None) -> float | None:
    return None if values is None else fsum(values) / len(values)
