"""Workloads of a size that is asked for, each of which puts many of one thing before the simulator at once.

Each is made of about so many calls as asked for, small ones, so that what there is many of costs the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool
from tokencake.traces.format.derive import with_hints

PROMPT_TOKENS, BLOCK_TOKENS = 64, 16
SHORT_TOKENS, LONG_TOKENS = 8, 400  # answers
TOOL_S, LONG_TOOL_S = 2.0, 20_000.0
RATE = 10.0  # applications a second, where they do not come all at once: the machine keeps up with them
CHAIN = 3
MAX_RUNNING = 64  # few, so that nearly all wait of those that come at once, be they thousands or hundreds
STRIDE = 7_919  # a prime: takes the places of a document in an order that neither grows nor falls


class Shape(NamedTuple):
    """A workload and its machine, both by the number of calls."""

    about: str
    calls: int  # of the smaller of two runs
    make: Callable[[int], Iterator[Application]]
    settings: Callable[[int], Mapping[str, float]] = lambda calls: {}

    def machine(self, calls: int) -> Machine:
        settings = {"max_running": MAX_RUNNING, **self.settings(calls)}
        return load_machine("a800-qwen2.5-14b", [f"{name}={value}" for name, value in settings.items()])


def burst(calls: int) -> Iterator[Application]:
    """Applications of one call, all at once, with a common system prompt."""
    for n in range(calls):
        yield _application(0.0, [_call(n, "c0", (_shared(PROMPT_TOKENS), _own(n, "c0")), _answer(n))])


def tools(calls: int) -> Iterator[Application]:
    """All at once; half of the calls in chains of three with tools between them."""
    left = calls
    for n in range(calls):
        length = min(left, CHAIN if n % (CHAIN + 1) == 0 else 1)
        if not length:
            return
        left -= length
        yield _application(0.0, _chain(n, length, TOOL_S))


def shared_prefix(calls: int) -> Iterator[Application]:
    """Applications of one call, all at once, that share a long prompt but for its end."""
    for n in range(calls):
        yield _application(0.0, [_call(n, "c0", (_shared(8_192), _own(n, "c0")), _answer(n))])


def same_prompt(calls: int) -> Iterator[Application]:
    """One prompt, again and again, all at once."""
    for n in range(calls):
        yield _application(0.0, [_call(n, "c0", (_shared(1_024),), _answer(n))])


def document(calls: int) -> Iterator[Application]:
    """Applications of one call, one after the other; each takes a block more of one document than the one before."""
    for n in range(calls):
        yield _application(n / RATE, [_call(n, "c0", (_shared((n + 1) * BLOCK_TOKENS),), _answer(n))])


def branches(calls: int) -> Iterator[Application]:
    """The same in another order, and each with a question of its own about what it took."""
    for n in range(calls):
        taken = (n * STRIDE % calls + 1) * BLOCK_TOKENS
        yield _application(n / RATE, [_call(n, "c0", (_shared(taken), _own(n, "c0")), _answer(n))])


def join(calls: int) -> Iterator[Application]:
    """One application whose last call waits for all others."""
    every = [_call(0, f"c{k}", (_own(0, f"c{k}"),), _answer(k)) for k in range(calls - 1)]
    last = _call(0, "last", (_own(0, "last"),), SHORT_TOKENS, after=every)
    yield _application(0.0, [*every, last])


def fork(calls: int) -> Iterator[Application]:
    """One application whose first call is continued by all others."""
    first = _call(0, "first", (_own(0, "first"),), SHORT_TOKENS)
    yield _application(0.0, [first, *(_continued(0, f"c{k}", first, _answer(k)) for k in range(calls - 1))])


def chain(calls: int) -> Iterator[Application]:
    """One application, its calls one after the other, each with the beginning of the context before."""
    yield _application(0.0, _chain(0, calls))


def chain_with_tools(calls: int) -> Iterator[Application]:
    """The same with tools in between."""
    yield _application(0.0, _chain(0, calls, TOOL_S))


def growing(calls: int) -> Iterator[Application]:
    """One conversation that keeps all that was said."""
    yield _application(0.0, _chain(0, calls, kept_tokens=calls * 2 * PROMPT_TOKENS))


def stalled(calls: int) -> Iterator[Application]:
    """Agents that come one after the other; all of them are in a long tool at once."""
    for n in range(calls // 2):
        yield _application(n / RATE, _chain(n, 2, LONG_TOOL_S))


def returns(calls: int) -> Iterator[Application]:
    """The same, but their tools return together."""
    for n in range(calls // 2):
        yield _application(n / RATE, _chain(n, 2, LONG_TOOL_S - n / RATE))


def one_step(calls: int) -> Iterator[Application]:
    """Calls that are alike, all at once."""
    for n in range(calls):
        yield _application(0.0, [_call(n, "c0", (_own(n, "c0"),), SHORT_TOKENS)])


def long_outputs(calls: int) -> Iterator[Application]:
    """Long answers, all at once."""
    for n in range(calls):
        yield _application(0.0, [_call(n, "c0", (_own(n, "c0"),), LONG_TOKENS)])


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "burst": Shape("all at once", 1_000, burst),
        "tools": Shape("all at once, half of them before tools", 1_000, tools),
        "crowded": Shape(
            "the same, little memory of any kind", 1_000, tools, lambda calls: {"gpu_blocks": 200, "host_gib": 0.5}
        ),
        "shared-prefix": Shape("agents that share a prefix of 8,192 tokens", 1_000, shared_prefix),
        "same-prompt": Shape("the same prompt, all at once", 1_000, same_prompt),
        "document": Shape(
            "prompts that take ever more of one document",
            500,
            document,
            lambda calls: {"gpu_blocks": 4 * calls, "max_context_tokens": 2 * calls * BLOCK_TOKENS},
        ),
        "branches": Shape(
            "questions that branch off one document anywhere",
            500,
            branches,
            lambda calls: {"gpu_blocks": 8 * calls, "max_context_tokens": 2 * calls * BLOCK_TOKENS + 1_000},
        ),
        "join": Shape("one application that joins them all", 1_000, join),
        "fork": Shape("one application that forks them all", 1_000, fork),
        "chain": Shape("one chain", 1_000, chain),
        "chain-tools": Shape("one chain with tools", 1_000, chain_with_tools),
        "growing": Shape(
            "one conversation, however long",
            500,
            growing,
            lambda calls: {"gpu_blocks": 8 * calls, "max_context_tokens": 128 * calls},
        ),
        "stalled": Shape("agents in long tools", 1_000, stalled),
        "returns": Shape("agents whose tools return at once", 1_000, returns),
        "long-outputs": Shape(
            "one batch, memory for half of its answers",
            250,
            long_outputs,
            lambda calls: {"gpu_blocks": 15 * calls, "max_running": calls},
        ),
        "one-step": Shape(
            "one batch whose calls all end in one step",
            1_000,
            one_step,
            lambda calls: {"gpu_blocks": 10 * calls, "max_running": calls, "step_budget_tokens": 200 * calls},
        ),
    }
)


def _application(arrival_s: float, calls: Iterable[Call]) -> Application:
    made = tuple(calls)  # which share their ids, as those that are read from a trace
    return with_hints(Application(made[0].app, arrival_s, made))


def _chain(n: int, length: int, tool_s: float = 0.0, kept_tokens: int = 8 * PROMPT_TOKENS) -> Iterator[Call]:
    call = _call(n, "c0", (_shared(PROMPT_TOKENS), _own(n, "c0")), _answer(n), tools=_tools(tool_s, length > 1))
    yield call
    for k in range(1, length):
        call = _continued(n, f"c{k}", call, _answer(n), kept_tokens, _tools(tool_s, k < length - 1))
        yield call


def _tools(tool_s: float, wanted: bool) -> tuple[Tool, ...]:
    return (Tool("search", tool_s, tool_s),) if tool_s and wanted else ()


def _continued(
    n: int,
    name: str,
    before: Call,
    output_tokens: int,
    kept_tokens: int = 8 * PROMPT_TOKENS,
    tools: tuple[Tool, ...] = (),
) -> Call:
    """A call that waits for the one before, and continues its context: the beginning of it, if that is long."""
    kept = min(kept_tokens, before.prompt.tokens + before.output_tokens)
    prompt = Prompt((_own(n, f"{name}.result"),), before.id, kept, kept + PROMPT_TOKENS)
    agent = f"a{n}/{name}" if before.id.endswith("first") else before.agent
    return Call(
        f"a{n}/{name}", before.app, agent, "agent", prompt, output_tokens, output_tokens, (before.id,), 0.0, tools
    )


def _call(
    n: int,
    name: str,
    segments: tuple[Segment, ...],
    output_tokens: int,
    after: Sequence[Call] = (),
    tools: tuple[Tool, ...] = (),
) -> Call:
    """A call that continues none."""
    prompt = Prompt(segments, tokens=sum(segment.tokens for segment in segments))
    awaited = tuple(call.id for call in after)
    agent = f"a{n}/{name}" if name != "c0" else f"a{n}/main"
    return Call(f"a{n}/{name}", f"a{n}", agent, "agent", prompt, output_tokens, output_tokens, awaited, 0.0, tools)


def _answer(n: int) -> int:
    """Tokens of the n-th answer, so that not all end in the same step."""
    return SHORT_TOKENS + 37 * n % 64


def _shared(tokens: int) -> Segment:
    return Segment("/document", 0, tokens)


def _own(n: int, name: str) -> Segment:
    return Segment(f"a{n}/{name}.question", 0, PROMPT_TOKENS)
