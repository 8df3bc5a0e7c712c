"""A deep-research application: a planner, parallel searchers with long web calls, and a writer that joins them.

All figures are choices of ours, not measurements; they are meant to be plausible and to differ from the code writer in
what matters to a KV cache: long tool times that vary by an order of magnitude and are often undeclared, contexts that
grow by whole web pages, and a wide join.

- One lead agent plans (1,500 tokens of instructions that all applications share, a question of 100 to 600), waits for
  all searchers, then writes: its plan's context continued by each searcher's report.
- 3 to 6 searchers of 2 to 5 rounds; each begins with 1,200 shared tokens of instructions and its part of the question.
- A round calls the web: first a search (declared: 2 s, results of 400 to 1,200 tokens), then a search in one round of
  four and else the fetch of a page (undeclared, 1,000 to 6,000 tokens). True times are log-normal: a search's median is
  2 s (σ 0.5), a fetch's 8 s (σ 0.9), both cut off at 60 s, where a client would give up.
- Answers: plan 300 to 600 tokens, a round's tool call 60 to 180, a report 400 to 900, the final text 1,500 to 3,000.
  Declared budgets are the upper ends of these ranges.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from ..apps import AppId, Application, Call, Prompt, Segment, Tool
from ..format.derive import with_hints

PLAN_TOKENS = (300, 600)
ROUND_TOKENS = (60, 180)
REPORT_TOKENS = (400, 900)
TEXT_TOKENS = (1_500, 3_000)
TIMEOUT_S = 60.0


def deep_research_application(app: AppId, arrival_s: float, rng: random.Random) -> Application:
    """One application; all that varies is drawn from `rng`."""
    question = Segment(f"{app}/question", 0, rng.randint(100, 600))
    task = (Segment("/planner-instructions", 0, 1_500), question)
    plan = _call(app, "plan", "lead", "planner", task, PLAN_TOKENS, rng)
    branches = [_searcher(app, f"searcher_{index + 1}", plan, rng) for index in range(rng.randint(3, 6))]
    reports = [branch[-1] for branch in branches]
    contents = (*(_answer(report) for report in reports), Segment(f"{app}/write.instruction", 0, 60))
    write = _call(app, "write", "lead", "writer", contents, TEXT_TOKENS, rng, after=(plan, *reports), extends=plan)
    searches = (call for branch in branches for call in branch)
    return with_hints(Application(app, arrival_s, (plan, *searches, write)))


def _searcher(app: AppId, agent: str, plan: Call, rng: random.Random) -> list[Call]:
    """The calls of one searcher: rounds that each end in a web call, then a report."""
    part = Segment(f"{app}/{agent}.part", 0, rng.randint(40, 120))
    contents: tuple[Segment, ...] = (Segment("/searcher-instructions", 0, 1_200), part)
    calls: list[Call] = []
    for index in range(rng.randint(2, 5)):
        name = f"{agent}_round_{index + 1}"
        tool = _search(rng) if index == 0 or rng.random() < 0.25 else _fetch(rng)
        previous = calls[-1] if calls else None
        after = (previous or plan,)
        call = _call(app, name, agent, "searcher", contents, ROUND_TOKENS, rng, after, previous, (tool,))
        contents = (Segment(f"{app}/{name}.result", 0, tool.result_tokens),)
        calls.append(call)
    last = calls[-1]
    calls.append(_call(app, f"{agent}_report", agent, "searcher", contents, REPORT_TOKENS, rng, (last,), last))
    return calls


def _call(
    app: AppId,
    name: str,
    agent: str,
    agent_type: str,
    contents: tuple[Segment, ...],
    output_range: tuple[int, int],
    rng: random.Random,
    after: Sequence[Call] = (),
    extends: Call | None = None,
    tools: tuple[Tool, ...] = (),
) -> Call:
    """A call whose prompt is the context of `extends`, if any, and then `contents`."""
    kept_tokens = extends.prompt_tokens + extends.output_tokens if extends else 0
    tokens = kept_tokens + sum(segment.tokens for segment in contents)
    return Call(
        id=f"{app}/{name}",
        app=app,
        agent=f"{app}/{agent}",
        agent_type=agent_type,
        prompt=Prompt(contents, extends.id if extends else None, kept_tokens, tokens),
        output_tokens=rng.randint(*output_range),
        max_output_tokens=output_range[1],
        after=tuple(call.id for call in after),
        tools=tools,
    )


def _answer(call: Call) -> Segment:
    return Segment(call.id, 0, call.output_tokens)


def _search(rng: random.Random) -> Tool:
    return Tool("web_search", _log_normal_s(2.0, 0.5, rng), declared_s=2.0, result_tokens=rng.randint(400, 1_200))


def _fetch(rng: random.Random) -> Tool:
    return Tool("web_fetch", _log_normal_s(8.0, 0.9, rng), result_tokens=rng.randint(1_000, 6_000))


def _log_normal_s(median_s: float, sigma: float, rng: random.Random) -> float:
    """Whole milliseconds: short in a file, and the same with any C library's exponential."""
    return round(min(TIMEOUT_S, rng.lognormvariate(math.log(median_s), sigma)), 3)
