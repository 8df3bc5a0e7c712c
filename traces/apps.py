"""What was asked for: applications, their calls, and what the calls' prompts consist of.

An *application* arrives at a time and is a DAG of LLM *calls*. A call waits for the calls it names in `after`, and for
the tools that those calls started; then possibly for a person; then it is sent. Calls of one *agent* extend one
context and follow each other in the DAG; a nested sub-agent is another agent whose calls lie between two calls of its
parent.

Prompts are runs of identified content, not token ids: two prompts share a prefix exactly as far as their segments
name the same tokens of the same sources. Inside an application, the answer of call `c` is the source `c`.
"""

from __future__ import annotations

from typing import NamedTuple

CallId = str  # unique in a trace: "application/call"
AgentId = str  # unique in a trace: "application/agent"
AppId = str


class Segment(NamedTuple):
    """Tokens `start` … `start + tokens − 1` of one source."""

    source: str  # unique in a trace: "application/name" for private content, "/name" for content that is shared
    start: int
    tokens: int


class Prompt(NamedTuple):
    """A prompt: the first `keep_tokens` tokens of an earlier call's context (prompt, then answer), then segments."""

    segments: tuple[Segment, ...]
    extends: CallId | None = None
    keep_tokens: int = 0
    tokens: int = 0  # the whole length, derived by the reader


class Tool(NamedTuple):
    """A tool call that starts when its LLM call ends; the next calls wait for it."""

    kind: str
    duration_s: float  # the truth; only the simulator's world reads it
    declared_s: float | None = None  # what the application says beforehand
    result_tokens: int = 0


class Hints(NamedTuple):
    """What an application says about a call's place in it. Absent values are derived from the DAG by the reader."""

    importance: float = 1.0
    critical_path: bool = False
    near_completion: bool = False
    join_group: str | None = None
    depth: int = 1  # calls on the longest path from a start to this call, this one counted
    remaining_depth: int = 1  # calls on the longest path from this call to an end, this one counted
    in_degree: int = 0
    out_degree: int = 0
    similarity: float = 1.0  # 1 / number of calls beside this one in its join group
    fanout_width: int = 1  # the largest number of calls of this application that can run at once
    memory_weight: float = 1.0
    reusable: bool = False  # a later call extends this call's context
    max_depth: int = 1  # the application's largest depth


NO_HINTS = Hints()


class Call(NamedTuple):
    """One LLM call. Its context afterwards is its prompt followed by its answer."""

    id: CallId
    app: AppId
    agent: AgentId
    agent_type: str
    prompt: Prompt
    output_tokens: int  # the truth; what a policy sees is `max_output_tokens`
    max_output_tokens: int  # the declared budget, at least `output_tokens`
    after: tuple[CallId, ...] = ()
    pause_s: float = 0.0  # a person thinks so long between what the call waits for and the call
    tools: tuple[Tool, ...] = ()  # run side by side when the call ends
    hints: Hints = NO_HINTS

    @property
    def prompt_tokens(self) -> int:
        return self.prompt.tokens


class Application(NamedTuple):
    """A DAG of calls, in an order in which every call follows all that it waits for."""

    id: AppId
    arrival_s: float
    calls: tuple[Call, ...] = ()
