"""Workloads made here: the published code writer, deep research, and chat. Seeded: equal arguments, equal traces."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from ..apps import Application, Segment
from ..errors import TraceError
from ..files.input_limits import APPLICATIONS
from .arrivals import ArrivalProcess, arrival_times
from .code_writer import code_writer_application, read_code_writer_dag
from .deep_research import deep_research_application
from .single_call import one_call_application

SHARED_TOKENS = 540  # of the code writer's fixed instructions: 2,900 characters are 540 to 660 tokens


def code_writer(
    apps: int = 24,
    qps: float = 1.0,
    arrivals: ArrivalProcess = "even",
    seed: int = 0,
    shared_tokens: int = SHARED_TOKENS,
    spread: float = 0.0,
) -> Iterator[Application]:
    """The published code-writer benchmark: `apps` applications of 27 calls, `qps` of them a second. Lazy.

    `shared_tokens` begin every prompt of every application. With a `spread` the length of each application's task and
    of each tool's result is drawn uniformly from (1 ± spread) times the published one; with 0 all applications are
    alike, as measured, and the seed matters to Poisson arrivals alone. Raises TraceError for arguments out of range.
    """
    _check_count("apps", apps, most=APPLICATIONS)
    _check_count("shared_tokens", shared_tokens)
    if not 0 <= spread < 1:
        raise TraceError(f"spread: expected a number from 0 to below 1, got {spread!r}")
    dag = read_code_writer_dag()
    rng = random.Random(f"{seed} code-writer")
    times = arrival_times(qps, arrivals, seed)
    return (
        code_writer_application(dag, f"a{index}", at_s, shared_tokens, spread, rng)
        for index, at_s in enumerate(islice(times, apps))
    )


def deep_research(
    apps: int = 24, qps: float = 0.1, arrivals: ArrivalProcess = "even", seed: int = 0
) -> Iterator[Application]:
    """Research questions, `qps` of them a second: a planner, parallel searchers with long web calls, a writer. Lazy.

    What an application looks like is said in `deep_research`. Raises TraceError for arguments out of range.
    """
    _check_count("apps", apps, most=APPLICATIONS)
    rng = random.Random(f"{seed} deep-research")
    times = arrival_times(qps, arrivals, seed)
    return (deep_research_application(f"a{index}", at_s, rng) for index, at_s in enumerate(islice(times, apps)))


def chat(
    calls: int, rate: float, prompt_tokens: int = 1_000, output_tokens: int = 200, seed: int = 0
) -> Iterator[Application]:
    """`calls` equal chat requests that share no content, as a Poisson process of `rate` a second.

    Lazy and of constant memory, however many. Raises TraceError for arguments out of range.
    """
    _check_count("calls", calls)
    _check_count("prompt_tokens", prompt_tokens, low=1)
    _check_count("output_tokens", output_tokens, low=1)
    times = arrival_times(rate, "poisson", seed)
    return (
        one_call_application(f"c{index}", at_s, (Segment(f"c{index}/prompt", 0, prompt_tokens),), output_tokens)
        for index, at_s in enumerate(islice(times, calls))
    )


def _check_count(name: str, value: int, low: int = 0, most: int | None = None) -> None:
    if value < low:
        raise TraceError(f"{name}: expected a whole number, at least {low}, got {value!r}")
    if most is not None and value > most:
        raise TraceError(f"{name}: expected at most {most:,}, got {value:,}")
