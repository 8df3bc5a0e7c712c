"""The calls of one application, read from a line in which nothing is wrong or rare: see `application_line`.

Each check says no more than that `parser` has to look. A field that is null is none, so a call whose known fields are
fewer than its fields is unusual, whichever they are. What was not checked yet is `Any`: where it were an `int`, the
compiled module would take `true` for 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..apps import Application, Call, CallId, Hints, Prompt, Segment, Tool
from ..files import input_limits as limits
from ..files.fields import MAX_NAME, MAX_TOKENS, name, seconds, text
from .derive import LONE, HintValue, expected_s, hint_values, shared_hints
from .parser import HINT_FIELDS

_tuple = tuple.__new__  # of a named tuple: half the time of its own constructor
_NO_SEGMENTS: tuple[Segment, ...] = ()
_NO_TOOLS: tuple[Tool, ...] = ()


def _known(place: int, field: str) -> tuple[int, type | None, int, Callable[[object, str], HintValue]]:
    """Of a hint: its place in `Hints`; a type of which each value from 0 up to the next one is right; its check."""
    kind: type = type(Hints._field_defaults[field])
    if kind is int:
        return place, kind, MAX_TOKENS, HINT_FIELDS[field]
    return place, kind if kind in (bool, float) else None, 1, HINT_FIELDS[field]


_HINTS = {field: _known(place, field) for place, field in enumerate(Hints._fields)}


class Unusual(Exception):
    """`parser` has to look at it."""


class WellFormedCalls:
    """What is known of the calls that stand before the one that is being read. Texts are remembered in `texts`."""

    __slots__ = (
        "_after",
        "_agents",
        "_app",
        "_context_tokens",
        "_found",
        "_ids",
        "_lasting_s",
        "_latest",
        "_order",
        "_output_tokens",
        "_prefix",
        "_read",
        "_reused",
        "_sources",
        "_stated",
        "_texts",
        "_waits_for",
        "fields",
    )

    def __init__(self, texts: dict[str, str]) -> None:
        self.fields = 0  # of all objects
        self._found = 0  # fields of the call that is being read
        self._texts = texts
        self._app = self._prefix = ""
        self._order: dict[str, int] = {}  # of each call's name in the application: how many were read before it
        self._agents: dict[str, str] = {}  # their ids by their names
        self._latest: dict[str, int] = {}  # each agent's latest call
        self._sources: dict[str, str] = {}  # those that are no answers, by their names
        self._reused: set[int] = set()  # calls whose contexts are used again
        self._stated: list[tuple[int, dict[str, Any]]] = []  # hints of calls
        # Of each call:
        self._ids: list[CallId] = []
        self._after: list[list[int]] = []
        self._waits_for: list[int] = []  # the set of those that it waits for, direct or not, as bits
        self._context_tokens: list[int] = []
        self._output_tokens: list[int] = []
        self._lasting_s: list[float] = []  # by what is declared
        self._read: list[tuple[object, ...]] = []  # all but its hints

    def application(self, value: Any) -> Application:
        """The application of a line's JSON. Raises `Unusual`, or what Python raises for other types than expected."""
        if type(value) is not dict or len(value) != 3:
            raise Unusual
        self.fields = 3
        self._app = name(value["id"], "id")
        self._prefix = f"{self._app}/"
        arrival_s = seconds(value["arrival_s"], "arrival_s")
        entries = value["calls"]
        if type(entries) is not list or not 1 <= len(entries) <= limits.CALLS:
            raise Unusual
        for entry in entries:
            self._call(entry)
        if sum(map(len, self._after)) > limits.EDGES:
            raise Unusual
        return _tuple(Application, (self._app, arrival_s, self._with_hints()))

    def _with_hints(self) -> tuple[Call, ...]:
        if len(self._read) == 1 and not self._stated:
            return (_tuple(Call, (*self._read[0], LONE)),)
        values = hint_values(self._after, self._lasting_s, self._reused, list(self._order))
        hints = [shared_hints(*derived) for derived in values]
        for at, stated in self._stated:
            _state(values[at], stated)
            hints[at] = _tuple(Hints, values[at])
        return tuple([_tuple(Call, (*read, hint)) for read, hint in zip(self._read, hints, strict=True)])

    def _call(self, entry: Any) -> None:
        call = entry["id"]
        if type(call) is not str or not 0 < len(call) <= MAX_NAME or not call.isprintable() or "/" in call:
            raise Unusual
        if call in self._order or call in self._sources:
            raise Unusual
        self._found = 2
        call_id = self._prefix + call
        after, waits_for = self._awaited(entry)
        agent = call
        if (stated := entry.get("agent")) is not None:
            self._found += 1
            agent = stated
        agent_id = self._agent(agent, call_id if agent == call else None, waits_for)
        agent_type = agent
        if (stated := entry.get("type")) is not None:
            self._found += 1
            agent_type = self._texts.get(stated) or self._text(stated)
        prompt = self._prompt(entry, call, waits_for)
        output_tokens, most_tokens = self._answer(entry)
        pause_s = 0.0
        if (stated := entry.get("pause_s")) is not None:
            self._found += 1
            pause_s = seconds(stated, "pause_s")
        tools = self._tools(entry)
        self._state(entry)
        if self._found != len(entry):
            raise Unusual
        self.fields += self._found
        after_ids = tuple([self._ids[at] for at in after])
        self._order[call] = len(self._ids)
        self._ids.append(call_id)
        self._after.append(after)
        self._waits_for.append(waits_for)
        self._context_tokens.append(prompt.tokens + output_tokens)
        self._output_tokens.append(output_tokens)
        self._lasting_s.append(expected_s(most_tokens, tools))
        self._read.append(
            (call_id, self._app, agent_id, agent_type, prompt, output_tokens, most_tokens, after_ids, pause_s, tools)
        )

    def _awaited(self, entry: Any) -> tuple[list[int], int]:
        """The calls of `after`, and the set of all that are waited for."""
        if (names := entry.get("after")) is None:
            return [], 0
        if type(names) is not list:
            raise Unusual
        self._found += 1
        after = [self._order[one] for one in names]
        if len(after) > 1 and len(set(after)) < len(after):
            raise Unusual
        waits_for = 0
        for at in after:
            waits_for |= self._waits_for[at] | 1 << at
        return after, waits_for

    def _agent(self, agent: str, known_id: str | None, waits_for: int) -> str:
        """An agent's id. Its calls follow each other."""
        latest = self._latest.get(agent)
        self._latest[agent] = len(self._ids)
        if latest is None:
            found = self._agents[agent] = known_id or self._prefix + name(agent, "agent")
            return found
        if not waits_for >> latest & 1:
            raise Unusual
        self._reused.add(latest)
        return self._agents[agent]

    def _prompt(self, entry: Any, call: str, waits_for: int) -> Prompt:
        extends = None
        kept_tokens = 0
        if (extended := entry.get("extends")) is not None:
            self._found += 1
            at = self._order[extended]
            if not waits_for >> at & 1:
                raise Unusual
            self._reused.add(at)
            extends = self._ids[at]
            kept_tokens = self._context_tokens[at]
            if (keep := entry.get("keep")) is not None:
                self._found += 1
                if type(keep) is not int or not 1 <= keep <= kept_tokens:
                    raise Unusual
                kept_tokens = keep
        segments = _NO_SEGMENTS
        tokens = kept_tokens
        if (parts := entry.get("prompt")) is not None:
            self._found += 1
            segments, new_tokens = self._segments(parts, call, waits_for)
            tokens += new_tokens
        if not 1 <= tokens <= MAX_TOKENS:
            raise Unusual
        return _tuple(Prompt, (segments, extends, kept_tokens, tokens))

    def _segments(self, parts: Any, call: str, waits_for: int) -> tuple[tuple[Segment, ...], int]:
        """The segments that are not empty, and how many tokens they have together."""
        if type(parts) is not list or len(parts) > limits.SEGMENTS:
            raise Unusual
        sources = self._sources
        segments: list[Segment] = []
        sum_tokens = 0
        for part in parts:
            if type(part) is not list:
                raise Unusual
            start: Any = 0
            if len(part) == 2:
                source, tokens = part
            else:
                source, start, tokens = part
                if type(start) is not int or not 0 <= start <= MAX_TOKENS:
                    raise Unusual
            if type(tokens) is not int or not 0 <= tokens <= MAX_TOKENS - start:
                raise Unusual
            source_id = sources.get(source) or self._source(source, start + tokens, call, waits_for)
            if tokens:
                sum_tokens += tokens
                segments.append(_tuple(Segment, (source_id, start, tokens)))
        return tuple(segments), sum_tokens

    def _source(self, source: str, end: int, call: str, waits_for: int) -> str:
        """The id of an answer, of which tokens before `end` are cited, or of a source that comes for the first time."""
        at = self._order.get(source)
        if at is not None:
            if not waits_for >> at & 1 or end > self._output_tokens[at]:
                raise Unusual
            return self._ids[at]
        if source == call:
            raise Unusual
        source = self._text(source)
        found = self._sources[source] = source if source[0] == "/" else self._prefix + source
        return found

    def _answer(self, entry: Any) -> tuple[int, int]:
        tokens = entry["output"]
        if type(tokens) is not int or not 1 <= tokens <= limits.ANSWER_TOKENS:
            raise Unusual
        if (most := entry.get("max_output")) is None:
            return tokens, tokens
        self._found += 1
        if type(most) is not int or not tokens <= most <= MAX_TOKENS:
            raise Unusual
        return tokens, most

    def _tools(self, entry: Any) -> tuple[Tool, ...]:
        if (entries := entry.get("tools")) is None:
            return _NO_TOOLS
        if type(entries) is not list:
            raise Unusual
        self._found += 1
        return tuple([self._tool(tool) for tool in entries])

    def _tool(self, entry: Any) -> Tool:
        kind = entry["kind"]
        kind = self._texts.get(kind) or self._text(kind)
        duration_s = seconds(entry["duration_s"], "duration_s")
        found = 2
        declared_s = None
        if (declared := entry.get("declared_s")) is not None:
            found += 1
            declared_s = seconds(declared, "declared_s")
        result_tokens = 0
        if (result := entry.get("result")) is not None:
            found += 1
            if type(result) is not int or not 0 <= result <= MAX_TOKENS:
                raise Unusual
            result_tokens = result
        if found != len(entry):
            raise Unusual
        self.fields += found
        return _tuple(Tool, (kind, duration_s, declared_s, result_tokens))

    def _state(self, entry: Any) -> None:
        if (stated := entry.get("hints")) is not None:
            if type(stated) is not dict:
                raise Unusual
            self._found += 1
            self.fields += len(stated)
            self._stated.append((len(self._ids), stated))

    def _text(self, value: Any) -> str:
        """A text that comes for the first time."""
        return self._texts.setdefault(text(value, ""), value)


def _state(values: list[HintValue], stated: dict[str, Any]) -> None:
    kind: Any
    for field, value in stated.items():
        place, kind, most, check = _HINTS[field]
        values[place] = value if type(value) is kind and 0 <= value <= most else check(value, field)
