"""Recorded coding-agent conversations: JSON with a request for every model call.

Format: https://github.com/callanjfox/kv-cache-tester. One conversation becomes one application, whose waits, tools and
pauses follow from the recorded times, see `recorded_session`:

- `t` is when a request began, in seconds, and `api_time` how long it took. Where that is absent, `think_time` of the
  next request says when it ended; where that is absent too, nothing does, and the pause behind it is too long by that.
- `hash_ids` name the full blocks of a prompt; what follows the last full block has no id and is taken for content that
  no other prompt holds: at most one block a call is shared more than is said. `hash_id_scope` says whether equal ids of
  different conversations are equal content (`global`) or not (`local`, which is assumed where it is absent: ids are
  then shared by less than they might be).
- Answers come back tokenised anew in the next prompt's blocks, so no prompt refers to them.
- A `subagent` entry is an agent of its own. Its `t` is when it ended, its requests count from its own start, which
  is `duration_ms` before; in later recordings `t` is when it began, and its requests count as all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, pairwise

from ..apps import Application, Call, Prompt, Tool
from ..errors import TraceError
from ..files.fields import MAX_SECONDS, WrongField
from ..files.input_limits import CALLS
from ..format.derive import with_hints
from .block_ids import MAX_ID, Blocks, common_blocks, covers
from .conversion import Conversion, FieldLists, answer_tokens, known_entries
from .fidelity import Served
from .foreign import Entry
from .recorded_session import RecordedRequest, Thread, plan, settle
from .recorded_times import EPOCH_S, UNITS, epoch_unit

FAILED = frozenset({"error", "failed", "cancelled", "canceled", "aborted", "timeout"})  # values of `stop`
MODELS = 100  # as many are told apart
MAX_DEPTH = 16  # of sub-agents in sub-agents
LONGEST_AGENT = 150  # characters of an agent's id: calls have longer names

CONVERSATION = FieldLists(
    frozenset({"id", "block_size", "hash_id_scope", "requests"}),
    frozenset({"models", "tool_tokens", "system_tokens", "totals"}),
)
REQUEST = FieldLists(
    frozenset({"t", "type", "in", "out", "hash_ids", "input_types", "stop", "api_time", "think_time"}),
    frozenset({"model", "output_types", "ttft"}),
)
SUBAGENT = FieldLists(
    frozenset({"t", "type", "agent_id", "subagent_type", "duration_ms", "status", "requests"}),
    frozenset({"models", "tool_tokens", "system_tokens", "total_tokens", "tool_use_count"}),
)


def from_agentic_coding(entries: Iterable[Entry], conversion: Conversion) -> Iterator[Application]:
    """One application a conversation, all arriving at 0. Holds one at a time. Raises TraceError, naming the field."""
    seen: dict[str, str] = {}
    shared: dict[int, int] = {}  # the numbers of hashes that belong to all conversations
    known = known_entries(entries, "agentic-coding", conversion, lambda entry: _look_at(entry, conversion))
    for conversation in known:
        app = conversation.name("id")
        if app in seen:
            conversation.refuse("id", f"another id than that of {seen[app]}")
        seen[app] = conversation.where
        read = _Conversation(conversation, app, conversion, shared)
        if (application := read.application()) is not None:
            conversion.fidelity.add(application, read.served())
            yield application


def _look_at(conversation: Entry, conversion: Conversion) -> None:
    """Looks for fields that are not known, at every level."""
    conversion.look_at(conversation, CONVERSATION)
    if conversation.has("requests"):
        _look_at_requests(conversation, conversion, 0)


def _look_at_requests(owner: Entry, conversion: Conversion, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TraceError(f"{owner.where}: expected sub-agents nested at most {MAX_DEPTH} deep")
    for entry in owner.entries("requests"):
        if entry.values.get("type") == "subagent":
            conversion.look_at(entry, SUBAGENT)
            if entry.has("requests"):
                _look_at_requests(entry, conversion, depth + 1)
        else:
            conversion.look_at(entry, REQUEST)


class _Conversation:
    """One conversation, read and turned into calls."""

    def __init__(self, entry: Entry, app: str, conversion: Conversion, shared: dict[int, int]) -> None:
        self._entry = entry
        self._app = app
        self._conversion = conversion
        self._blocks = self._blocks_of(entry, shared)
        self._unit = conversion.options.time_unit or "s"
        self._agents = {"main"}
        self._positions = count()
        self._ordered: list[RecordedRequest] = []

    def application(self) -> Application | None:
        """The calls in an order in which each follows all that it waits for; None if there is no request to play."""
        self._assume_times()
        main = Thread(next(self._positions), "main", "main")
        self._read(self._entry, main)
        requests = list(main.all_requests())
        if not requests:
            self._conversion.bad(
                "conversations without requests", self._entry, "requests", "at least one request", keep=False
            )
            return None
        if len(requests) > CALLS:
            raise TraceError(f"{self._entry.where}: expected at most {CALLS} requests, got {len(requests)}")
        settle(main)
        try:
            self._ordered = plan(main, self._agents)
            calls = [self._call(request) for request in self._ordered]
        except WrongField as wrong:
            raise TraceError(f"{self._entry.place(wrong.field)}: {wrong.reason}") from None
        return with_hints(Application(self._app, 0.0, tuple(calls)))

    def served(self) -> dict[str, Served]:
        """When each call was served in the recording, counted from the first."""
        first_us = min(request.start_us for request in self._ordered)
        return {
            f"{self._app}/{one.call}": Served(
                (one.start_us - first_us) / 1e6, (one.start_us + one.service_us - first_us) / 1e6, one.service_us / 1e6
            )
            for one in self._ordered
        }

    def _blocks_of(self, entry: Entry, shared: dict[int, int]) -> Blocks:
        asked = self._conversion.options.block_tokens
        block_tokens = asked if asked is not None and not entry.has("block_size") else entry.whole("block_size", low=1)
        if asked not in (None, block_tokens):
            entry.refuse("block_size", f"{asked}, which --block-tokens says")
        said = "stated" if entry.has("block_size") else "as asked"
        self._conversion.assume(f"blocks are {block_tokens} tokens ({said})")
        scope = entry.values.get("hash_id_scope")
        if scope not in (None, "local", "global"):
            entry.refuse("hash_id_scope", '"local" or "global"')
        if scope == "global":
            self._conversion.assume("equal ids of different conversations are equal content (hash_id_scope global)")
            return Blocks(f"/blocks-of-{block_tokens}", block_tokens, shared)
        why = "hash_id_scope local" if scope else "no hash_id_scope: taken for local"
        self._conversion.assume(f"equal ids of different conversations are different content ({why})")
        return Blocks(f"{self._app}/blocks", block_tokens)

    def _assume_times(self) -> None:
        said = "as asked" if self._conversion.options.time_unit else "as documented"
        self._conversion.assume(f"times are {self._unit} ({said}), and count from each conversation's first request")

    # the recording

    def _read(self, owner: Entry, thread: Thread) -> None:
        """Reads the requests of a thread and, inside it, those of its sub-agents. Times count as they do there."""
        thinks: dict[int, int] = {}  # by position, what passed between the previous answer and a request
        for entry in owner.entries("requests"):
            kind = entry.name("type")
            if kind == "subagent":
                self._read_subagent(entry, thread)
            elif kind in ("n", "s"):
                self._read_request(entry, thread, thinks)
            else:
                entry.refuse("type", '"n", "s" or "subagent"')
        _end_by_thinking(thread.requests, thinks)
        if thread.requests and not any(request.start_us % 1_000_000 for request in thread.requests):
            thread.resolution_us = 1_000_000

    def _read_subagent(self, entry: Entry, parent: Thread) -> None:
        agent = entry.name("agent_id")
        if agent in self._agents:
            entry.refuse("agent_id", "an agent that did not occur before")
        if len(agent) > LONGEST_AGENT:
            entry.refuse("agent_id", f"at most {LONGEST_AGENT} characters")
        self._agents.add(agent)
        thread = Thread(next(self._positions), agent, entry.name("subagent_type"))
        self._read(entry, thread)
        if any(thread.all_requests()):
            self._place(entry, thread)
            parent.threads.append(thread)
        else:
            self._conversion.bad("sub-agents without requests", entry, "requests", "at least one request", keep=False)

    def _place(self, entry: Entry, thread: Thread) -> None:
        """When a sub-agent began and ended, and its requests in the times of its parent's.

        `t` is when it ended, and its requests count from its own start; or it is when it began, and they count as the
        parent's do, which can be told: no request begins before its sub-agent, and none after it. A sub-agent that was
        started and not waited for (`async_launched`) has neither end nor length, so `t` is when it began.
        """
        t_us = self._us(entry, "t")
        begin_us = min(request.start_us for request in thread.all_requests())
        last_us = max(request.end_us for request in thread.all_requests())
        lasted_us = None
        if entry.has("duration_ms"):
            lasted_us = round(entry.number("duration_ms", high=MAX_SECONDS * 1e3) * 1e3)
        as_parents = begin_us >= t_us or 0 < begin_us >= t_us - thread.resolution_us
        launched = entry.values.get("status") == "async_launched"
        if as_parents or launched:
            self._conversion.assume("t of sub-agents is when they began, where their requests or status say so")
        else:
            self._conversion.assume("t of sub-agents is when they ended, and their requests count from their start")
        if as_parents:
            thread.start_us = min(t_us, begin_us)
            thread.end_us = last_us if lasted_us is None else t_us + lasted_us
        elif begin_us >= EPOCH_S.start * 1_000_000:  # since 1970, as the parent's
            thread.start_us = t_us if launched else t_us - (last_us - begin_us if lasted_us is None else lasted_us)
            thread.end_us = last_us if launched else t_us
        else:
            lasted_us = last_us if lasted_us is None else lasted_us
            thread.start_us = t_us if launched else t_us - lasted_us
            thread.end_us = thread.start_us + lasted_us
            _shift_requests(thread, thread.start_us)

    def _read_request(self, entry: Entry, thread: Thread, thinks: dict[int, int]) -> None:
        self._conversion.rows += 1
        start_us = self._us(entry, "t")
        service_us = self._us(entry, "api_time") if entry.has("api_time") else 0
        stop = entry.values.get("stop")
        failed = isinstance(stop, str) and stop in FAILED
        output_tokens = answer_tokens(self._conversion, entry, "in", "out", "stop" if failed else None)
        if output_tokens is None:
            return
        tokens, block_tokens = entry.whole("in", low=1), self._blocks.block_tokens
        ids = entry.ids("hash_ids", MAX_ID)
        if not covers(ids, tokens, block_tokens):
            entry.refuse("hash_ids", f"an id for each {block_tokens} of the {tokens} tokens")
        if isinstance(model := entry.values.get("model"), str) and len(self._conversion.models) < MODELS:
            self._conversion.models.add(model)
        request = RecordedRequest(
            position=next(self._positions),
            start_us=start_us,
            end_us=start_us + service_us,
            service_us=service_us,
            tokens=tokens,
            output_tokens=output_tokens,
            ids=ids,
            brings_tool_result="tool_result" in entry.texts("input_types"),
        )
        thread.requests.append(request)
        if entry.has("think_time"):
            thinks[request.position] = self._us(entry, "think_time")

    def _us(self, entry: Entry, field: str) -> int:
        """A time in whole microseconds."""
        per_s = UNITS[self._unit]
        value = entry.values.get(field)
        if type(value) in (int, float) and value >= EPOCH_S.stop * per_s and (guess := epoch_unit(value)):  # type: ignore[operator, arg-type]
            entry.refuse(field, f"a time in {self._unit} (--time-unit {guess} says otherwise)")
        return round(entry.number(field, high=EPOCH_S.stop * per_s) * 1e6 / per_s)

    # the application

    def _call(self, request: RecordedRequest) -> Call:
        tools: tuple[Tool, ...] = ()
        if request.tool_us is not None:
            tools = (Tool("tool", request.tool_us / 1e6, result_tokens=request.tool_result_tokens),)
        return Call(
            id=f"{self._app}/{request.call}",
            app=self._app,
            agent=f"{self._app}/{request.agent}",
            agent_type=request.agent_type,
            prompt=self._prompt(request),
            output_tokens=request.output_tokens,
            max_output_tokens=request.output_tokens,
            after=tuple(f"{self._app}/{before.call}" for before in request.after),
            pause_s=request.pause_us / 1e6,
            tools=tools,
        )

    def _prompt(self, request: RecordedRequest) -> Prompt:
        """What the prompt has in common with the one that it goes on with is said once: prompts grow by little."""
        base, block_tokens = request.base, self._blocks.block_tokens
        kept = common_blocks(base.ids, request.ids) if base else 0
        keep_tokens = min(kept * block_tokens, request.tokens, base.tokens if base else 0)
        if kept * block_tokens > keep_tokens:  # both end within the same block: say it anew
            kept -= 1
            keep_tokens = kept * block_tokens
        rest = f"{self._app}/{request.call}.rest"
        segments = self._blocks.segments(request.ids[kept:], request.tokens - keep_tokens, rest)
        return Prompt(segments, f"{self._app}/{base.call}" if base and kept else None, keep_tokens, request.tokens)


def _end_by_thinking(requests: list[RecordedRequest], thinks: dict[int, int]) -> None:
    """Where only the pause behind a request was recorded, that says when it ended."""
    for before, request in pairwise(sorted(requests, key=lambda one: (one.start_us, one.position))):
        if not before.service_us and request.position in thinks:
            before.end_us = max(before.start_us, request.start_us - thinks[request.position])
            before.service_us = before.end_us - before.start_us


def _shift_requests(thread: Thread, by_us: int) -> None:
    for request in thread.requests:
        request.start_us += by_us
        request.end_us += by_us
    for inner in thread.threads:
        inner.start_us += by_us
        inner.end_us += by_us
        _shift_requests(inner, by_us)
