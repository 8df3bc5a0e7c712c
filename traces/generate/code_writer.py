"""The published code-writer application: 27 LLM calls with planning, three programmers, review and revision.

The facts lie in `data/code_writer.json`: graph, lengths, tool times and the hints that the application states. With
the start and the end of the application as nodes, as its authors count, the graph has 36 edges and depth 17.

Contexts are append-only. A call's prompt is the context of the call before (its prompt and answer), the result of that
call's tool, and an instruction of its own. A call that joins branches continues the first one; the others follow in
the order of `after`, each without what it has in common with the first.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from importlib.resources import files

from ..apps import AppId, Application, Call, CallId, Hints, Prompt, Segment, Tool

SHARED_SOURCE = "/code-writer-instructions"


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One call of the graph. Its tool is timed, and declared with its true duration."""

    name: str
    agent: str
    agent_type: str
    after: tuple[str, ...]
    instruction_tokens: int
    output_tokens: int
    tool: Tool | None
    hints: Hints


@dataclass(frozen=True, slots=True)
class Dag:
    """The graph, each call after those that it waits for. `task_tokens` is the application's own first input."""

    task_tokens: int
    nodes: tuple[GraphNode, ...]


def read_code_writer_dag() -> Dag:
    """The graph as packaged."""
    facts = json.loads(files(__package__).joinpath("data/code_writer.json").read_text(encoding="utf-8"))
    nodes = tuple(
        GraphNode(
            name=call["name"],
            agent=call["agent"],
            agent_type=call["agent_type"],
            after=tuple(call["after"]),
            instruction_tokens=call["instruction_tokens"],
            output_tokens=call["output_tokens"],
            tool=_declared(**call["tool"]) if call["tool"] else None,
            hints=Hints(max_depth=facts["max_depth"], **call["hints"]),
        )
        for call in facts["calls"]
    )
    return Dag(facts["task_tokens"], nodes)


def code_writer_application(
    dag: Dag, app: AppId, arrival_s: float, shared_tokens: int, spread: float, rng: random.Random
) -> Application:
    """One application. Its task and its tools' results are (1 ± spread) times as long as in the graph."""
    task = (Segment(SHARED_SOURCE, 0, shared_tokens), Segment(f"{app}/task", 0, _vary(dag.task_tokens, spread, rng)))
    calls: list[Call] = []
    handed_on: dict[str, tuple[Segment, ...]] = {}  # context and tool result: what a call leaves to its successors
    for node in dag.nodes:
        instruction = Segment(f"{app}/{node.name}.instruction", 0, node.instruction_tokens)
        before = _joined([handed_on[name] for name in node.after]) if node.after else task
        contents = _non_empty((*before, instruction))
        tool = _with_result(node.tool, spread, rng)
        calls.append(_call(app, node, contents, tool, _context_tokens(calls, app, node)))
        handed_on[node.name] = _non_empty(
            (
                *contents,
                Segment(f"{app}/{node.name}", 0, node.output_tokens),
                Segment(f"{app}/{node.name}.result", 0, tool.result_tokens if tool else 0),
            )
        )
    return Application(app, arrival_s, tuple(calls))


def _call(app: AppId, node: GraphNode, contents: tuple[Segment, ...], tool: Tool | None, context_tokens: int) -> Call:
    """The call whose whole prompt is `contents`, the first `context_tokens` of them being an earlier call's context."""
    return Call(
        id=f"{app}/{node.name}",
        app=app,
        agent=f"{app}/{node.agent}",
        agent_type=node.agent_type,
        prompt=Prompt(
            segments=_without_first(contents, context_tokens),
            extends=_first_awaited(app, node),
            keep_tokens=context_tokens,
            tokens=sum(segment.tokens for segment in contents),
        ),
        output_tokens=node.output_tokens,
        max_output_tokens=node.output_tokens,
        after=tuple(f"{app}/{name}" for name in node.after),
        tools=(tool,) if tool else (),
        hints=node.hints,
    )


def _first_awaited(app: AppId, node: GraphNode) -> CallId | None:
    return f"{app}/{node.after[0]}" if node.after else None


def _context_tokens(calls: list[Call], app: AppId, node: GraphNode) -> int:
    """Tokens of the context that a call extends: that of the first call it waits for."""
    first = _first_awaited(app, node)
    return sum(call.prompt_tokens + call.output_tokens for call in calls if call.id == first)


def _joined(branches: list[tuple[Segment, ...]]) -> tuple[Segment, ...]:
    """The first branch, then of each other branch what follows the prefix that all have in common."""
    common = 0
    while len({branch[common : common + 1] for branch in branches}) == 1 and common < len(branches[0]):
        common += 1
    suffixes = (branch[common:] for branch in branches[1:])
    return (*branches[0], *(segment for suffix in suffixes for segment in suffix))


def _without_first(contents: tuple[Segment, ...], tokens: int) -> tuple[Segment, ...]:
    """What follows the first `tokens` tokens, at which a segment ends."""
    passed = 0
    for index, segment in enumerate(contents):
        if passed == tokens:
            return contents[index:]
        passed += segment.tokens
    assert passed == tokens
    return ()


def _non_empty(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return tuple(segment for segment in segments if segment.tokens)


def _declared(kind: str, duration_s: float, result_tokens: int) -> Tool:
    return Tool(kind, duration_s, declared_s=duration_s, result_tokens=result_tokens)


def _with_result(tool: Tool | None, spread: float, rng: random.Random) -> Tool | None:
    if tool is None:
        return None
    return Tool(tool.kind, tool.duration_s, tool.declared_s, _vary(tool.result_tokens, spread, rng))


def _vary(tokens: int, spread: float, rng: random.Random) -> int:
    return round(tokens * rng.uniform(1 - spread, 1 + spread)) if spread else tokens
