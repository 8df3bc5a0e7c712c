"""What is in a trace, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from ..apps import Application, Call, Tool
from ..errors import TraceError
from ..format.reader import Trace
from ..results.distribution import Distribution
from .sharing import Sharing

MAX_ERRORS = 20

Summary: TypeAlias = dict[str, float | None]  # mean, p50, p90, p95, p99, max; None if there is nothing to sum up


@dataclass(frozen=True, slots=True)
class ToolGaps:
    """The tools of one kind."""

    count: int
    duration_s: Summary
    declared_share: float  # of the tools: those whose duration the application declares


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in the applications that could be read, and up to 20 errors."""

    applications: int
    calls: int
    agents: int
    agent_types: dict[str, int]  # calls of each type, by name
    calls_an_application: Summary
    span_s: float  # from the first arrival to the last
    prompt_tokens: Summary
    output_tokens: Summary
    total_prompt_tokens: int
    total_output_tokens: int
    peak_context_tokens: int  # the longest prompt with its answer
    tool_gaps: dict[str, ToolGaps]  # by kind
    pauses_s: Summary  # of people, where there is one
    pauses: int
    shared_inside: float  # share of all prompt tokens that a limitless cache of the application itself would hit
    shared_across: float  # share that only a limitless cache of all applications before would hit
    errors: tuple[TraceError, ...]


def inspect_trace(trace: Trace, progress: Callable[[int], None] | None = None) -> Inspection:
    """Reads the whole trace. It goes on after a line that is wrong, until 20 are: `errors` tells them.

    `progress` is told the number of lines read so far.
    """
    tally = _Tally()
    errors: list[TraceError] = []
    try:
        for lines, outcome in enumerate(trace.outcomes()):
            if progress:
                progress(lines)
            if isinstance(outcome, TraceError):
                errors.append(outcome)
                if len(errors) == MAX_ERRORS:
                    break
            else:
                tally.add(outcome)
    except TraceError as error:  # the file cannot be read any further
        errors.append(error)
    return tally.inspection(tuple(errors))


@dataclass(slots=True)
class _Tools:
    duration_s: Distribution = field(default_factory=Distribution)
    count: int = 0
    declared: int = 0

    def add(self, tool: Tool) -> None:
        self.count += 1
        self.declared += tool.declared_s is not None
        self.duration_s.add(tool.duration_s)

    def gaps(self) -> ToolGaps:
        return ToolGaps(self.count, self.duration_s.summary(), self.declared / self.count)


class _Tally:
    """Counts applications one by one."""

    def __init__(self) -> None:
        self._applications = 0
        self._agents = 0
        self._first_s = 0.0
        self._last_s = 0.0
        self._calls = Distribution()
        self._prompt_tokens = Distribution()
        self._output_tokens = Distribution()
        self._pauses_s = Distribution()
        self._distributions = [self._calls, self._prompt_tokens, self._output_tokens, self._pauses_s]
        self._tools: dict[str, _Tools] = {}
        self._types: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._peak_tokens = 0
        self._sharing = Sharing()

    def add(self, application: Application) -> None:
        if not self._applications:
            self._first_s = application.arrival_s
        self._last_s = application.arrival_s
        self._applications += 1
        self._agents += len({call.agent for call in application.calls})
        self._calls.add(len(application.calls))
        for call in application.calls:
            self._add_call(call)
        for shared in self._sharing.of(application):
            self._totals["inside"] += shared.inside
            self._totals["across"] += shared.across
        for distribution in self._distributions:
            distribution.fold()

    def _add_call(self, call: Call) -> None:
        self._types[call.agent_type] += 1
        self._totals["prompt"] += call.prompt_tokens
        self._totals["output"] += call.output_tokens
        self._prompt_tokens.add(call.prompt_tokens)
        self._output_tokens.add(call.output_tokens)
        self._peak_tokens = max(self._peak_tokens, call.prompt_tokens + call.output_tokens)
        if call.pause_s:
            self._totals["pauses"] += 1
            self._pauses_s.add(call.pause_s)
        for tool in call.tools:
            self._tools_of(tool.kind).add(tool)

    def _tools_of(self, kind: str) -> _Tools:
        if kind not in self._tools:
            self._tools[kind] = _Tools()
            self._distributions.append(self._tools[kind].duration_s)
        return self._tools[kind]

    def inspection(self, errors: tuple[TraceError, ...]) -> Inspection:
        totals = self._totals
        prompt_tokens = max(1, totals["prompt"])
        return Inspection(
            applications=self._applications,
            calls=self._types.total(),
            agents=self._agents,
            agent_types=dict(sorted(self._types.items())),
            calls_an_application=self._calls.summary(),
            span_s=self._last_s - self._first_s,
            prompt_tokens=self._prompt_tokens.summary(),
            output_tokens=self._output_tokens.summary(),
            total_prompt_tokens=totals["prompt"],
            total_output_tokens=totals["output"],
            peak_context_tokens=self._peak_tokens,
            tool_gaps={kind: tools.gaps() for kind, tools in sorted(self._tools.items())},
            pauses_s=self._pauses_s.summary(),
            pauses=totals["pauses"],
            shared_inside=totals["inside"] / prompt_tokens,
            shared_across=totals["across"] / prompt_tokens,
            errors=errors,
        )
