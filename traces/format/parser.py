"""One line of a trace as an application: names become ids that are unique in the trace, absent values are derived.

Raises `WrongField`, which knows the place in the line. The reader adds the file and the line's number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush

from ..apps import NO_HINTS, Application, Call, Hints, Prompt, Segment, Tool
from ..files import input_limits as limits
from ..files.fields import MAX_TOKENS, WrongField, flag, items, members, name, number, seconds, shown, text, whole
from .derive import HintValue, derive_hints

MAX_NUMBER = 1e9  # exclusive, of hints

APPLICATION_FIELDS = frozenset({"id", "arrival_s", "calls"})
CALL_FIELDS = frozenset(
    {"id", "agent", "type", "after", "extends", "keep", "prompt", "output", "max_output", "pause_s", "tools", "hints"}
)
TOOL_FIELDS = frozenset({"kind", "duration_s", "declared_s", "result"})


def _any_number(value: object, field: str) -> float:
    return number(value, field, MAX_NUMBER)


def _any_whole(value: object, field: str) -> int:
    return whole(value, field, 0)


def _share(value: object, field: str) -> float:
    if (type(value) is float or type(value) is int) and 0 <= value <= 1:
        return float(value)
    raise WrongField(field, f"expected a number from 0 to 1, got {shown(value)}")


def _text_or_null(value: object, field: str) -> str | None:
    return None if value is None else text(value, field)


HINT_FIELDS: Mapping[str, Callable[[object, str], HintValue]] = {
    "importance": _any_number,
    "critical_path": flag,
    "near_completion": flag,
    "join_group": _text_or_null,
    "depth": _any_whole,
    "remaining_depth": _any_whole,
    "in_degree": _any_whole,
    "out_degree": _any_whole,
    "similarity": _share,
    "fanout_width": _any_whole,
    "memory_weight": _any_number,
    "reusable": flag,
    "max_depth": _any_whole,
}


def parse_application(value: object) -> Application:
    """The application that a line's JSON `value` describes, its calls in an order in which each follows its `after`."""
    fields = members(value, APPLICATION_FIELDS, ("id", "arrival_s", "calls"))
    app = name(fields["id"], "id")
    arrival_s = seconds(fields["arrival_s"], "arrival_s")
    entries = items(fields["calls"], "calls")
    if not 1 <= len(entries) <= limits.CALLS:
        raise WrongField("calls", f"expected 1 to {limits.CALLS} calls, got {len(entries)}")
    try:
        return Application(app, arrival_s, _Calls(app, entries).parse())
    except WrongField as wrong:
        raise wrong.inside("calls") from None


class _Calls:
    """The calls of one application while they are parsed: what is known of those that came before."""

    def __init__(self, app: str, entries: list[object]) -> None:
        self._prefix = f"{app}/"
        self._app = app
        self._entries: list[Mapping[str, object]] = []
        self._place: dict[str, int] = {}  # where the call of that name stands in the file
        self._after: list[list[str]] = []
        for at, entry in enumerate(entries):
            try:
                self._collect(at, entry)
            except WrongField as wrong:
                raise wrong.inside(f"[{at}]") from None
        if (edges := sum(map(len, self._after))) > limits.EDGES:
            raise WrongField("", f"expected at most {limits.EDGES} entries of all `after` together, got {edges}")
        self._order: dict[str, int] = {}  # how many calls were parsed before that one
        self._waits_for: list[
            int
        ] = []  # for each parsed call the set of those that it waits for, direct or not, as bits
        self._latest: dict[str, int] = {}  # each agent's latest call
        self._parsed: list[Call] = []

    def parse(self) -> tuple[Call, ...]:
        stated: dict[int, Mapping[str, HintValue]] = {}
        for place in self._playable_order():
            entry = self._entries[place]
            try:
                self._parsed.append(self._call(entry, self._after[place]))
                if "hints" in entry:
                    stated[len(self._parsed) - 1] = parse_hints(entry["hints"])
            except WrongField as wrong:
                raise wrong.inside(f"[{place}]") from None
        return self._with_hints(stated)

    def _collect(self, at: int, value: object) -> None:
        entry = members(value, CALL_FIELDS, ("id", "output"))
        call = name(entry["id"], "id")
        if call in self._place:
            raise WrongField("id", f"expected another id than that of calls[{self._place[call]}], got {shown(call)}")
        self._place[call] = at
        self._entries.append(entry)
        self._after.append(_awaited(entry["after"]) if "after" in entry else [])

    def _playable_order(self) -> list[int]:
        """The places of the calls, each after all that it waits for; as in the file if that is such an order."""
        place = self._place
        sorted_already = True
        for at, awaited in enumerate(self._after):
            for index, one in enumerate(awaited):
                before = place.get(one)
                if before is None:
                    raise WrongField(f"[{at}].after[{index}]", f"expected a call of this application, got {shown(one)}")
                sorted_already &= before < at
        if sorted_already:
            return list(range(len(self._after)))
        return _topological_order([[place[one] for one in awaited] for awaited in self._after], list(place))

    def _call(self, entry: Mapping[str, object], after: list[str]) -> Call:
        call = str(entry["id"])
        position = len(self._order)
        waits_for = 0
        for awaited in after:
            before = self._order[awaited]
            waits_for |= self._waits_for[before] | 1 << before
        self._waits_for.append(waits_for)
        agent = name(entry["agent"], "agent") if "agent" in entry else call
        self._follow(agent, position, waits_for)
        prompt = self._prompt(entry, waits_for)
        output_tokens = whole(entry["output"], "output", 1, limits.ANSWER_TOKENS)
        self._order[call] = position
        prefix = self._prefix
        return Call(
            prefix + call,
            self._app,
            prefix + agent,
            text(entry["type"], "type") if "type" in entry else agent,
            prompt,
            output_tokens,
            whole(entry["max_output"], "max_output", output_tokens) if "max_output" in entry else output_tokens,
            tuple([prefix + awaited for awaited in after]),
            seconds(entry["pause_s"], "pause_s") if "pause_s" in entry else 0.0,
            _tools(entry["tools"]) if "tools" in entry else (),
            NO_HINTS,
        )

    def _follow(self, agent: str, position: int, waits_for: int) -> None:
        """Refuses a call that could run beside an earlier one of its agent: an agent has one context."""
        latest = self._latest.get(agent)
        if latest is not None and not waits_for >> latest & 1:
            other = self._local(self._parsed[latest].id)
            raise WrongField(
                "after",
                f"expected to wait, directly or not, for {shown(other)}, an earlier call of agent {shown(agent)}",
            )
        self._latest[agent] = position

    def _prompt(self, entry: Mapping[str, object], waits_for: int) -> Prompt:
        extends, keep_tokens = self._extends(entry, waits_for)
        tokens = keep_tokens
        segments = []
        if "prompt" in entry:
            parts = items(entry["prompt"], "prompt")
            if len(parts) > limits.SEGMENTS:
                raise WrongField("prompt", f"expected at most {limits.SEGMENTS} segments, got {len(parts)}")
            for index, part in enumerate(parts):
                try:
                    segment = self._segment(part, waits_for)
                except WrongField as wrong:
                    raise wrong.inside(f"prompt[{index}]") from None
                tokens += segment.tokens
                if segment.tokens:
                    segments.append(segment)
        if not 1 <= tokens <= MAX_TOKENS:
            raise WrongField("prompt", f"expected 1 to {MAX_TOKENS} tokens in all, got {tokens}")
        return Prompt(tuple(segments), extends, keep_tokens, tokens)

    def _extends(self, entry: Mapping[str, object], waits_for: int) -> tuple[str | None, int]:
        if "extends" not in entry:
            if "keep" in entry:
                raise WrongField("keep", 'expected "extends" beside it')
            return None, 0
        extended = name(entry["extends"], "extends")
        at = self._order.get(extended)
        if at is None or not waits_for >> at & 1:
            raise WrongField("extends", f"expected a call that this one waits for, got {shown(extended)}")
        call = self._parsed[at]
        context_tokens = call.prompt.tokens + call.output_tokens
        keep_tokens = whole(entry["keep"], "keep", 1, context_tokens) if "keep" in entry else context_tokens
        return call.id, keep_tokens

    def _segment(self, part: object, waits_for: int) -> Segment:
        if type(part) is not list or not 2 <= len(part) <= 3:
            raise WrongField("", f"expected [source, tokens] or [source, start, tokens], got {shown(part)}")
        source = text(part[0], "[0]")
        start = whole(part[1], "[1]", 0) if len(part) == 3 else 0
        tokens = whole(part[-1], "[2]" if len(part) == 3 else "[1]", 0, MAX_TOKENS - start)
        if source[0] == "/":
            return Segment(source, start, tokens)
        if source in self._place:
            self._check_answer(source, start + tokens, waits_for)
        return Segment(self._prefix + source, start, tokens)

    def _check_answer(self, call: str, end: int, waits_for: int) -> None:
        at = self._order.get(call)
        if at is None or not waits_for >> at & 1:
            raise WrongField("[0]", f"expected the answer of a call that this one waits for, got {shown(call)}")
        output_tokens = self._parsed[at].output_tokens
        if end > output_tokens:
            raise WrongField("", f"expected at most the {output_tokens} tokens that {shown(call)} answers, got {end}")

    def _with_hints(self, stated: Mapping[int, Mapping[str, HintValue]]) -> tuple[Call, ...]:
        derived = derive_hints(self._parsed)
        for at, values in stated.items():
            derived[at] = derived[at]._replace(**values)  # type: ignore[arg-type]
        return tuple([_hinted(call, hints) for call, hints in zip(self._parsed, derived, strict=True)])

    def _local(self, call: str) -> str:
        return call[len(self._prefix) :]


def _hinted(call: Call, hints: Hints) -> Call:
    return Call(
        call.id,
        call.app,
        call.agent,
        call.agent_type,
        call.prompt,
        call.output_tokens,
        call.max_output_tokens,
        call.after,
        call.pause_s,
        call.tools,
        hints,
    )


def _awaited(value: object) -> list[str]:
    awaited: dict[str, None] = {}  # in the order of the file
    for index, one in enumerate(items(value, "after")):
        call = name(one, f"after[{index}]")
        if call in awaited:
            raise WrongField(f"after[{index}]", f"expected each call once, got {shown(call)} again")
        awaited[call] = None
    return list(awaited)


def _tools(value: object) -> tuple[Tool, ...]:
    tools = []
    for index, entry in enumerate(items(value, "tools")):
        try:
            tools.append(_tool(entry))
        except WrongField as wrong:
            raise wrong.inside(f"tools[{index}]") from None
    return tuple(tools)


def _tool(value: object) -> Tool:
    entry = members(value, TOOL_FIELDS, ("kind", "duration_s"))
    return Tool(
        text(entry["kind"], "kind"),
        seconds(entry["duration_s"], "duration_s"),
        seconds(entry["declared_s"], "declared_s") if "declared_s" in entry else None,
        whole(entry["result"], "result", 0) if "result" in entry else 0,
    )


def parse_hints(value: object) -> dict[str, HintValue]:
    try:
        fields = members(value, HINT_FIELDS.keys())
        return {field: HINT_FIELDS[field](stated, field) for field, stated in fields.items()}
    except WrongField as wrong:
        raise wrong.inside("hints") from None


def _topological_order(after: list[list[int]], names: list[str]) -> list[int]:
    """Places of calls, each after those that it waits for; among calls that are ready the first in the file is next."""
    missing = [len(awaited) for awaited in after]
    followers: list[list[int]] = [[] for _ in after]
    for at, awaited in enumerate(after):
        for before in awaited:
            followers[before].append(at)
    ready = [at for at, count in enumerate(missing) if not count]
    heapify(ready)
    order = []
    while ready:
        at = heappop(ready)
        order.append(at)
        for later in followers[at]:
            missing[later] -= 1
            if not missing[later]:
                heappush(ready, later)
    if len(order) < len(after):
        raise WrongField("", f"expected no cycle, but {_cycle(after, missing, names)}")
    return order


def _cycle(after: list[list[int]], missing: list[int], names: list[str]) -> str:
    """Tells one cycle among the calls that still miss something. Every one of those waits for another one of them."""
    at = next(place for place, count in enumerate(missing) if count)
    walk: list[int] = []
    while at not in walk:
        walk.append(at)
        at = next(before for before in after[at] if missing[before])
    cycle = [*walk[walk.index(at) :], at]
    told = [shown(names[place]) for place in cycle]
    if len(told) > 8:
        told = [*told[:6], "…", told[-1]]
    return " waits for ".join(told)
