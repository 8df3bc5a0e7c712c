"""Engines report facts. A policy turns facts into a plan. The engine does what it can of the plan.

Read this file first. A policy is one object with one method, `plan(view)`. It is asked when something that it listens
to has happened, or when the time that it named has come; never once a decoded token. It sees the `View`, keeps what it
learns to itself, and returns a `Plan`: what it wants from now on. The same object runs in the simulator and inside
vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from ..traces.apps import AgentId, AppId, CallId
from ..traces.events import Fact, Request

Extent = Literal["prompts", "contexts"]

EMPTY: Mapping[AgentId, float] = MappingProxyType({})


class Move(NamedTuple):
    """Copy the first `blocks` blocks of an agent's context to the other side."""

    agent: AgentId
    blocks: int
    keep: bool = True  # offload only: leave the GPU's copy cached (True), or free it when the copy is done


@dataclass(frozen=True, slots=True)
class Plan:
    """What the policy wants. A wish: the engine may do less, never more.

    `admit`, `skip`, `preempt`, `evict`, `pin` and `write_through` hold until the next plan. `offload`, `upload`,
    `cancel` and `forget` are done once. A field left empty gets the engine's native behaviour.

    Every call is served whatever a policy wants. When calls wait and nothing runs, the engine starts what fits, even
    calls that are held back; and while calls starve for room that is held ahead of need, it takes no new offload,
    upload or pin until a call has finished.
    """

    admit: tuple[CallId, ...] | None = (
        None  # waiting calls, first to start first; absent = held back; None = as they came
    )
    skip: bool = False  # whether a call that does not fit lets those behind it try
    # Running calls, first victim first. A call that grows takes the room of one that was admitted after it: the first
    # of those that is named here, else the last of them; the last one of all gives up its own.
    preempt: tuple[CallId, ...] = ()
    # Idle caches, first to give up blocks first; what two of them share goes with the later one. The rest follows by
    # last use.
    evict: tuple[AgentId, ...] = ()
    offload: tuple[Move, ...] = ()  # copy to the host now
    upload: tuple[Move, ...] = ()  # copy back now, and hold until the agent's next call takes it
    cancel: tuple[AgentId, ...] = ()  # give up these uploads
    forget: tuple[AgentId, ...] = ()  # give up these host copies
    pin: Mapping[AgentId, float] = field(
        default_factory=lambda: EMPTY
    )  # keep what is cached of these agents on the GPU until that time
    # Copy full blocks to the host when a call has computed them, whoever it belongs to: those of its prompt, or with
    # "contexts" also those of its answer, when it ends. The host drops what was used last the longest ago.
    write_through: Extent | None = None
    wake_at_s: float | None = None  # ask again then even if nothing happens

    @property
    def moves(self) -> bool:
        """Whether it wants anything done to blocks now; otherwise it only says who may start and who gives way."""
        return bool(self.offload or self.upload or self.cancel or self.forget or self.evict or self.pin)


NATIVE = Plan()


class Status(Enum):
    """Where an agent is. Derived from the facts."""

    WAITING = "waiting"  # its call is in the queue
    RUNNING = "running"
    STALLED = "stalled"  # its last call ended and a tool runs
    IDLE = "idle"  # neither: it waits for other agents, a person, or its client

    __hash__ = object.__hash__  # an Enum's own one is slow, and every fact asks for it


class Hits(NamedTuple):
    """What is cached of a waiting call's prompt, in blocks."""

    gpu_blocks: int
    idle_blocks: int  # of these, held by nobody: taking them takes free blocks
    host_blocks: int  # that follow on the GPU's


class CallView(Protocol):
    """A call that arrived and has not finished."""

    @property
    def request(self) -> Request: ...
    @property
    def number(self) -> int: ...  # calls that arrived before it: what breaks ties
    @property
    def place(self) -> int: ...  # orders the waiting calls, the first has the smallest
    @property
    def arrived_at_s(self) -> float: ...
    @property
    def waiting_since_s(self) -> float: ...  # its arrival, or its last preemption
    @property
    def admitted_at_s(self) -> float | None: ...  # None while it waits
    @property
    def loading(self) -> bool: ...  # waiting, its blocks are on their way from the host or have come
    @property
    def preemptions(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...  # before its last preemption


class AgentView(Protocol):
    """An agent between its first call and the end of its application."""

    @property
    def id(self) -> AgentId: ...
    @property
    def number(self) -> int: ...  # agents that arrived before it: what breaks ties
    @property
    def app(self) -> AppId: ...
    @property
    def status(self) -> Status: ...
    @property
    def since_s(self) -> float: ...  # when it came into this status
    @property
    def last(self) -> Request: ...  # its latest call
    @property
    def context_blocks(self) -> int: ...  # full blocks of its latest finished call, 0 before there is one
    @property
    def host_blocks(self) -> int: ...  # prefix that the host holds for it
    @property
    def offloading(self) -> bool: ...
    @property
    def uploading(self) -> bool: ...
    @property
    def uploaded_blocks(self) -> int: ...  # on the GPU again, and held for its next call


class Costs(Protocol):
    """What a policy believes that things cost. In the simulator equal to the truth unless told otherwise."""

    def offload_s(self, blocks: int) -> float: ...
    def upload_s(self, blocks: int) -> float: ...
    def prefill_s(self, tokens: int, context_tokens: int) -> float: ...


class View(Protocol):
    """What a policy sees. Collections are in a fixed order: calls by arrival, agents by first arrival."""

    @property
    def now_s(self) -> float: ...
    @property
    def step(self) -> int: ...  # scheduler steps so far
    @property
    def block_tokens(self) -> int: ...
    @property
    def gpu_blocks(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...  # those in nobody's use, cached or not
    @property
    def growth_blocks(self) -> int: ...  # that running and loading calls will yet take until their declared budgets
    @property
    def host_blocks(self) -> int: ...
    @property
    def host_free_blocks(self) -> int: ...
    @property
    def costs(self) -> Costs: ...
    @property
    def news(self) -> Sequence[Fact]: ...  # facts since the policy was last asked
    @property
    def waiting(self) -> Mapping[CallId, CallView]: ...  # preempted calls are first, last preempted first
    @property
    def loading(self) -> Mapping[CallId, CallView]: ...  # of the waiting: those that are `loading`, by the load's start
    @property
    def running(self) -> Mapping[CallId, CallView]: ...  # by admission
    @property
    def agents(self) -> Mapping[AgentId, AgentView]: ...
    @property
    def stalled(self) -> Mapping[AgentId, AgentView]: ...  # by the start of the stall

    def app_started_s(self, app: AppId) -> float: ...

    def hits(self, call: CallId) -> Hits:
        """What is cached of a waiting call's prompt. Cheap, but not free: ask for calls that may start."""
        ...

    def shared_blocks(self, call: CallId) -> int:
        """Blocks of a waiting call's prompt that running calls hold now."""
        ...


class Policy(Protocol):
    """Decides who gets KV memory, and when. Deterministic: the same facts give the same plans.

    Names tell one from another and nothing else: what is equal goes by `number`, or by the order in a collection of the
    view, never by an id as text. The same workload under other names comes to the same times.
    """

    @property
    def listens_to(self) -> frozenset[type]:
        """The facts that are news to it: it is asked after one of these, and at the start.

        Read again after each plan: a policy may listen to less while nothing is open that it could decide. One that
        listens to nothing at the start is asked once.
        """
        ...

    def plan(self, view: View) -> Plan: ...


EVERYTHING: frozenset[type] = frozenset(Fact.__args__)
