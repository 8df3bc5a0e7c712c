"""The same applications as chance would have them on another day: what differs between the repeats of a comparison.

Up to four aspects vary, each by draws of its own:

- `arrivals`: the gaps between arrivals are drawn, with replacement, from the trace's own. If those are as good as
  equal (a schedule, not an observation) they are exponentially distributed with the same mean. The first arrival stays.
  Of applications that arrive at the same instant, all orders are equally likely: a trace has to write them in some
  order, and a policy that gains by that one has gained by chance.
- `order`: which application comes at which arrival is a permutation, all equally likely.
- `tools`: each tool gets the true duration of a tool drawn, with replacement, from those of the trace that are of its
  kind and started by its agent type, and with it what was declared of that one: so declarations are as good as they
  were, and tell no more than they told. A tool that declares nothing draws among those that declare nothing. A group
  whose durations are all equal has nothing to draw, and stays. With a number, `tools=0.3`: each true duration is
  multiplied by a log-normal factor of mean 1 and that standard deviation, and what is declared stays: nobody knew.
- `declared`: each declared duration gets an error anew. In each group of kind and agent type, the logarithm of what is
  declared is fitted by a straight line of the logarithm of the true duration, of slope 0 to 1; the residuals are drawn
  with replacement and put on the line. So what is declared depends on the truth as much as it did in the trace: a
  constant stays a constant, and what was exact for truths that differ stays exact. Where all truths of a group are
  equal there is no slope: what is declared does not follow `tools`. A declared or true duration below a millisecond is
  no measurement, and what is declared there stays. With a number, `declared=0.3`: the true duration, times a log-normal
  factor of mean 1 and that standard deviation; `declared=0` declares the truth. What is undeclared stays so.

Ids, prompts, answers, pauses and the results of tools stay. Of the hints, `critical_path` depends on what is declared:
where it was what follows from the DAG, it is what follows now; where the application had said otherwise, it stays.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from statistics import fmean, linear_regression
from typing import Literal, NamedTuple, TypeAlias

from ..apps import Application, Call, Tool
from ..errors import TraceError
from ..files.fields import MAX_NAME, MAX_SECONDS
from ..format.derive import critical_calls

_Wanted: TypeAlias = float | Literal["fitted"]  # a relative standard deviation, or as in the trace
Spread: TypeAlias = _Wanted | None

ASPECTS = ("arrivals", "tools", "declared", "order")
WITH_SPREAD = ("tools", "declared")  # aspects that take a number
NOTHING = "none"
LARGEST_SPREAD = 10.0
SCHEDULED = 0.01  # gaps whose standard deviation is at most this share of their mean were never drawn from anything
LEAST_S = 0.001  # shorter times are no measurements: they say nothing about relative errors
LONGEST_S = MAX_SECONDS - 1
_TICKS_PER_S = 1e6  # drawn times are whole microseconds: the same with any C library's logarithm


@dataclass(frozen=True, slots=True)
class Variation:
    """What varies between repeats. As text it is what `parse_variation` reads."""

    arrivals: bool = False
    tools: Spread = None
    declared: Spread = None
    order: bool = False

    def __str__(self) -> str:
        said = (_said(aspect, getattr(self, aspect)) for aspect in ASPECTS)
        return ",".join(text for text in said if text) or NOTHING


AS_IT_IS = Variation()
EVERYTHING = Variation(arrivals=True, tools="fitted", declared="fitted", order=True)


def _said(aspect: str, value: bool | Spread) -> str:
    if value is None or value is False:
        return ""
    return aspect if value is True or isinstance(value, str) else f"{aspect}={value!r}"


def parse_variation(text: str) -> Variation:
    """The variation of aspects with commas between them: `arrivals,tools=0.3`; `none` for nothing.

    Raises TraceError, naming the word, if one is unknown, is there twice, or has no number from 0 to 10 after its `=`.
    """
    if text.strip() == NOTHING:
        return AS_IT_IS
    chosen: dict[str, bool | Spread] = {}
    for word in text.split(","):
        aspect, equals, value = word.strip().partition("=")
        if aspect not in ASPECTS:
            near = get_close_matches(aspect[:MAX_NAME], ASPECTS, n=1)
            meant = f" (near: {near[0]})" if near else ""
            raise TraceError(f"vary: unknown {aspect[:MAX_NAME]!r}{meant}: expected {', '.join(ASPECTS)}, or {NOTHING}")
        if aspect in chosen:
            raise TraceError(f"vary: {aspect}: given twice")
        if equals and aspect not in WITH_SPREAD:
            raise TraceError(f"vary: {aspect}: takes no number, got {value[:MAX_NAME]!r}")
        chosen[aspect] = _spread(aspect, value) if equals else "fitted" if aspect in WITH_SPREAD else True
    return Variation(**chosen)  # type: ignore[arg-type]


def _spread(aspect: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LARGEST_SPREAD:
        raise TraceError(f"vary: {aspect}: expected a number from 0 to {LARGEST_SPREAD:g}, got {text[:MAX_NAME]!r}")
    return value


class Repeats:
    """Applications as other days would have them. What these have in common is made once."""

    def __init__(self, applications: Sequence[Application], variation: Variation) -> None:
        self._applications, self._variation = applications, variation
        self._redraw = None if variation.tools is None else _redrawer(applications, variation.tools)
        self._declare = None if variation.declared is None else _declarer(applications, variation.declared)
        redrawn = self._redraw is not None or self._declare is not None
        self._critical = [critical_calls(one.calls) for one in applications] if redrawn else []

    def of(self, seed: int, repeat: int) -> tuple[Application, ...]:
        """The applications of one repeat, in order of arrival.

        What is drawn depends on the trace, `seed` and `repeat` alone, aspect by aspect and call by call: whatever
        policy plays them gets the same, and one aspect more leaves the draws of the others as they were. A call is
        known by its place (which application of the trace, which call of it), so the same trace under other names has
        the same days.
        """
        varied = list(self._with_tools(seed, repeat))
        arrivals_s = [application.arrival_s for application in self._applications]
        if self._variation.arrivals:
            arrivals_s = _arrivals_s(arrivals_s, random.Random(f"{seed} {repeat} arrivals"))
        if self._variation.order:
            random.Random(f"{seed} {repeat} order").shuffle(varied)
        elif self._variation.arrivals:
            varied = _ties_shuffled(varied, arrivals_s, random.Random(f"{seed} {repeat} ties"))
        return tuple(one._replace(arrival_s=at_s) for one, at_s in zip(varied, arrivals_s, strict=True))

    def _with_tools(self, seed: int, repeat: int) -> Sequence[Application]:
        changes: list[tuple[_Change, str]] = []
        if self._redraw is not None:
            changes.append((self._redraw, f"{seed} {repeat} tools"))
        if self._declare is not None:
            changes.append((self._declare, f"{seed} {repeat} declared"))
        if not changes:
            return self._applications
        varied = _with_changed_tools(self._applications, changes)
        return list(map(_with_path, self._applications, varied, self._critical))


def vary(applications: Sequence[Application], variation: Variation, seed: int, repeat: int) -> tuple[Application, ...]:
    """The applications of one repeat: see `Repeats.of`."""
    return Repeats(applications, variation).of(seed, repeat)


def _arrivals_s(observed_s: Sequence[float], rng: random.Random) -> list[float]:
    gaps_s = [later - earlier for earlier, later in pairwise(observed_s)]
    if not gaps_s:
        return list(observed_s)
    mean_s = fmean(gaps_s)
    deviation_s = math.sqrt(fmean((gap_s - mean_s) ** 2 for gap_s in gaps_s))
    if deviation_s > SCHEDULED * mean_s:
        drawn_s = rng.choices(gaps_s, k=len(gaps_s))
    else:
        drawn_s = [rng.expovariate(1.0) * mean_s for _ in gaps_s]
    first_s = observed_s[0]
    return [first_s, *(max(first_s, _ticks(first_s + after_s)) for after_s in accumulate(drawn_s))]


def _ties_shuffled(
    applications: Sequence[Application], arrivals_s: Sequence[float], rng: random.Random
) -> list[Application]:
    """The applications with those that arrive at the same instant in any order."""
    shuffled: list[Application] = []
    for _, tied in groupby(zip(arrivals_s, applications, strict=True), key=itemgetter(0)):
        together = [application for _, application in tied]
        rng.shuffle(together)
        shuffled += together
    return shuffled


# -- tools


class _Measured(NamedTuple):
    """A tool's times, whatever its result."""

    duration_s: float
    declared_s: float | None


_Group: TypeAlias = tuple[str, str, bool]  # the tool's kind, the type of the agent that starts it, whether it declares
_Change: TypeAlias = Callable[[Call, Tool, random.Random], _Measured]


def _group(call: Call, tool: Tool) -> _Group:
    return tool.kind, call.agent_type, tool.declared_s is not None


def _groups(applications: Sequence[Application]) -> dict[_Group, list[_Measured]]:
    """What was measured of the tools of each group, in the order of the trace."""
    groups: dict[_Group, list[_Measured]] = {}
    for call, tool in _all_tools(applications):
        groups.setdefault(_group(call, tool), []).append(_Measured(tool.duration_s, tool.declared_s))
    return groups


def _all_tools(applications: Sequence[Application]) -> Iterator[tuple[Call, Tool]]:
    for application in applications:
        for call in application.calls:
            for tool in call.tools:
                yield call, tool


def _redrawer(applications: Sequence[Application], spread: _Wanted) -> _Change:
    return _redrawn(applications) if spread == "fitted" else _lengthened(spread)


def _redrawn(applications: Sequence[Application]) -> _Change:
    groups = {
        group: measured
        for group, measured in _groups(applications).items()
        if any(one.duration_s != measured[0].duration_s for one in measured)
    }

    def change(call: Call, tool: Tool, rng: random.Random) -> _Measured:
        measured = groups.get(_group(call, tool))
        return rng.choice(measured) if measured else _Measured(tool.duration_s, tool.declared_s)

    return change


def _lengthened(spread: float) -> _Change:
    def change(call: Call, tool: Tool, rng: random.Random) -> _Measured:
        return _Measured(_ticks(tool.duration_s * _factor(spread, rng)), tool.declared_s)

    return change


def _with_changed_tools(
    applications: Sequence[Application], changes: Sequence[tuple[_Change, str]]
) -> list[Application]:
    """Each change, with the name of its draws, of what the one before it has left."""
    return [
        application._replace(
            calls=tuple(
                _with_changed(call, changes, f"{at} {place}") if call.tools else call
                for place, call in enumerate(application.calls)
            ),
        )
        for at, application in enumerate(applications)
    ]


def _with_changed(call: Call, changes: Sequence[tuple[_Change, str]], place: str) -> Call:
    tools: Sequence[Tool] = call.tools
    for change, stream in changes:
        rng = random.Random(f"{stream} {place}")
        changed = [(tool, change(call, tool, rng)) for tool in tools]
        tools = [Tool(tool.kind, now.duration_s, now.declared_s, tool.result_tokens) for tool, now in changed]
    return call._replace(tools=tuple(tools))


# -- declarations


class _Line(NamedTuple):
    """What is declared in a group: log(declared) = intercept + slope * log(true), and how far off each was."""

    slope: float
    intercept: float
    residuals: Sequence[float]


def _declarer(applications: Sequence[Application], spread: _Wanted) -> _Change:
    """What declares anew. The lines are fitted to the trace as it is."""
    if spread != "fitted":
        return _declared_about(spread)
    lines = {group: _fitted(measured) for group, measured in _groups(applications).items() if group[2]}

    def change(call: Call, tool: Tool, rng: random.Random) -> _Measured:
        line = lines.get(_group(call, tool))
        if line is None or not _measurable(tool):
            return _Measured(tool.duration_s, tool.declared_s)
        logarithm = line.intercept + line.slope * math.log(tool.duration_s) + rng.choice(line.residuals)
        return _Measured(tool.duration_s, _ticks(math.exp(logarithm)))

    return change


def _declared_about(spread: float) -> _Change:
    def change(call: Call, tool: Tool, rng: random.Random) -> _Measured:
        if tool.declared_s is None:
            return _Measured(tool.duration_s, None)
        return _Measured(tool.duration_s, _ticks(tool.duration_s * _factor(spread, rng)))

    return change


def _fitted(measured: Sequence[_Measured]) -> _Line | None:
    """The line of a group, or None if there is nothing to fit."""
    points = [
        (math.log(one.duration_s), math.log(one.declared_s))
        for one in measured
        if one.declared_s is not None and one.declared_s >= LEAST_S and one.duration_s >= LEAST_S
    ]
    if not points:
        return None
    true, declared = zip(*points, strict=True)
    slope = linear_regression(true, declared).slope if max(true) > min(true) else 0.0
    slope = min(max(slope, 0.0), 1.0)  # beyond these it is chance, and would go far where a truth is new
    intercept = fmean(declared) - slope * fmean(true)
    return _Line(slope, intercept, [y - intercept - slope * x for x, y in points])


def _measurable(tool: Tool) -> bool:
    return tool.declared_s is not None and tool.declared_s >= LEAST_S and tool.duration_s >= LEAST_S


def _with_path(was: Application, now: Application, before: set[int]) -> Application:
    """`now` with the critical path of what is declared now, at calls where `was` had that of what was declared then.

    `before`: the places of the calls that are on that one.
    """
    if all(one.tools == other.tools for one, other in zip(was.calls, now.calls, strict=True)):
        return now
    after = critical_calls(now.calls)
    if after == before:
        return now
    calls = tuple(
        call._replace(hints=call.hints._replace(critical_path=at in after))
        if call.hints.critical_path == (at in before) != (at in after)
        else call
        for at, call in enumerate(now.calls)
    )
    return now._replace(calls=calls)


def _factor(spread: float, rng: random.Random) -> float:
    """Log-normal, of mean 1 and this standard deviation."""
    variance = math.log1p(spread * spread)
    return rng.lognormvariate(-variance / 2, math.sqrt(variance))


def _ticks(time_s: float) -> float:
    """A time that a trace can hold."""
    return round(min(time_s, LONGEST_S) * _TICKS_PER_S) / _TICKS_PER_S
