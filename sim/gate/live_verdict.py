"""Do simulated and live runs say the same about who is better? Of the same suite's cases, played on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from ...traces.errors import TokencakeError
from ...traces.results.metric import metric_value
from ...traces.results.reports.report_text import cut_off_lines
from ...traces.results.verdict import Word, judge_unpaired
from .suite.suite import Case, Gate, Suite

SCHEMA = "tokencake.check-live/1"
NOISE_FLOOR = 0.01  # relative standard deviation that a live run has at least: two that are closer are so by luck
RIVAL = "vllm"  # of a case that names none
REPEATS = 3

Agreement: TypeAlias = Literal["agree", "open", "contradict"]
Metrics: TypeAlias = Mapping[str, Any]


@dataclass(slots=True)
class EngineRuns:
    """One policy's runs on the engine."""

    metrics: list[Metrics] = field(default_factory=list)
    failed: str | None = None  # why they are not the policy's: it did not last to the end of one


class MissingVerdict(NamedTuple):
    """One metric of which there is no verdict, since a policy failed on the engine."""

    metric: str
    rival: str
    failed: str  # which policy, and why

    @property
    def agreement(self) -> Literal["failed"]:
        return "failed"


class TwoSidedVerdict(NamedTuple):
    """One metric of a case's policy against a rival: by how much, and who wins, on both sides."""

    metric: str
    rival: str
    simulated: float | None  # ratio of the policy's value and the rival's
    live: float | None
    interval: tuple[float, float] | None  # of the live ratio
    simulated_word: Word
    live_word: Word

    @property
    def agreement(self) -> Agreement:
        if self.live is None and self.simulated is not None:  # without a value there, nobody agrees with anything
            return "open"
        if self.simulated_word == self.live_word:
            return "agree"
        return "open" if "undecided" in (self.simulated_word, self.live_word) else "contradict"


def live_cases(suite: Suite) -> list[Case]:
    """The cases that have a table `live`. Raises TokencakeError if none has."""
    cases = [case for case in suite.cases if case.live is not None]
    if not cases:
        raise TokencakeError(f'{suite.file}: no case has a live engine: expected live = {{ model = "…" }} in one')
    return cases


def live_policies(case: Case) -> tuple[str, ...]:
    """The policies to be played: the case's rivals, then its own."""
    return tuple(dict.fromkeys((*(case.rivals or (RIVAL,)), case.policy)))


def live_gates(case: Case) -> list[Gate]:
    """What is compared: gates that name a rival; without any, all metrics of the case with stock vLLM's."""
    named = [gate for gate in case.gates if gate.than is not None]
    return named or [replace(gate, than=RIVAL) for gate in case.gates]


def compare_sides(
    case: Case, simulated: Mapping[str, Metrics], live: Mapping[str, EngineRuns], confidence: float
) -> list[TwoSidedVerdict | MissingVerdict]:
    """Judges each metric of a case from one simulated run and some live runs of each policy.

    Live, a policy wins if the interval of the ratio of the means leaves out 1; simulated, if it is ahead by more than
    half of that interval's width: both sides are held to the noise of the live one. Of a policy that failed, and
    against it, nothing is judged: what the engine did without it is not its.
    """
    return [
        _unjudged(case, gate, live) or _compared(case, gate, simulated, live, confidence) for gate in live_gates(case)
    ]


def _unjudged(case: Case, gate: Gate, live: Mapping[str, EngineRuns]) -> MissingVerdict | None:
    for policy in (case.policy, gate.against):
        if failed := live[policy].failed:
            return MissingVerdict(gate.metric, gate.against, f"{policy} failed: {failed}")
    return None


def _compared(
    case: Case, gate: Gate, simulated: Mapping[str, Metrics], live: Mapping[str, EngineRuns], confidence: float
) -> TwoSidedVerdict:
    rival = gate.against
    values, base = (_numbers(live[policy].metrics, gate.metric) for policy in (case.policy, rival))
    one, other = (metric_value(simulated[policy], gate.metric) for policy in (case.policy, rival))
    ratio = one / other if one is not None and other else None
    if not values or not base:
        return TwoSidedVerdict(gate.metric, rival, ratio, None, None, "undecided", "undecided")
    judged = judge_unpaired(
        values,
        base,
        confidence=confidence,
        margin=0.0,
        comparisons=len(live_gates(case)),
        floor=NOISE_FLOOR,
        higher_is_better=gate.higher_is_better,
    )
    low, high = judged.interval
    word = _word(ratio, (high - low) / 2, gate.higher_is_better)
    return TwoSidedVerdict(gate.metric, rival, ratio, judged.ratio, judged.interval, word, judged.verdict)


def _word(ratio: float | None, margin: float, higher_is_better: bool) -> Word:
    if ratio is None or abs(ratio - 1) <= margin:
        return "undecided"
    return "wins" if (ratio > 1) == higher_is_better else "loses"


def _numbers(runs: Sequence[Metrics], metric: str) -> list[float]:
    values = [metric_value(run, metric) for run in runs]
    return [value for value in values if value is not None]


def fails(compared: Sequence[TwoSidedVerdict | MissingVerdict], strict: bool) -> bool:
    """Whether simulator and engine contradict each other, or a policy failed; strictly: whether they do not say the
    same."""
    return any(one.agreement in ("contradict", "failed") or (strict and one.agreement != "agree") for one in compared)


def as_record(
    suite: Suite,
    found: Mapping[str, Sequence[TwoSidedVerdict | MissingVerdict]],
    engine: Mapping[str, object],
    cut_off: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """As JSON: schema `tokencake.check-live/1`. `cut_off`: of a case that something ended early, the run then."""
    return {
        "schema": SCHEMA,
        "suite": str(suite.file),
        "engine": dict(engine),
        "cases": {
            name: [{**one._asdict(), "agreement": one.agreement} for one in compared]
            for name, compared in found.items()
        },
        **({"partial": dict(cut_off)} if cut_off else {}),
    }


def cut_off_words(name: str, run: Mapping[str, Any]) -> str:
    """Why a case has no verdict that something ended early, in `run`."""
    (line,) = cut_off_lines({"partial": [run]})
    return f"{name}: no verdict: {line}"


def words(name: str, policy: str, compared: Sequence[TwoSidedVerdict | MissingVerdict]) -> Iterator[str]:
    """A line a metric."""
    for one in compared:
        if isinstance(one, MissingVerdict):
            yield f"{name}: {policy} against {one.rival}, {one.metric}: no verdict: {one.failed}"
            continue
        sides = f"simulated {_side(one.simulated, one.simulated_word)}, live {_side(one.live, one.live_word)}"
        spread = f" [{_percent(one.interval[0])} to {_percent(one.interval[1])}]" if one.interval else ""
        yield f"{name}: {policy} against {one.rival}, {one.metric}: {sides}{spread}: {_said(one)}"


def _said(one: TwoSidedVerdict) -> str:
    if one.simulated_word == one.live_word == "undecided" and one.agreement == "agree":
        return "neither side can tell"
    return {"agree": "the same", "open": "open on one side", "contradict": "CONTRADICTION"}[one.agreement]


def _side(ratio: float | None, word: Word) -> str:
    return word if ratio is None else f"{word} ({_percent(ratio)})"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"
