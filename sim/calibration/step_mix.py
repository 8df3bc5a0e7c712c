"""What the steps of a workload are: which kinds there are, how much time each of them takes, how far they reach.

A fit is good where something was measured. So what is going to be played is simulated first, on a machine that need
not be right: its steps say what to measure, how much each kind of step matters, and what lies beyond all probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from ...policies.field.vllm import Vllm
from ...traces import events as e
from ...traces.apps import Application, CallId
from ..engine.scheduling.step import Scheduled
from ..engine.simulate import simulate
from ..machine.machine import Machine
from ..machine.timing import PS_PER_S
from .costs.step_costs import kind
from .samples import StepSample

FINE = 4  # bits of a number that are kept: shapes that differ by a sixteenth at most count as equal
QUANTILES = (0.1, 0.5, 1.0)  # of a kind's time, by work: the steps that stand for it
RARE = 0.002  # share of the time below which a kind is not worth a probe
BEYOND = 1.1  # times what was probed: a fit extrapolates from there on


class Shape(NamedTuple):
    """What a step computes, in the terms of a probe."""

    prefill_tokens: int
    before_tokens: int  # that each of them attends to, beside those of the step
    decode_calls: int
    context_tokens: int  # of each decoding call
    contexts: int  # that all its calls have between them: fewer than calls where they share what they attend to

    @classmethod
    def of(cls, step: StepSample, shared: float = 0.0) -> Self:
        """The shape of a step; of several prompts, or several contexts, the mean.

        `shared` is the share of what its calls attend to that others of them attend to as well. It matters where a
        processor's cache holds what is read twice.
        """
        tokens, calls = step.prefill_tokens, step.decode_calls
        within = tokens * (tokens + 1) // 2
        return cls(
            tokens,
            max(0, step.attended_tokens - within) // tokens if tokens else 0,
            calls,
            step.context_tokens // calls if calls else 0,
            max(1, round((1 - shared) * (calls + bool(tokens)))),
        )


REACHED: Mapping[str, str] = {
    "prefill_tokens": "prompt tokens in a step",
    "before_tokens": "tokens before a prompt's next ones",
    "decode_calls": "calls decoding at once",
    "context_tokens": "tokens of a decoding call's context",
    "all_context_tokens": "tokens of all decoding calls' contexts together",
}


def reach(shape: Shape) -> dict[str, int]:
    """How far a shape reaches, by the keys of REACHED."""
    all_context_tokens = shape.decode_calls * shape.context_tokens
    return {name: getattr(shape, name, all_context_tokens) for name in REACHED}


def farthest(shapes: Iterable[Shape]) -> dict[str, int]:
    """How far the farthest of some shapes reaches in each direction."""
    found = dict.fromkeys(REACHED, 0)
    for shape in shapes:
        for name, value in reach(shape).items():
            found[name] = max(found[name], value)
    return found


class Beyond(NamedTuple):
    """A direction in which a workload reaches farther than the probes did."""

    name: str  # of REACHED
    probed: int  # the most
    played: int  # the most
    share: float  # of the workload's time in steps that reach farther than what was probed


class StepMix:
    """Seconds of simulated steps by their shapes, which are rounded: memory does not grow with the run."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[Shape, float]] = defaultdict(lambda: defaultdict(float))
        self._farthest = dict.fromkeys(REACHED, 0)

    def add(self, step: StepSample, shared: float = 0.0) -> None:
        shape = Shape.of(step, shared)
        for name, value in reach(shape).items():
            self._farthest[name] = max(self._farthest[name], value)
        self._seconds[kind(step)][Shape(*map(_rounded, shape))] += step.seconds

    @property
    def seconds(self) -> float:
        """Of all steps together."""
        return sum(sum(shapes.values()) for shapes in self._seconds.values())

    def shapes(self) -> list[Shape]:
        """The steps to measure: of each kind that takes its time a light one, a middle one, and the heaviest."""
        least_s = RARE * self.seconds
        return [
            shape
            for name in sorted(self._seconds)
            if sum(self._seconds[name].values()) >= least_s
            for shape in _standing_for(self._seconds[name])
        ]

    def weights(self) -> dict[str, float]:
        """How much each kind of step matters, together 1: by its time.

        Steps that only decode are one half, the others the other: the time between tokens and the time to the first
        one matter alike, however much of the time either takes.
        """
        halves: dict[bool, dict[str, float]] = defaultdict(dict)
        for name, shapes in self._seconds.items():
            halves[name.startswith("decode")][name] = sum(shapes.values())
        return {
            name: seconds / sum(half.values()) / len(halves)
            for half in halves.values()
            for name, seconds in half.items()
        }

    def beyond(self, probed: Mapping[str, int]) -> list[Beyond]:
        """Where these steps reach farther than what was probed, a tenth aside."""
        every = [(reach(shape), seconds) for shapes in self._seconds.values() for shape, seconds in shapes.items()]
        return [
            Beyond(
                name,
                probed[name],
                played,
                sum(seconds for reached, seconds in every if reached[name] > BEYOND * probed[name]) / self.seconds,
            )
            for name, played in self._farthest.items()
            if played > BEYOND * probed[name]
        ]


def mix_of(applications: Iterable[Application], machine: Machine) -> StepMix:
    """The steps of applications that are simulated under `vllm`, one by one. Raises what `simulate` raises."""
    mix, timing = StepMix(), machine.timing()
    prompts: dict[CallId, int] = {}  # of the calls under way
    computed: dict[CallId, int] = {}
    targets: dict[CallId, int] = {}  # of those that run: what they compute before their next token
    admitted: set[CallId] = set()  # since the last step

    def heard(fact: object) -> None:
        if isinstance(fact, e.CallArrived):
            prompts[fact.request.id] = fact.request.prompt_tokens
        elif isinstance(fact, e.CallAdmitted):
            computed[fact.call] = fact.gpu_hit_tokens + fact.host_hit_tokens
            targets[fact.call] = fact.resumed_tokens or prompts[fact.call]
            admitted.add(fact.call)
        elif isinstance(fact, e.CallFinished):
            del prompts[fact.call], computed[fact.call], targets[fact.call]

    def scheduled(step: Scheduled) -> None:
        chunks, contexts, completed = [], [], 0
        for call, tokens in step.tokens.items():
            before = computed[call]
            computed[call] += tokens
            if tokens == 1 and before >= prompts[call]:
                contexts.append(before)
            else:
                chunks.append((tokens, before))
                completed += before + tokens == targets[call]
        step_ps = timing.of_step(chunks, contexts, admitted=len(admitted), completed=completed)
        admitted.clear()
        held_tokens = (machine.gpu_blocks - step.free_blocks) * machine.block_tokens
        read_tokens = sum(tokens + before for tokens, before in chunks) + sum(contexts)
        shared = max(0.0, 1 - held_tokens / read_tokens)
        mix.add(
            StepSample(
                step_ps / PS_PER_S,
                sum(tokens for tokens, _ in chunks),
                sum(tokens * before + tokens * (tokens + 1) // 2 for tokens, before in chunks),
                len(contexts),
                sum(contexts),
            ),
            shared,
        )

    simulate(applications, Vllm(), machine, [heard], one_by_one=True, step_log=scheduled)
    return mix


def _standing_for(shapes: Mapping[Shape, float]) -> list[Shape]:
    """Those at QUANTILES of the time, lightest first, each once."""
    ordered = sorted(shapes, key=lambda shape: (shape.decode_calls * shape.context_tokens + _attended(shape), shape))
    total_s, passed_s = sum(shapes.values()), 0.0
    found: list[Shape] = []
    for shape in ordered:
        before, passed_s = passed_s / total_s, passed_s + shapes[shape]
        last = shape is ordered[-1]
        if last or any(before < quantile <= passed_s / total_s for quantile in QUANTILES):
            found.append(shape)
    return found


def _attended(shape: Shape) -> int:
    return shape.prefill_tokens * (shape.before_tokens + shape.prefill_tokens // 2)


def _rounded(number: int) -> int:
    """A number of FINE leading bits, the nearest."""
    unit = 1 << max(0, number.bit_length() - FINE)
    return (number + unit // 2) // unit * unit
