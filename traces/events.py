"""What happened: the facts that an engine, simulated or real, reports. Metrics, policies and replays know nothing else.

Facts are named tuples in the past tense; `at_s` is engine time in seconds. An engine counts nothing: whatever a report
shows is folded from these (see `metrics`). Blocks are GPU KV blocks of the engine's block size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from .apps import AgentId, AppId, Call, CallId, Hints


class ToolHint(NamedTuple):
    """A tool that a call is going to start, as the application announces it: never its true duration."""

    kind: str
    declared_s: float | None


class Request(NamedTuple):
    """What is known of a call when it arrives: all of it travels with a live request too."""

    id: CallId
    app: AppId
    agent: AgentId
    agent_type: str
    prompt_tokens: int
    max_output_tokens: int
    tools: tuple[ToolHint, ...]
    hints: Hints


def request_of(call: Call) -> Request:
    """What is known of a call when it arrives: nothing of its tools' true durations, nor of its answer's length."""
    tools = tuple([_tool_hint(tool.kind, tool.declared_s) for tool in call.tools]) if call.tools else ()
    return Request(
        call.id, call.app, call.agent, call.agent_type, call.prompt.tokens, call.max_output_tokens, tools, call.hints
    )


@lru_cache(maxsize=1024, typed=True)
def _tool_hint(kind: str, declared_s: float | None) -> ToolHint:
    """One object for all that are the same: most tools of a kind are announced alike, if at all."""
    return ToolHint(kind, declared_s)


class RunStarted(NamedTuple):
    """The engine is up, empty, and has these limits."""

    at_s: float
    block_tokens: int
    gpu_blocks: int  # usable ones: vLLM's null block is not counted
    host_blocks: int
    block_bytes: int


class AppStarted(NamedTuple):
    at_s: float
    app: AppId


class AppFinished(NamedTuple):
    """Every call of the application ended and every tool returned: none of its agents comes back."""

    at_s: float
    app: AppId


class CallArrived(NamedTuple):
    at_s: float
    request: Request


class CallAdmitted(NamedTuple):
    """A waiting call became a running one."""

    at_s: float
    call: CallId
    gpu_hit_tokens: int
    host_hit_tokens: int
    resumed_tokens: int  # 0 at the first admission; after a preemption: prompt and generated tokens that it needs again


class FirstToken(NamedTuple):
    at_s: float
    call: CallId


class CallPreempted(NamedTuple):
    at_s: float
    call: CallId
    generated_tokens: int


class CallFinished(NamedTuple):
    at_s: float
    call: CallId
    output_tokens: int
    context_blocks: int  # full blocks of its context that have KV: the last sampled token has none


class CallAborted(NamedTuple):
    """A call was given up by its client, waiting or running; what it had is free, and its agent waits for nothing."""

    at_s: float
    call: CallId


class ToolStarted(NamedTuple):
    """The first tool of a finished call started: its agent is stalled from now on."""

    at_s: float
    call: CallId
    agent: AgentId


class ToolReturned(NamedTuple):
    """The last tool of a finished call returned: its agent is no longer stalled."""

    at_s: float
    call: CallId
    agent: AgentId


class LoadStarted(NamedTuple):
    """A waiting call found blocks of its prompt on the host; room is taken for them and they are being copied."""

    at_s: float
    call: CallId
    blocks: int
    gpu_hit_blocks: int


class LoadFinished(NamedTuple):
    at_s: float
    call: CallId
    blocks: int


class StoreStarted(NamedTuple):
    """Full blocks of a call, which it computed or found on the GPU, are being copied to the host: write-through.

    A copy begins when the step has ended that computes them. It belongs to nobody: any later call can load it.
    """

    at_s: float
    call: CallId
    blocks: int


class StoreFinished(NamedTuple):
    at_s: float
    call: CallId
    blocks: int


class StoreRefused(NamedTuple):
    """The host had no room for all of these blocks at once: it is tried again when more of the call is computed."""

    at_s: float
    call: CallId
    blocks: int


class OffloadStarted(NamedTuple):
    """Blocks of an idle agent's context are being copied to the host. `blocks` are the ones really copied."""

    at_s: float
    agent: AgentId
    blocks: int
    upto_blocks: int  # the prefix of its context that the host holds afterwards


class OffloadFinished(NamedTuple):
    at_s: float
    agent: AgentId
    blocks: int
    upto_blocks: int


class OffloadRefused(NamedTuple):
    """Asked for, not done: nothing of the prefix was left on the GPU that the host lacks, or the host is full."""

    at_s: float
    agent: AgentId


class HostDropped(NamedTuple):
    """An agent gave up its host copy. `blocks` became free: those that no other agent's copy shares."""

    at_s: float
    agent: AgentId
    blocks: int


class UploadStarted(NamedTuple):
    at_s: float
    agent: AgentId
    blocks: int


class UploadFinished(NamedTuple):
    """The blocks are on the GPU, can be hit, and are held until the agent's next call takes them."""

    at_s: float
    agent: AgentId
    blocks: int


class UploadTaken(NamedTuple):
    """The agent's next call was admitted and took its uploaded blocks."""

    at_s: float
    agent: AgentId
    blocks: int
    held_s: float  # how long they lay ready before the call arrived; 0 if it waited for them
    late_s: float  # how long the call waited for the copy


class UploadCancelled(NamedTuple):
    at_s: float
    agent: AgentId
    blocks: int
    held_s: float  # how long the room was taken, for nothing


class UploadReleased(NamedTuple):
    """The copy of a cancelled upload has ended: only now can its blocks be used for anything else."""

    at_s: float
    agent: AgentId
    blocks: int


class UploadRefused(NamedTuple):
    at_s: float
    agent: AgentId


class Polled(NamedTuple):
    """The policy was asked. The gauges are those that it saw."""

    at_s: float
    step: int  # scheduler steps so far
    free_blocks: int
    growth_blocks: int  # blocks that the running calls will yet take until their declared budgets
    host_free_blocks: int
    max_running: int = 1024  # calls that may run at once; vLLM's default, which older files mean


class Occupied(NamedTuple):
    """Integrals over the whole run, in block-seconds; written when the last application has ended."""

    at_s: float
    used_block_s: float  # blocks that somebody holds: vLLM's KV cache usage
    stalled_block_s: float  # of stalled agents: held for them, or cached and free
    held_block_s: float  # of the used: held for agents without a running call (pins, uploads, sources of copies)
    busy_s: float  # time with a step in flight
    steps: int


class Stepped(NamedTuple):
    """A step of a live engine has ended: what it computed. The simulator takes many steps at once and tells of none.

    Of a step that computed nothing it is told if copies ended with it, or if another step ended between its begin and
    its end with which anything came. The four sums are those that a machine's step time is made of
    (`sim.machine.machine.Machine`).
    """

    at_s: float
    from_s: float  # when it was scheduled
    prefill_tokens: int
    attended_tokens: int  # pairs of a prefill token and a token that it attends to, itself included
    decode_calls: int
    context_tokens: int  # of the decoding calls: the tokens that each attends to, but for the one that it computes
    worker_s: float | None = None  # from when the workers were given it until its outcome came; None: not known


class Copied(NamedTuple):
    """Workers of a live engine have made a copy, whose own facts follow. The simulator tells of none."""

    at_s: float  # when the engine saw it
    to_host: bool
    blocks: int
    seconds: float  # that it took the worker that took longest, without waiting: for other copies, or for computing


class Asked(NamedTuple):
    """The policy asked what is cached of a call's prompt; so a replay can answer without an engine.

    Recorded if the answer is not the last one about this call; older records have it each time.
    """

    at_s: float
    call: CallId
    gpu_blocks: int
    idle_blocks: int  # of these, in nobody's use: taking them takes free blocks
    host_blocks: int  # that follow on the GPU's


class AskedShared(NamedTuple):
    """The policy asked how much of a call's prompt running calls hold. Recorded as `Asked` is."""

    at_s: float
    call: CallId
    blocks: int


Fact = (
    RunStarted
    | AppStarted
    | AppFinished
    | CallArrived
    | CallAdmitted
    | FirstToken
    | CallPreempted
    | CallFinished
    | CallAborted
    | ToolStarted
    | ToolReturned
    | LoadStarted
    | LoadFinished
    | StoreStarted
    | StoreFinished
    | StoreRefused
    | OffloadStarted
    | OffloadFinished
    | OffloadRefused
    | HostDropped
    | UploadStarted
    | UploadFinished
    | UploadTaken
    | UploadCancelled
    | UploadReleased
    | UploadRefused
    | Polled
    | Occupied
    | Stepped
    | Copied
    | Asked
    | AskedShared
)


class Planned(NamedTuple):
    """What the policy wanted when it was asked: not a fact, but written beside the facts, so that a replay can compare.

    `plan` holds the fields of the plan that are not left at their defaults, as JSON knows them.
    """

    at_s: float
    plan: Mapping[str, object]
    questions: int | None = None  # a checksum of those before it (`questions`); None in older records


class BelievedCosts(NamedTuple):
    """What a policy believed that copies and prefills cost; the fields of `policies.costs.LinearCosts`."""

    copy_s: float
    copy_block_s: float
    prefill_token_s: float
    attention_s: float


class Began(NamedTuple):
    """How a run was set up: no fact, but the first record of its events file, so that a replay needs nothing else."""

    policy: str  # as `policies.registry.load_policy` takes it
    seed: int
    costs: BelievedCosts
