"""Whether a metric became worse: exactly for a single run, and by paired statistics for repeated ones.

A metric regresses if its mean is worse than what it is compared with by more than the gate tolerates, and, over
several repeats, if it is sure that it is worse at all: the interval of the ratio of the paired means (see
`traces.results.verdict`) leaves out "as good". So a run that is as it was never fails, a difference that chance alone
can make does not, and one that is real and larger than the tolerance does.

A metric has no value where a run has nothing to take it from. No value on either side is equal. A value on one side
only cannot be compared, and that is never good: the baseline has to be written anew, or the value is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Literal, NamedTuple, TypeAlias

from ...traces.results.verdict import judge_paired
from .suite.suite import Gate

Word: TypeAlias = Literal["good", "regressed", "improved", "uncertain"]
Lack: TypeAlias = Literal["base", "value", "both"]  # which side has no value in a repeat in which the other has one
ROUNDING = 1e-12  # a relative difference of two sums of equal values in another order


class Finding(NamedTuple):
    """What became of one metric of a case."""

    gate: Gate
    base: float | None  # means over the repeats that have a value
    value: float | None
    interval: tuple[float, float] | None  # of value / base; None for a single run
    word: Word
    lacks: Lack | None = None

    @property
    def change(self) -> float | None:
        """How much more it is, as a share of what it is compared with; None where that says nothing."""
        if self.lacks is not None or self.value is None or not self.base:
            return None
        return self.value / self.base - 1

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

    Repeats in which neither has one are left out. If one side lacks values that the other has, the metric regressed;
    but it is uncertain if those of a rival are missing, which may be as it should be.
    """
    if (lacks := _lacks(values, base)) is not None:
        word: Word = "uncertain" if lacks == "base" and gate.than is not None else "regressed"
        return Finding(gate, _mean(base), _mean(values), None, word, lacks)
    was, now = _there(base), _there(values)
    if not was:
        return Finding(gate, None, None, None, "good")
    old, new = fsum(was) / len(was), fsum(now) / len(now)
    interval, sure = _interval(gate, now, was, chance) if len(now) > 1 else (None, len(values) == 1)
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


def _lacks(values: Sequence[float | None], base: Sequence[float | None]) -> Lack | None:
    pairs = list(zip(values, base, strict=True))
    of_base = any(was is None and now is not None for now, was in pairs)
    of_value = any(now is None and was is not None for now, was in pairs)
    if of_base and of_value:
        return "both"
    return "base" if of_base else "value" if of_value else None


def _there(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    there = _there(values)
    return fsum(there) / len(there) if there else None
