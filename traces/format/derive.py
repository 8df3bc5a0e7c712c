"""What the shape of an application says about its calls: the hints that nobody stated.

Nothing here looks at true durations or true output lengths: a hint reaches policies, and must tell them no more than
an application knows beforehand. So the critical path is the path that lasts longest by what is *declared*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from ..apps import Application, Call, CallId, Hints, Tool

HintValue: TypeAlias = float | bool | str | None

NOMINAL_TOKEN_S = 0.02  # one answer token, for weighing answers against tools: 50 tokens/s, usual for a served call
UNDECLARED_TOOL_S = 1.0  # what Tokencake assumes of a tool of which it knows nothing
LONE = Hints(critical_path=True, near_completion=True)  # of the only call of an application
NEAR_DEPTH = 2  # an application is near its completion in the last two calls of a path


def with_hints(application: Application, stated: Mapping[CallId, Mapping[str, HintValue]] | None = None) -> Application:
    """The application with every hint derived from its DAG, save those that are `stated` for a call by field name.

    Hints that the calls carry already are replaced. Raises `TypeError` for a name that is no hint.
    """
    derived = derive_hints(application.calls)
    said = stated or {}
    calls = (
        call._replace(hints=Hints(**{**hints._asdict(), **said[call.id]}) if call.id in said else hints)
        for call, hints in zip(application.calls, derived, strict=True)
    )
    return application._replace(calls=tuple(calls))


def derive_hints(calls: Sequence[Call]) -> list[Hints]:
    """The hints of each call, in the order of `calls`, in which every call follows all that it waits for."""
    position = {call.id: at for at, call in enumerate(calls)}
    after = [[position[awaited] for awaited in call.after] for call in calls]
    lasting_s = [expected_s(call.max_output_tokens, call.tools) for call in calls]
    names = [call.id.partition("/")[2] for call in calls]
    return [shared_hints(*values) for values in hint_values(after, lasting_s, _reused(calls, position), names)]


@lru_cache(maxsize=1024)
def shared_hints(*values: HintValue) -> Hints:
    """Derived hints, as one object for all applications that are alike: most of a trace's are."""
    return Hints._make(values)


def critical_calls(calls: Sequence[Call]) -> set[int]:
    """The places of the calls on the critical path: those whose derived hint says so."""
    position = {call.id: at for at, call in enumerate(calls)}
    after = [[position[awaited] for awaited in call.after] for call in calls]
    return _critical_path(after, [expected_s(call.max_output_tokens, call.tools) for call in calls])


def expected_s(max_output_tokens: int, tools: Sequence[Tool]) -> float:
    """How long a call and its tools take by what is declared of them."""
    answer_s = max_output_tokens * NOMINAL_TOKEN_S
    if not tools:
        return answer_s
    # Tools run side by side.
    return answer_s + max([UNDECLARED_TOOL_S if tool.declared_s is None else tool.declared_s for tool in tools])


def hint_values(
    after: list[list[int]], lasting_s: list[float], reused: set[int], names: Sequence[str]
) -> list[list[HintValue]]:
    """The values of each call's `Hints`, in the order of its fields.

    Of each call: which ones it waits for, all of them before it; how long it lasts by what is declared; whether its
    context is used again; its name in the application.
    """
    if len(after) == 1:
        return [list(LONE)]
    before = _followers(after)
    depth = _depths(after)
    remaining = _remaining_depths(before)
    critical = _critical_path(after, lasting_s)
    width = max(Counter(depth).values(), default=0)
    deepest = max(depth, default=0)
    branch = _branches(after, before)
    values: list[list[HintValue]] = []
    for at, awaited in enumerate(after):
        join = branch.get(at)
        values.append(
            [
                1.0,  # importance
                at in critical,
                remaining[at] <= NEAR_DEPTH,
                None if join is None else names[join],
                depth[at],
                remaining[at],
                len(awaited),
                len(before[at]),
                1.0 if join is None else 1.0 / len(after[join]),
                width,
                1.0,  # memory_weight
                at in reused,
                deepest,
            ]
        )
    return values


def _depths(after: list[list[int]]) -> list[int]:
    depth: list[int] = []
    for awaited in after:
        if not awaited:
            depth.append(1)
        elif len(awaited) == 1:
            depth.append(1 + depth[awaited[0]])
        else:
            depth.append(1 + max([depth[at] for at in awaited]))
    return depth


def _followers(after: list[list[int]]) -> list[list[int]]:
    before: list[list[int]] = [[] for _ in after]
    for at, awaited in enumerate(after):
        for earlier in awaited:
            before[earlier].append(at)
    return before


def _remaining_depths(before: list[list[int]]) -> list[int]:
    remaining = [1] * len(before)
    for at in range(len(before) - 1, -1, -1):
        followers = before[at]
        if len(followers) == 1:
            remaining[at] = 1 + remaining[followers[0]]
        elif followers:
            remaining[at] = 1 + max([remaining[later] for later in followers])
    return remaining


def _critical_path(after: list[list[int]], lasting_s: list[float]) -> set[int]:
    """One path that lasts longest; of equal ones the one whose calls come first."""
    ends_s: list[float] = []
    for at, awaited in enumerate(after):
        if not awaited:
            begins_s = 0.0
        elif len(awaited) == 1:
            begins_s = ends_s[awaited[0]]
        else:
            begins_s = max([ends_s[earlier] for earlier in awaited])
        ends_s.append(begins_s + lasting_s[at])
    if not ends_s:
        return set()
    last = ends_s.index(max(ends_s))
    path = {last}
    while behind := after[last]:
        last = behind[0] if len(behind) == 1 else max(behind, key=lambda at: (ends_s[at], -at))
        path.add(last)
    return path


def _reused(calls: Sequence[Call], position: Mapping[CallId, int]) -> set[int]:
    """Calls whose context is used again: a later call extends it, or is the next one of the same agent."""
    reused: set[int] = set()
    latest: dict[str, int] = {}
    for at, call in enumerate(calls):
        if call.prompt.extends is not None:
            reused.add(position[call.prompt.extends])
        if call.agent in latest:
            reused.add(latest[call.agent])
        latest[call.agent] = at
    return reused


def _branches(after: list[list[int]], before: list[list[int]]) -> dict[int, int]:
    """For each call on a branch that is joined with others: the joining call (the widest one, then the first).

    A branch goes from the joining call back through calls that wait for one call only and are awaited by one only.
    """
    branch: dict[int, int] = {}
    if max(map(len, after), default=0) < 2:
        return branch
    for at in range(len(after) - 1, -1, -1):
        followers = before[at]
        joins = [later for later in followers if len(after[later]) > 1]
        if joins:
            branch[at] = max(joins, key=lambda later: (len(after[later]), -later))
        elif len(followers) == 1 and followers[0] in branch:
            branch[at] = branch[followers[0]]
    return branch
