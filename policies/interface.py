"""The port between an engine and a policy: engines report facts, a policy turns facts into a plan.

Read this file first. A policy is one object with one method, `plan(view)`. It is asked at the start of a scheduler step
if a fact that it listens to has happened since it was last asked, or if the time that it named has come; never once a
decoded token. It sees the `View`, keeps what it learns to itself, and returns a `Plan`: what it wants from now on. The
engine carries out as much of the plan as it can. The same object runs in the simulator and inside vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from ..traces.apps import AgentId, AppId, CallId
from ..traces.events import Fact, Request

Extent = Literal["prompts", "contexts"]

EMPTY: Mapping[AgentId, float] = MappingProxyType({})


class QueueOrder(tuple[CallId, ...]):
    """Calls to admit, in the order of a `RankedQueue`: each has arrived, and none is in it twice.

    Nobody checks that again, so a plan may name thousands.
    """

    __slots__ = ()


class Move(NamedTuple):
    """Copy the first `blocks` blocks of an agent's context to the other side."""

    agent: AgentId
    blocks: int
    keep: bool = True
    """Offloads only. True: the GPU's copy stays cached. False: it is freed when the copy is done."""


@dataclass(frozen=True, slots=True, init=False)
class Plan:
    """What the policy wants. The engine may do less, never more.

    `admit`, `skip`, `preempt`, `evict`, `pin` and `write_through` hold until the next plan. `offload`, `upload`,
    `cancel` and `forget` are done once. A field left empty gets the engine's native behaviour.

    Every call is served, whatever a policy wants. When calls wait and nothing runs, the engine starts what fits, held
    back or not. While calls starve for room that is held ahead of need, the engine takes no new offload, upload or pin
    until a call has finished.
    """

    admit: tuple[CallId, ...] | None = None
    """Waiting calls that may start, first to start first; the others are held back. None: first come, first served."""

    skip: bool = False
    """Whether a call that does not fit lets those behind it try."""

    preempt: tuple[CallId, ...] = ()
    """Running calls, first victim first.

    A call that needs another block takes it from a call that was admitted later: the first of these that is named here,
    or else the last admitted. The call that was admitted last of all gives up its own blocks.
    """

    evict: tuple[AgentId, ...] = ()
    """Agents whose idle cached blocks are evicted first, in this order; all other blocks follow by last use.

    A block that two of these agents share is evicted with the later one.
    """

    offload: tuple[Move, ...] = ()
    """Copies to the host, to start now."""

    upload: tuple[Move, ...] = ()
    """Copies back to the GPU, to start now. The blocks are held until the agent's next call takes them."""

    cancel: tuple[AgentId, ...] = ()
    """Agents whose uploads are given up, under way or held."""

    forget: tuple[AgentId, ...] = ()
    """Agents whose host copies are given up."""

    pin: Mapping[AgentId, float] = field(default_factory=lambda: EMPTY)
    """Agents whose cached blocks stay on the GPU, each until a time in seconds."""

    write_through: Extent | None = None
    """Copy full blocks to the host when a call has computed them, whoever it belongs to.

    "prompts": the blocks of prompts. "contexts": also those of answers, when the call ends. A full host drops the least
    recently used blocks.
    """

    wake_at_s: float | None = None
    """Ask again at this time, even if nothing happens until then."""

    def __init__(
        self,
        admit: tuple[CallId, ...] | None = None,
        skip: bool = False,
        preempt: tuple[CallId, ...] = (),
        evict: tuple[AgentId, ...] = (),
        offload: tuple[Move, ...] = (),
        upload: tuple[Move, ...] = (),
        cancel: tuple[AgentId, ...] = (),
        forget: tuple[AgentId, ...] = (),
        pin: Mapping[AgentId, float] = EMPTY,
        write_through: Extent | None = None,
        wake_at_s: float | None = None,
    ) -> None:
        # A plan is made several times a call, and what a frozen class does by itself takes half as long again.
        _admit(self, admit)
        _skip(self, skip)
        _preempt(self, preempt)
        _evict(self, evict)
        _offload(self, offload)
        _upload(self, upload)
        _cancel(self, cancel)
        _forget(self, forget)
        _pin(self, pin)
        _write_through(self, write_through)
        _wake_at_s(self, wake_at_s)

    @property
    def moves(self) -> bool:
        """Whether the plan does something to blocks now, beyond saying which calls start and which give way."""
        return bool(self.offload or self.upload or self.cancel or self.forget or self.evict or self.pin)


_WRITERS: tuple[Callable[[Plan, object], None], ...] = tuple(getattr(Plan, name).__set__ for name in Plan.__slots__)
(
    _admit, _skip, _preempt, _evict, _offload, _upload, _cancel, _forget, _pin, _write_through, _wake_at_s
) = _WRITERS  # fmt: skip
NATIVE = Plan()


class Status(Enum):
    """Where an agent is. Derived from the facts."""

    WAITING = "waiting"
    """Its call is in the queue."""

    RUNNING = "running"
    """Its call runs."""

    STALLED = "stalled"
    """Its last call has ended, and a tool runs."""

    IDLE = "idle"
    """None of these: it waits for other agents, a person, or its client."""

    __hash__ = object.__hash__  # an Enum's own one is slow, and every fact asks for it


class Hits(NamedTuple):
    """How much of a waiting call's prompt is cached, in blocks."""

    gpu_blocks: int
    """On the GPU, from the start of the prompt on."""

    idle_blocks: int
    """Of these, blocks that no call holds: to take one takes a free block."""

    host_blocks: int
    """On the host, behind those on the GPU."""


class CallView(Protocol):
    """A call that has arrived and has not finished."""

    @property
    def request(self) -> Request: ...

    @property
    def number(self) -> int:
        """How many calls arrived before it. Breaks ties."""
        ...

    @property
    def place(self) -> int:
        """Orders the waiting calls; the first has the smallest."""
        ...

    @property
    def arrived_at_s(self) -> float: ...

    @property
    def waiting_since_s(self) -> float:
        """When it arrived, or was last preempted."""
        ...

    @property
    def admitted_at_s(self) -> float | None:
        """None while it waits."""
        ...

    @property
    def loading(self) -> bool:
        """Whether it waits, and its blocks are being loaded from the host or have been."""
        ...

    @property
    def preemptions(self) -> int: ...

    @property
    def generated_tokens(self) -> int:
        """Before its last preemption."""
        ...


class AgentView(Protocol):
    """An agent between its first call and the end of its application."""

    @property
    def id(self) -> AgentId: ...

    @property
    def number(self) -> int:
        """How many agents arrived before it. Breaks ties."""
        ...

    @property
    def app(self) -> AppId: ...

    @property
    def status(self) -> Status: ...

    @property
    def since_s(self) -> float:
        """When the agent came into this status."""
        ...

    @property
    def last(self) -> Request:
        """Its latest call."""
        ...

    @property
    def context_blocks(self) -> int:
        """Full blocks of its latest finished call; 0 before there is one."""
        ...

    @property
    def host_blocks(self) -> int:
        """Blocks that the host holds of its context, from the start on."""
        ...

    @property
    def offloading(self) -> bool: ...

    @property
    def uploading(self) -> bool: ...

    @property
    def uploaded_blocks(self) -> int:
        """Blocks that are on the GPU again, and held for its next call."""
        ...


class Costs(Protocol):
    """How long the policy believes that things take. In the simulator the truth, unless it is told otherwise."""

    def offload_s(self, blocks: int) -> float: ...
    def upload_s(self, blocks: int) -> float: ...
    def prefill_s(self, tokens: int, context_tokens: int) -> float: ...


class View(Protocol):
    """What a policy sees. Collections are in a fixed order: calls by arrival, agents by first arrival."""

    @property
    def now_s(self) -> float: ...

    @property
    def step(self) -> int:
        """Scheduler steps so far."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        ...

    @property
    def gpu_blocks(self) -> int: ...

    @property
    def free_blocks(self) -> int:
        """GPU blocks that no call holds, cached or not."""
        ...

    @property
    def growth_blocks(self) -> int:
        """GPU blocks that running and loading calls will yet take, up to their declared budgets."""
        ...

    @property
    def host_blocks(self) -> int: ...

    @property
    def host_free_blocks(self) -> int: ...

    @property
    def max_running(self) -> int:
        """Calls that the engine runs at once at most (vLLM's `max_num_seqs`), those that are in no view among them.

        A plan needs to name no more than `max_running - len(running)`: others start when one of these has ended.
        """
        ...

    @property
    def costs(self) -> Costs: ...

    @property
    def news(self) -> Sequence[Fact]:
        """All facts since the policy was last asked, whether it listens to them or not."""
        ...

    @property
    def waiting(self) -> Mapping[CallId, CallView]:
        """Preempted calls come first, the last preempted at the front."""
        ...

    @property
    def loading(self) -> Mapping[CallId, CallView]:
        """The waiting calls that are `loading`, by the start of the load."""
        ...

    @property
    def running(self) -> Mapping[CallId, CallView]:
        """By admission."""
        ...

    @property
    def agents(self) -> Mapping[AgentId, AgentView]: ...

    @property
    def stalled(self) -> Mapping[AgentId, AgentView]:
        """By the start of the stall."""
        ...

    def app_started_s(self, app: AppId) -> float: ...

    def hits(self, call: CallId) -> Hits:
        """How much of a waiting call's prompt is cached. Cheap, but not free: ask for calls that may start."""
        ...

    def shared_blocks(self, call: CallId) -> int:
        """How many blocks of a waiting call's prompt running calls hold now."""
        ...


class Policy(Protocol):
    """Decides which contexts get KV memory, and when. Deterministic: the same facts give the same plans.

    Names only tell calls and agents apart. Ties are broken by `number`, or by the order in a collection of the view,
    never by comparing ids: the same workload under other names takes the same times.
    """

    @property
    def listens_to(self) -> frozenset[type]:
        """The kinds of facts after which the policy is asked.

        It is asked at the start in any case. The set is read again after each plan: a policy may listen to less while
        there is nothing to decide. One that listens to nothing at the start is asked once.
        """
        ...

    def plan(self, view: View) -> Plan: ...


EVERYTHING: frozenset[type] = frozenset(Fact.__args__)
