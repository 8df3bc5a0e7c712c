"""What a step costs, from steps that were measured: the constants of a machine's step time.

The steps are sorted into *kinds*, by what is in them; kinds count equally, however many steps they have, so a run of
mostly small steps does not forget the large ones. The time of a step is linear in its sums but for the reading of the
weights, `max(floor_s, token_s × tokens)`. That term is linear too where the number of tokens at which it bends is
known; so several are tried, and none, which is the simplest and stays unless another is clearly better. Without the
bend `token_s` cannot be told from `prefill_token_s` and `decode_call_s`: it is 0 then, and so is `floor_s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ....traces.errors import MachineError
from ..samples import StepSample
from .regression import Array, LinearFit, distinct, fit_costs, loss

FIELDS = ("step_s", "floor_s", "token_s", "prefill_token_s", "attention_s", "decode_call_s", "context_token_s")
COLUMNS = (
    "step_s",
    "prefill_token_s",
    "decode_call_s",
    "context_token_s",
    "attention_s",
    "token_s",
)  # what is solved for
LEAST_STEPS = 20
LEAST_SHARE = 0.05  # of a step's time, that is left to its sums whatever else explains it
FULL_KIND = 12  # steps from which on a kind counts fully: what was seen once or twice says less
ELSEWHERE = 0.02  # of the weight, for the kinds of steps that will not be played: they keep the fit in its form
BENDS = 24  # numbers of tokens that are tried as the bend
REDRAWN = 200  # samples of the bootstrap
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A constant and its interval of confidence. Without one it was not measured: `why` says what it stands for."""

    value: float
    low: float | None = None
    high: float | None = None
    why: str | None = None


class KindError(NamedTuple):
    """How far the fit is from the steps of a kind."""

    kind: str
    steps: int
    measured_s: float  # median
    median: float  # (fitted − measured) / measured of the middle step
    p95: float  # the same, without signs: 95 % of the steps are nearer


class StepFit(NamedTuple):
    """The constants by field, and what is left: for each kind, and over all steps (equal weight a step)."""

    constants: dict[str, Estimate]
    kinds: list[KindError]
    overall: KindError
    total: float  # (fitted − measured) / measured of all the steps' time together


def fit_steps(
    steps: Sequence[StepSample],
    seed: int = 0,
    importance: Mapping[str, float] | None = None,
) -> StepFit:
    """Fits the constants. Intervals are of 95 %, bootstrapped from runs of equal steps; `seed` draws them.

    `importance` is by kind, together 1: how much each matters for what will be played. Without it they matter alike.
    The first step of each kind is left out: it warms something up. Raises MachineError where there is too little.
    """
    data = _Steps(_warm(steps), importance)
    if len(data.seconds) < LEAST_STEPS or len(data.runs) < 3:
        raise MachineError(
            f"cannot fit a machine: expected at least {LEAST_STEPS} steps of 3 kinds or more, got {len(steps)}"
            f" of {len({kind(step) for step in steps})}"
        )
    chosen = _chosen_bend(data)
    fitted = _fit(data, data.weights, chosen)
    drawn = _bootstrap(data, chosen, np.random.default_rng(seed))
    constants = {name: _estimate(name, fitted, drawn, chosen) for name in FIELDS}
    return StepFit(constants, *_errors(data, fitted.linear))


def kind(step: StepSample) -> str:
    """What a step is a kind of, in words: equal words, equal kind."""
    tokens = _about(step.prefill_tokens)
    if not step.prefill_tokens:
        calls = "1 call" if step.decode_calls == 1 else f"{_about(step.decode_calls)} calls"
        return f"decode, {calls} of {_about(step.context_tokens // step.decode_calls)} tokens"
    if step.decode_calls:
        return f"prefill of {tokens} beside decoding"
    before = (step.attended_tokens - step.prefill_tokens * (step.prefill_tokens + 1) / 2) / step.prefill_tokens
    return f"prefill of {tokens}, {'cold' if before < 1 else f'behind {_about(int(before))}'}"


def _about(number: int) -> str:
    """A number, to a factor of four: kinds are to be few, and alike in their steps' times."""
    edge = 1
    while edge < number:
        edge *= 4
    return f"{edge // 4 + 1:,}–{edge:,}" if edge > 1 else str(number)


class _Bent(NamedTuple):
    """A fit with a bend, or without one."""

    constants: list[float]  # in the order of FIELDS
    linear: LinearFit
    known: frozenset[str]  # of COLUMNS: those that the steps tell apart


class _Steps:
    """Steps as arrays, sorted into kinds and into runs of equal steps that followed each other."""

    def __init__(self, steps: Sequence[StepSample], importance: Mapping[str, float] | None) -> None:
        table = np.array([step[:5] for step in steps], dtype=np.float64).reshape(-1, 5)
        self.measured, self.prefill, self.attended, self.decode, self.context = table.T
        explained = np.array([step.explained_s for step in steps])
        self.seconds: Array = np.maximum(self.measured - explained, LEAST_SHARE * self.measured)
        self.tokens = self.prefill + self.decode
        names = [kind(step) for step in steps]
        self.kinds = list(dict.fromkeys(names))
        self.of_kind = np.array([self.kinds.index(name) for name in names], dtype=np.int64)
        counts = np.bincount(self.of_kind, minlength=1)
        of_kind = np.minimum(counts, FULL_KIND).astype(np.float64)
        if importance is not None and any(importance.get(name) for name in self.kinds):
            of_kind = _important(of_kind, np.array([importance.get(name, 0.0) for name in self.kinds]))
        self.weights: Array = (of_kind / np.maximum(counts, 1))[self.of_kind]
        changes = np.flatnonzero(np.diff(self.of_kind) != 0) + 1
        self.runs = np.split(np.arange(len(names)), changes) if names else []

    def columns(self, bend: float) -> Array:
        """What each cost of COLUMNS is paid for, a row a step; `bend` tokens are the least that linear layers take."""
        linear = np.maximum(self.tokens, bend) if bend else np.zeros_like(self.tokens)
        one = np.ones_like(self.tokens)
        return np.column_stack([one, self.prefill, self.decode, self.context, self.attended, linear])


def _important(of_kind: Array, importance: Array) -> Array:
    """Weights of kinds by their importance: together as before. What is rare counts less than it matters."""
    shares = of_kind * importance / importance.sum()
    elsewhere = of_kind * (importance == 0)
    parts = (1 - ELSEWHERE) * shares / shares.sum() + ELSEWHERE * elsewhere / max(float(elsewhere.sum()), 1.0)
    return np.asarray(parts / parts.sum() * of_kind.sum())


def _warm(steps: Sequence[StepSample]) -> list[StepSample]:
    """The steps without the first of each kind."""
    seen: set[str] = set()
    return [step for step in steps if kind(step) in seen or seen.add(kind(step))]  # type: ignore[func-returns-value]


def _fit(data: _Steps, weights: Array, bend: float) -> _Bent:
    columns = data.columns(bend)
    known = distinct(columns, data.seconds, weights)
    linear = fit_costs(columns[:, known], data.seconds, weights)
    costs = dict.fromkeys(COLUMNS, 0.0) | {
        COLUMNS[at]: float(cost) for at, cost in zip(known, linear.costs, strict=True)
    }
    costs["floor_s"] = bend * costs["token_s"]
    return _Bent([costs[name] for name in FIELDS], linear, frozenset(COLUMNS[at] for at in known))


def _chosen_bend(data: _Steps) -> float:
    """The number of tokens where the floor ends; 0 if there is no sign of one.

    By the Bayesian information criterion: two more constants have to be worth it. Runs count as observations, since
    the steps of one run err together.
    """
    straight = _fit(data, data.weights, 0.0)
    spread = straight.linear.spread
    share = len(data.runs) / float(data.weights.sum())

    def badness(bend: float) -> float:
        fitted = straight if not bend else _fit(data, data.weights, bend)
        return float(2 * share * loss(fitted.linear, data.weights, spread))

    low, high = max(2.0, float(data.tokens.min())), float(data.tokens.max()) / 2
    if low >= high:
        return 0.0
    best = min(_between(low, high, BENDS), key=badness)
    step = (high / low) ** (1 / (BENDS - 1))
    best = min(_between(best / step, best * step, 9), key=badness)
    observations = len(data.runs)
    gained = observations * math.log(max(badness(0.0), 1e-12) / max(badness(best), 1e-12))
    return best if gained > 2 * math.log(observations) else 0.0


def _between(low: float, high: float, count: int) -> list[float]:
    """Numbers from low to high, each as many times the one before it."""
    return [float(number) for number in np.geomspace(low, high, count)]


def _bootstrap(data: _Steps, bend: float, rng: np.random.Generator) -> Array:
    """Constants of `REDRAWN` data sets whose runs are drawn from the measured ones: (redrawn, constants)."""
    bends = _between(bend / 2, bend * 2, 7) if bend else [0.0]
    run_of = np.repeat(np.arange(len(data.runs)), [len(run) for run in data.runs])
    found = []
    for _ in range(REDRAWN):
        times = np.bincount(rng.integers(len(data.runs), size=len(data.runs)), minlength=len(data.runs))
        weights = data.weights * times[run_of]
        fits = [_fit(data, weights, near) for near in bends]
        spread = fits[0].linear.spread
        found.append(min(fits, key=lambda fitted: loss(fitted.linear, weights, spread)).constants)
    return np.array(found)


def _estimate(name: str, fitted: _Bent, drawn: Array, bend: float) -> Estimate:
    """A constant with its interval, or why it has none."""
    index = FIELDS.index(name)
    if name in ("floor_s", "token_s") and not bend:
        return Estimate(0.0, why="no floor was found: without one it is part of the other costs")
    if ("token_s" if name == "floor_s" else name) not in fitted.known:
        return Estimate(0.0, why="these steps cannot tell it from the other costs")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn[:, index], [tail, 1 - tail])
    value = fitted.constants[index]
    return Estimate(value, min(float(low), value), max(float(high), value))


def _errors(data: _Steps, fitted: LinearFit) -> tuple[list[KindError], KindError, float]:
    """Relative errors, of the measured time, by kind and of all."""
    measured = data.measured
    times = data.seconds / (1 - fitted.residuals) + (measured - data.seconds)
    errors = times / measured - 1
    kinds = [_error(name, measured[data.of_kind == at], errors[data.of_kind == at]) for at, name in _in_order(data)]
    return kinds, _error("all", measured, errors), float(times.sum() / measured.sum() - 1)


def _in_order(data: _Steps) -> list[tuple[int, str]]:
    """Kinds as a reader looks for them: by family, then by the median of their sums."""

    def size(at: int) -> tuple[str, float, float]:
        rows = data.of_kind == at
        family = data.kinds[at].split(" ")[0].strip(",") + str("beside" in data.kinds[at])
        work = data.context[rows] + data.attended[rows]
        return family, float(np.median(data.tokens[rows])), float(np.median(work))

    return sorted(enumerate(data.kinds), key=lambda item: size(item[0]))


def _error(name: str, seconds: Array, errors: Array) -> KindError:
    return KindError(
        name,
        len(seconds),
        float(np.median(seconds)),
        float(np.median(errors)),
        float(np.quantile(np.abs(errors), 0.95)),
    )
