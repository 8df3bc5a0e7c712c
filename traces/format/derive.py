"""What the shape of an application says about its calls: the hints that nobody stated.

Nothing here looks at true durations or true output lengths: a hint reaches policies, and must tell them no more than
an application knows beforehand. So the critical path is the path that lasts longest by what is *declared*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from ..apps import Application, Call, CallId, Hints

HintValue: TypeAlias = float | bool | str | None

NOMINAL_TOKEN_S = 0.02  # one answer token, for weighing answers against tools: 50 tokens/s, usual for a served call
UNDECLARED_TOOL_S = 1.0  # what Tokencake assumes of a tool of which it knows nothing
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
    depth = _depths(after)
    before = _followers(after)
    remaining = _remaining_depths(before)
    critical = _critical_path(calls, after)
    reused = _reused(calls, position)
    width = max(Counter(depth).values(), default=0)
    deepest = max(depth, default=0)
    branch = _branches(after, before) if len(calls) > 2 else {}  # a join takes three calls
    return [
        Hints(
            1.0,  # importance
            at in critical,
            remaining[at] <= NEAR_DEPTH,
            calls[branch[at]].id.partition("/")[2] if at in branch else None,
            depth[at],
            remaining[at],
            len(after[at]),
            len(before[at]),
            1.0 / len(after[branch[at]]) if at in branch else 1.0,
            width,
            1.0,  # memory_weight
            at in reused,
            deepest,
        )
        for at in range(len(calls))
    ]


def expected_s(call: Call) -> float:
    """How long a call and its tools take by what is declared of them."""
    answer_s = call.max_output_tokens * NOMINAL_TOKEN_S
    if not call.tools:
        return answer_s
    declared_s = (UNDECLARED_TOOL_S if tool.declared_s is None else tool.declared_s for tool in call.tools)
    return answer_s + max(declared_s)  # tools run side by side


def _depths(after: list[list[int]]) -> list[int]:
    depth: list[int] = []
    for awaited in after:
        depth.append(1 + max([depth[at] for at in awaited]) if awaited else 1)
    return depth


def _followers(after: list[list[int]]) -> list[list[int]]:
    before: list[list[int]] = [[] for _ in after]
    for at, awaited in enumerate(after):
        for earlier in awaited:
            before[earlier].append(at)
    return before


def _remaining_depths(before: list[list[int]]) -> list[int]:
    remaining = [1] * len(before)
    for at in reversed(range(len(before))):
        if before[at]:
            remaining[at] = 1 + max([remaining[later] for later in before[at]])
    return remaining


def _critical_path(calls: Sequence[Call], after: list[list[int]]) -> set[int]:
    """One path that lasts longest by `expected_s`; of equal ones the one whose calls come first."""
    ends_s: list[float] = []
    for call, awaited in zip(calls, after, strict=True):
        begins_s = max([ends_s[at] for at in awaited]) if awaited else 0.0
        ends_s.append(begins_s + expected_s(call))
    path: set[int] = set()
    behind: Sequence[int] = range(len(calls))
    while behind:
        last = max(behind, key=lambda at: (ends_s[at], -at))
        path.add(last)
        behind = after[last]
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
    for at in reversed(range(len(after))):
        joins = [later for later in before[at] if len(after[later]) > 1]
        if joins:
            branch[at] = max(joins, key=lambda later: (len(after[later]), -later))
        elif len(before[at]) == 1 and before[at][0] in branch:
            branch[at] = branch[before[at][0]]
    return branch
