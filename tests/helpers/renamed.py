"""The same workload under other names: of applications, calls, agents and their types, tools, join groups, content."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from tokencake.traces.apps import AgentId, AppId, Application, Call, CallId, Prompt, Segment, Tool

Others = Callable[[Sequence[str]], Sequence[str]]  # other names for these, in their order; no two are the same


def backwards(names: Sequence[str]) -> list[str]:
    """Names whose order as text is the reverse of the order of these."""
    rank = {name: at for at, name in enumerate(sorted(names))}
    return [f"n{len(names) - rank[name]:06}" for name in names]


def at_random(seed: int) -> Others:
    """Names in no order, of different lengths."""
    rng = random.Random(seed)

    def others(names: Sequence[str]) -> list[str]:
        numbers = rng.sample(range(10 * len(names)), len(names))
        return [rng.choice("aZ_é9") * rng.randint(1, 3) + str(number) for number in numbers]

    return others


class Names:
    """Other names for all that has one in these applications: each the same wherever it stands.

    Ids stay `application/name`, and the answer of a call stays the content that is called like it: that is what
    they mean. Content that applications share stays shared.
    """

    def __init__(self, applications: Iterable[Application], others: Others) -> None:
        calls = [call for application in applications for call in application.calls]
        apps = dict.fromkeys(application.id for application in applications)
        sources = [segment.source for call in calls for segment in call.prompt.segments]
        locals_ = [call.id for call in calls] + [call.agent for call in calls] + sources
        self._of: dict[str, str] = {}
        self._local: dict[str, str] = {}
        self._add(self._of, [*apps], others)
        self._add(self._local, [_local(name) for name in locals_], others)
        self._groups = self._added([call.hints.join_group for call in calls], others)
        self._types = self._added([call.agent_type for call in calls], others)
        self._kinds = self._added([tool.kind for call in calls for tool in call.tools], others)

    def of_all(self, applications: Iterable[Application]) -> tuple[Application, ...]:
        """The applications under their other names."""
        return tuple(one._replace(id=self._of[one.id], calls=tuple(map(self._call, one.calls))) for one in applications)

    def app(self, name: AppId) -> AppId:
        return self._of[name]

    def id(self, name: CallId | AgentId) -> str:
        """Of a call, an agent or content."""
        app, _, _ = name.partition("/")
        return f"{self._of[app] if app else ''}/{self._local[_local(name)]}"

    def record(self, record: Any) -> Any:
        """A fact, or what was asked or planned, under the other names."""
        return _mapped(record, self._said)

    def _said(self, field: str, value: Any) -> Any:
        if value is None:
            return None
        if field == "app":
            return self.app(value)
        if field in ("call", "agent", "id"):
            return self.id(value)
        if field == "agent_type":
            return self._types[value]
        if field == "kind":
            return self._kinds[value]
        if field == "join_group":
            return self._groups[value]
        assert field == "write_through", f"{field}: {value!r}"  # no name
        return value

    def _call(self, call: Call) -> Call:
        group = call.hints.join_group
        return call._replace(
            id=self.id(call.id),
            app=self.app(call.app),
            agent=self.id(call.agent),
            agent_type=self._types[call.agent_type],
            prompt=self._prompt(call.prompt),
            after=tuple(map(self.id, call.after)),
            tools=tuple(Tool(self._kinds[t.kind], t.duration_s, t.declared_s, t.result_tokens) for t in call.tools),
            hints=call.hints._replace(join_group=None if group is None else self._groups[group]),
        )

    def _prompt(self, prompt: Prompt) -> Prompt:
        segments = tuple(Segment(self.id(one.source), one.start, one.tokens) for one in prompt.segments)
        extends = None if prompt.extends is None else self.id(prompt.extends)
        return prompt._replace(segments=segments, extends=extends)

    @staticmethod
    def _add(into: dict[str, str], names: Iterable[str], others: Others) -> None:
        each = [*dict.fromkeys(names)]
        into.update(zip(each, others(each), strict=True))

    def _added(self, names: Iterable[str | None], others: Others) -> dict[str, str]:
        into: dict[str, str] = {}
        self._add(into, [name for name in names if name is not None], others)
        return into


def _local(name: str) -> str:
    return name.partition("/")[2]


def _mapped(value: Any, said: Callable[[str, Any], Any], field: str = "") -> Any:
    """A record with every text in it replaced; `field` is where it stands. Plans name calls and agents."""
    if isinstance(value, str):
        return said({"admit": "call", "preempt": "call", **dict.fromkeys(_OF_AGENTS, "agent")}.get(field, field), value)
    if isinstance(value, dict):
        if field == "pin":
            return {said("agent", name): until_s for name, until_s in value.items()}
        return {name: _mapped(one, said, name) for name, one in value.items()}
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            named = ((name, getattr(value, name)) for name in value._fields)
            return type(value)(*(_mapped(one, said, name) for name, one in named))
        return tuple(_mapped(one, said, field) for one in value)
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{n: _mapped(getattr(value, n), said, n) for n in value.__dataclass_fields__})
    return value


_OF_AGENTS = ("evict", "cancel", "forget")
