"""What is played to learn what an engine costs: prefills, decoding, both at once, and copies, in many sizes.

All of it is ordinary applications. The steps are one application, a chain of *probes*: each begins when the one before
it has ended, so the engine computes one thing at a time and is never idle. What a probe continues (the first tokens of
contexts, each agent its own) is computed once, at the beginning, and found in the cache from then on. Copies are
another application, under a policy that offloads and uploads at once (`copy_probe`), on an engine that does nothing
else.

Where it is known what will be played, the steps that it is made of are a second application: shapes that lie far
outside of the first one's sizes are measured and not extrapolated to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, Protocol

from ...policies.controller import Sink
from ...policies.run_settings import RunSettings
from ...traces import limits as bounds
from ...traces.apps import AppId, Application, Call, CallId, Prompt, Segment, Tool
from ...traces.errors import EngineError
from ...traces.events import CallFinished
from .copy_probe import LOADED, UPLOADED

COPY_POLICY = f"{Path(__file__).with_name('copy_probe.py')}:CopyProbe"  # as `load_policy` takes it
SLOWEST_LINK_GBPS = 3.0  # of a link whose rate nobody stated: copies are waited for as long as this takes
COPY_SLACK_S = 0.1  # for what else a copy takes: jobs, an engine that looks now and then
SHARE_OF_CACHE = 0.8  # of the GPU's blocks that contexts may take, so that they stay cached
LEAST_BLOCKS = 8
WARM_TOKENS = 16_384  # the most that the contexts of one length come to while it warms up
JOINING_TOKENS = 16  # that a call computes before it decodes behind a cached context


Progress = Callable[[str, int, int], None]  # what is being measured, how many calls of it have ended, of how many


class Limits(bounds.Limits, Protocol):
    """What an engine can hold and do in a step. Names as in `Machine`."""

    @property
    def block_bytes(self) -> int: ...
    @property
    def host_blocks(self) -> int: ...
    @property
    def step_budget_tokens(self) -> int: ...
    @property
    def max_running(self) -> int: ...


class Shape(Protocol):
    """A step that is to be measured. Names as in `sim.step_mix`."""

    @property
    def prefill_tokens(self) -> int: ...
    @property
    def before_tokens(self) -> int: ...
    @property
    def decode_calls(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def contexts(self) -> int: ...


class Played(Protocol):
    """What a run came to."""

    @property
    def errors(self) -> Sequence[str]: ...


class Engine(Protocol):
    """What the probes are played on: an `InProcess`."""

    def play(
        self, applications: Iterable[Application], settings: RunSettings, sinks: Sequence[Sink] = ()
    ) -> Played: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured. What the engine cannot hold is left out."""

    repeats: int  # of each probe
    prefill_tokens: tuple[int, ...]  # computed at once, if the budget of a step allows
    context_tokens: tuple[int, ...]  # that decoding calls attend to, or a prefill follows on
    cached_tokens: int  # the most that the contexts of one length come to
    largest_batch: int
    decode_steps: int  # of a probe
    copy_bytes: tuple[int, ...]


# Under a minute on a CPU with a tiny model.
QUICK = Effort(
    repeats=3,
    prefill_tokens=(8, 64, 256, 1024, 2048),
    context_tokens=(64, 512, 2048, 4096),
    cached_tokens=8_192,
    largest_batch=32,
    decode_steps=10,
    copy_bytes=(1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26),
)
# Under three minutes on a GPU.
FULL = Effort(
    repeats=5,
    prefill_tokens=(8, 32, 128, 512, 1024, 2048, 4096, 8192),
    context_tokens=(64, 512, 2048, 8192, 32_768),
    cached_tokens=65_536,
    largest_batch=256,
    decode_steps=16,
    copy_bytes=(1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 30),
)


def step_probes(limits: Limits, effort: Effort, seed: int = 0) -> Application:
    """The application whose steps are to be measured; its probes are in an order drawn with `seed`.

    Raises EngineError if the engine is too small to measure.
    """
    if limits.gpu_blocks < LEAST_BLOCKS or limits.max_context_tokens < 4 * limits.block_tokens:
        raise EngineError(
            f"cannot calibrate: expected at least {LEAST_BLOCKS} GPU blocks and a context of 4 blocks, got"
            f" {limits.gpu_blocks} blocks of {limits.block_tokens} tokens, a context of {limits.max_context_tokens}"
        )
    grid = _Grid(limits, effort)
    return _shuffled("steps", [*_prefills(grid), *_decoding(grid), *_mixed(grid)], effort.repeats, seed)


def trace_probes(limits: Limits, effort: Effort, shapes: Iterable[Shape], seed: int = 0) -> Application | None:
    """The application in which steps of these shapes are measured; None if the engine can hold none of them.

    Of calls that the engine cannot hold side by side, each with a context of its own, there are fewer.
    """
    grid = _Grid(limits, effort)
    probes = dict.fromkeys(probe for shape in shapes if (probe := grid.probe_of(shape)) is not None)
    return _shuffled("trace", list(probes), effort.repeats, seed) if probes else None


def _shuffled(app: AppId, probes: Sequence[_Probe], repeats: int, seed: int) -> Application:
    chain = _Chain(app)
    chain.cache(probes)
    rng = random.Random(f"{seed} calibrate")
    for _ in range(repeats):
        for probe in rng.sample(probes, len(probes)):
            chain.play(probe)
    return chain.application()


def copy_probes(limits: Limits, effort: Effort, link_gbps: float | None = None) -> Application | None:
    """The application whose copies are to be measured, for `COPY_POLICY`; None where there is no host memory.

    Each agent's context is saved while its tool runs. Half of them are brought back before the tool returns, the
    others when the next call asks for them. `link_gbps` is what the link was slowed down to, if it was.
    """
    slowest = (0.5 * link_gbps if link_gbps else SLOWEST_LINK_GBPS) * 1e9
    chain = _Chain("copies")
    for _ in range(effort.repeats):
        for blocks in _copy_sizes(limits, effort):
            for agent_type in (UPLOADED, LOADED):
                wait_s = COPY_SLACK_S + 2 * blocks * limits.block_bytes / slowest
                chain.stall(agent_type, blocks * limits.block_tokens, wait_s)
    return chain.application() if chain.calls else None


def measure(
    engine: Engine,
    limits: Limits,
    effort: Effort,
    sink: Sink,
    *,
    seed: int = 0,
    link_gbps: float | None = None,
    progress: Progress = lambda label, done, total: None,
    shapes: Callable[[], Iterable[Shape]] | None = None,
) -> None:
    """Plays the probes on an engine, after a run that only warms it up; the sink gets the facts of all but that.

    `shapes` is asked, once the sink has the steps, which others are to be measured. Raises EngineError if the engine is
    too small to measure, or if its copies cannot be.
    """
    shorter = replace(effort, repeats=1, decode_steps=2, cached_tokens=min(effort.cached_tokens, WARM_TOKENS))
    warm, steps = step_probes(limits, shorter, seed), step_probes(limits, effort, seed)
    engine.play([warm], RunSettings(), [_counting("warming up", warm, progress)])
    engine.play([steps], RunSettings(steps=True), [sink, _counting("steps", steps, progress)])
    if shapes is not None and (played := trace_probes(limits, effort, shapes(), seed)) is not None:
        engine.play([played], RunSettings(steps=True), [sink, _counting("steps of the trace", played, progress)])
    copies = copy_probes(limits, effort, link_gbps)
    if copies is not None:
        settings = RunSettings(policy=COPY_POLICY)
        stats = engine.play([copies], settings, [sink, _counting("copies", copies, progress)])
        if stats.errors:
            raise EngineError(f"copies cannot be measured: {stats.errors[0]}")


def _counting(label: str, application: Application, progress: Progress) -> Sink:
    """A sink that shows how many of an application's calls have ended."""
    ended = 0

    def add(fact: object) -> None:
        nonlocal ended
        if isinstance(fact, CallFinished):
            ended += 1
            progress(label, ended, len(application.calls))

    return add


def _copy_sizes(limits: Limits, effort: Effort) -> list[int]:
    """Blocks, fewest first."""
    room = min(limits.gpu_blocks // 2, limits.host_blocks, (limits.max_context_tokens - 2) // limits.block_tokens - 1)
    asked = (max(1, size // limits.block_bytes) for size in effort.copy_bytes)
    return sorted({min(blocks, room) for blocks in asked}) if room > 0 else []


class _Probe(NamedTuple):
    """Prompts that are computed one after another, while `calls` calls decode behind contexts of their own."""

    context_tokens: int  # cached, that the calls follow on
    calls: int
    steps: int  # that the calls decode
    prompts_tokens: tuple[int, ...]
    before_tokens: int = 0  # cached, that the prompts follow on; 0: none
    contexts: int = 0  # that all of them share; 0: each has its own

    def context_of(self, index: int) -> int:
        """The number of the context that a call continues; the prompts are the one behind the last call."""
        return index % self.contexts if self.contexts else index

    def cached_tokens(self) -> list[int]:
        """By the number of a context, how many of its tokens are continued."""
        longest: dict[int, int] = {}
        for index, tokens in enumerate((*(self.context_tokens for _ in range(self.calls)), self.before_tokens)):
            longest[self.context_of(index)] = max(tokens, longest.get(self.context_of(index), 0))
        return [tokens for _, tokens in sorted(longest.items())]


class _Grid:
    """The sizes that an engine can be measured with."""

    def __init__(self, limits: Limits, effort: Effort) -> None:
        self.effort = effort
        self.budget_tokens = limits.step_budget_tokens
        self._block_tokens = limits.block_tokens
        self._max_running = limits.max_running
        self._room_tokens = int(SHARE_OF_CACHE * limits.gpu_blocks) * limits.block_tokens
        self.longest_tokens = min(limits.max_context_tokens, self._room_tokens)
        self._added_tokens = JOINING_TOKENS + effort.decode_steps + 1  # by a call that decodes behind a context
        self.contexts = [
            context for context in effort.context_tokens if self._held(context) <= self.longest_tokens
        ] or [limits.block_tokens]
        self.prefills = [tokens for tokens in effort.prefill_tokens if tokens + 1 <= self.longest_tokens]

    def batches(self, context_tokens: int) -> list[int]:
        """Numbers of calls that can decode behind contexts of this length: 1, 2, 4, …"""
        most = min(
            self._max_running,
            self.effort.largest_batch,
            self.effort.cached_tokens // context_tokens,
            self._room_tokens // self._held(context_tokens),
        )
        return [1 << power for power in range(max(1, most).bit_length())]

    def probe_of(self, shape: Shape) -> _Probe | None:
        """What measures steps of this shape, or of what the engine can hold of it."""
        block = self._block_tokens
        context = max(0, min(shape.context_tokens, self.longest_tokens - self._held(0))) // block * block
        prefill = min(shape.prefill_tokens, max(1, self.budget_tokens - shape.decode_calls), self.longest_tokens // 2)
        before = min(shape.before_tokens, self.longest_tokens - prefill - 1) // block * block
        room_tokens = self._room_tokens - (self._held(before + prefill) if prefill else 0)
        calls = max(
            0,
            min(shape.decode_calls, self._max_running - bool(prefill), self._side_by_side(shape, context, room_tokens)),
        )
        asked = shape.decode_calls + bool(prefill)
        contexts = -(-min(shape.contexts, asked) * (calls + bool(prefill)) // max(1, asked))
        if not prefill:
            return _Probe(context, calls, self.effort.decode_steps, (), contexts=contexts) if calls else None
        if calls:  # they decode once a first prompt has joined them
            return _Probe(context, calls, 4, (JOINING_TOKENS, prefill), before, contexts)
        return _Probe(0, 0, 0, (prefill,), before)

    def _side_by_side(self, shape: Shape, context_tokens: int, room_tokens: int) -> int:
        """How many calls have room behind contexts of a length, as many of them shared as the shape has it."""
        alone = room_tokens // self._held(context_tokens)
        if shape.contexts >= shape.decode_calls or not alone:
            return alone
        share = shape.contexts / shape.decode_calls
        return max(alone, int((room_tokens - context_tokens) / (share * context_tokens + self._held(0))))

    def _held(self, context_tokens: int) -> int:
        """Tokens that a context and a call behind it take room for: whole blocks."""
        blocks = -(-context_tokens // self._block_tokens) + -(-self._added_tokens // self._block_tokens) + 1
        return blocks * self._block_tokens


def _prefills(grid: _Grid) -> list[_Probe]:
    """Cold ones, and some of at most a step behind cached contexts."""
    cold = [_Probe(0, 0, 0, (tokens,)) for tokens in grid.prefills]
    behind = [
        _Probe(0, 0, 0, (tokens,), context)
        for context in grid.contexts
        for tokens in grid.prefills[::2]
        if tokens <= grid.budget_tokens and context + tokens + 1 <= grid.longest_tokens
    ]
    return cold + behind


def _decoding(grid: _Grid) -> list[_Probe]:
    return [
        _Probe(context, calls, grid.effort.decode_steps, ())
        for context in grid.contexts
        for calls in grid.batches(context)
    ]


def _mixed(grid: _Grid) -> list[_Probe]:
    context = grid.contexts[0]
    beside = tuple(tokens for tokens in grid.prefills if 4 * tokens <= grid.budget_tokens)
    return [_Probe(context, calls, len(beside) + 2, beside) for calls in grid.batches(context)[1::2]]


class _Chain:
    """An application in the making: sets of calls, each of which waits for the set before it."""

    def __init__(self, app: AppId) -> None:
        self._app = app
        self.calls: list[Call] = []
        self._after: tuple[CallId, ...] = ()  # the calls that end last in the set before
        self._contexts: dict[int, CallId] = {}  # by the number of an agent, who computed it

    def application(self) -> Application:
        return Application(self._app, 0.0, tuple(self.calls))

    def cache(self, probes: Iterable[_Probe]) -> None:
        """Compute a context for each agent, as long as the longest that any probe continues of it."""
        longest = [max(tokens) for tokens in zip_longest(*(probe.cached_tokens() for probe in probes), fillvalue=0)]
        for index, tokens in enumerate(longest):
            if tokens:
                self._contexts[index] = self._add(_agent(index), tokens, 1)
                self._then(self._contexts[index])

    def play(self, probe: _Probe) -> None:
        calls = [
            self._behind(probe.context_of(index), probe.context_tokens, JOINING_TOKENS, probe.steps + 1)
            for index in range(probe.calls)
        ]
        last: tuple[CallId, ...] = (calls[0], calls[-1]) if calls else ()
        waits = self._after
        for tokens in probe.prompts_tokens:
            if probe.before_tokens:
                context = probe.context_of(probe.calls)
                prompt = self._behind(context, probe.before_tokens, tokens, 1, after=waits)
            else:
                prompt = self._add("prefill", tokens, 1, after=waits)
            waits = (prompt,)
        self._then(*last, *(waits if probe.prompts_tokens else ()))

    def stall(self, agent_type: str, tokens: int, wait_s: float) -> None:
        """A call, a tool that runs for `wait_s`, and a call that continues the context."""
        agent = f"{agent_type}-{len(self.calls)}"
        first = self._add(agent, tokens, 1, agent_type=agent_type, tools=(Tool("copy", wait_s, wait_s),))
        self._then(first)
        self._then(self._add(agent, JOINING_TOKENS, 1, agent_type=agent_type, extends=first, keep_tokens=tokens))

    def _behind(
        self, index: int, context_tokens: int, tokens: int, output_tokens: int, after: tuple[CallId, ...] | None = None
    ) -> CallId:
        """A call that continues the first tokens of an agent's context, or none if there are to be none."""
        extended = self._contexts[index] if context_tokens else None
        return self._add(
            _agent(index), tokens, output_tokens, extends=extended, keep_tokens=context_tokens, after=after
        )

    def _add(
        self,
        agent: str,
        tokens: int,
        output_tokens: int,
        *,
        agent_type: str = "probe",
        extends: CallId | None = None,
        keep_tokens: int = 0,
        tools: tuple[Tool, ...] = (),
        after: tuple[CallId, ...] | None = None,
    ) -> CallId:
        """One more call, of `tokens` prompt tokens that no other call has; it waits for the set before it."""
        call = f"{self._app}/{len(self.calls)}"
        self.calls.append(
            Call(
                id=call,
                app=self._app,
                agent=f"{self._app}/{agent}",
                agent_type=agent_type,
                prompt=Prompt((Segment(f"{call}.prompt", 0, tokens),), extends, keep_tokens, keep_tokens + tokens),
                output_tokens=output_tokens,
                max_output_tokens=output_tokens,
                after=self._after if after is None else after,
                tools=tools,
            )
        )
        return call

    def _then(self, *ends: CallId) -> None:
        self._after = tuple(dict.fromkeys(ends))


def _agent(index: int) -> str:
    return f"context-{index}"
