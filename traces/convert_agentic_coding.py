"""Recorded coding-agent conversations: a JSON file each, with a request for every model call.

Format: https://github.com/callanjfox/kv-cache-tester. One conversation becomes one application:

- A request of the conversation is a call of the agent `main`; each waits for the one before it.
- `hash_ids` name the full blocks of a prompt, with ids of the conversation's own; what follows the last full block has
  no id and is taken for content that no other prompt holds: at most one block a call is shared more than is said.
- Answers come back tokenised anew in the next prompt's blocks, so no prompt refers to them.
- The time before a request that brings tool results is a tool of the call before, undeclared, of kind `tool` (the
  recording has no names). The time before any other request is a person's pause. It is `think_time`; where that is
  absent, the time since the previous request started less the time the model took, as far as that was recorded.
- A `subagent` entry is an agent of its own. It starts with the end of the last request that began before it; the next
  request of the list waits for it. Its `t` is the time at which it ended, its requests count from its own start. What
  passes between the last sub-agent's end and the waiting request is that request's pause.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from .apps import Application, Call, CallId, Prompt, Tool
from .block_ids import block_segments, common_blocks, covers
from .derive import with_hints
from .errors import TraceError
from .fields import MAX_TOKENS
from .foreign import Entry, read_json_object

MAX_DEPTH = 16  # of sub-agents in sub-agents


def from_agentic_coding(path: Path) -> Iterator[Application]:
    """One application a file, in the order of the files' names, all arriving at 0. Holds one file at a time.

    `path` is one file or a directory of `.json` files. Raises TraceError, naming file, entry and field.
    """
    seen: dict[str, Path] = {}
    for file in _files(path):
        conversation = read_json_object(file)
        app = conversation.name("id")
        if app in seen:
            conversation.refuse("id", f"another id than that of {seen[app]}")
        seen[app] = file
        yield with_hints(_Conversation(conversation, app).application())


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"))
    if not files:
        raise TraceError(f"{path}: expected a directory with .json files, found none")
    return files


@dataclass(slots=True)
class _Request:
    """A request that became a call."""

    call: Call
    ids: list[int]
    start_s: float
    end_s: float


@dataclass(slots=True)
class _Thread:
    """An agent's requests so far, and the sub-agents that its next request waits for."""

    agent: str
    agent_type: str
    started_by: CallId | None
    requests: list[_Request] = field(default_factory=list)
    awaited: list[CallId] = field(default_factory=list)
    awaited_end_s: float = 0.0

    def last_begun_by(self, at_s: float) -> CallId | None:
        begun = (request.call.id for request in reversed(self.requests) if request.start_s <= at_s)
        return next(begun, self.started_by)


class _Conversation:
    """Turns one file into calls, in the order of the file: each follows all that it waits for."""

    def __init__(self, conversation: Entry, app: str) -> None:
        self._conversation = conversation
        self._app = app
        self._block_tokens = conversation.whole("block_size", low=1)
        self._calls: dict[CallId, Call] = {}
        self._agents: set[str] = set()

    def application(self) -> Application:
        self._play(self._conversation, _Thread("main", "main", started_by=None), depth=0)
        if not self._calls:
            self._conversation.refuse("requests", "at least one request")
        return Application(self._app, 0.0, tuple(self._calls.values()))

    def _play(self, owner: Entry, thread: _Thread, depth: int) -> None:
        self._agents.add(thread.agent)
        for entry in owner.entries("requests"):
            kind = entry.name("type")
            if kind == "subagent":
                self._start(entry, thread, depth + 1)
            elif kind in ("n", "s"):
                self._send(entry, thread)
            else:
                entry.refuse("type", '"n", "s" or "subagent"')

    def _start(self, entry: Entry, parent: _Thread, depth: int) -> None:
        agent = entry.name("agent_id")
        if agent in self._agents:
            entry.refuse("agent_id", "an agent that did not occur before")
        if depth > MAX_DEPTH:
            raise TraceError(f"{entry.where}: expected sub-agents nested at most {MAX_DEPTH} deep")
        end_s = entry.number("t")
        start_s = end_s - (entry.number("duration_ms") / 1000.0 if entry.has("duration_ms") else 0.0)
        child = _Thread(agent, entry.name("subagent_type"), parent.last_begun_by(start_s))
        self._play(entry, child, depth)
        if child.requests:
            parent.awaited.append(child.requests[-1].call.id)
            parent.awaited_end_s = max(parent.awaited_end_s, end_s)

    def _send(self, entry: Entry, thread: _Thread) -> None:
        start_s = entry.number("t")
        pause_s = 0.0
        if thread.awaited:
            pause_s = max(0.0, start_s - thread.awaited_end_s)
        elif thread.requests:
            pause_s = self._gap(entry, start_s, thread.requests[-1])
        call, ids = self._call(entry, thread, pause_s)
        took_s = entry.number("api_time") if entry.has("api_time") else 0.0
        self._calls[call.id] = call
        thread.requests.append(_Request(call, ids, start_s, start_s + took_s))
        thread.awaited = []
        thread.awaited_end_s = 0.0

    def _gap(self, entry: Entry, start_s: float, previous: _Request) -> float:
        """The person's pause before a request; if it was a tool's time instead, that becomes the previous call's."""
        think_time = entry.number("think_time") if entry.has("think_time") else max(0.0, start_s - previous.end_s)
        if "tool_result" not in entry.texts("input_types"):
            return think_time
        grown_by = entry.whole("in", low=1) - previous.call.prompt_tokens - previous.call.output_tokens
        tool = Tool("tool", think_time, result_tokens=max(0, grown_by))
        self._calls[previous.call.id] = replace(self._calls[previous.call.id], tools=(tool,))
        return 0.0

    def _call(self, entry: Entry, thread: _Thread, pause_s: float) -> tuple[Call, list[int]]:
        name = f"{thread.agent}_{len(thread.requests) + 1}"
        previous = thread.requests[-1] if thread.requests else None
        tokens = entry.whole("in", low=1)
        ids = entry.ids("hash_ids", MAX_TOKENS // self._block_tokens - 1)
        if not covers(ids, tokens, self._block_tokens):
            entry.refuse("hash_ids", f"an id for each {self._block_tokens} of the {tokens} tokens")
        before = [previous.call.id] if previous else [thread.started_by] if thread.started_by else []
        output_tokens = entry.whole("out", low=1)
        call = Call(
            id=f"{self._app}/{name}",
            app=self._app,
            agent=f"{self._app}/{thread.agent}",
            agent_type=thread.agent_type,
            prompt=self._prompt(name, ids, tokens, previous),
            output_tokens=output_tokens,
            max_output_tokens=output_tokens,
            after=(*before, *thread.awaited),
            pause_s=pause_s,
        )
        return call, ids

    def _prompt(self, name: str, ids: list[int], tokens: int, previous: _Request | None) -> Prompt:
        """What the prompt has in common with the agent's previous one is said once: prompts grow by little."""
        kept = common_blocks(previous.ids, ids) if previous else 0
        keep_tokens = min(kept * self._block_tokens, tokens, previous.call.prompt_tokens if previous else 0)
        if kept * self._block_tokens > keep_tokens:  # both end within the same block: say it anew
            kept -= 1
            keep_tokens = kept * self._block_tokens
        segments = block_segments(
            ids[kept:], tokens - keep_tokens, self._block_tokens, f"{self._app}/blocks", f"{self._app}/{name}.rest"
        )
        return Prompt(segments, previous.call.id if previous and kept else None, keep_tokens, tokens)
