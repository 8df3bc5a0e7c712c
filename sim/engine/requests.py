"""A call inside the engine, and an agent's caches: what the simulator keeps beside the facts."""

from __future__ import annotations

from enum import Enum

from ...traces.apps import Call
from .memory.block_pool import BlockHold, Owner
from .memory.context_tree import Path


class State(Enum):
    """Where a call is in the engine."""

    WAITING = 0
    LOADING = 1  # waiting; it holds blocks, and its host copy is being written into them
    LOADED = 2  # waiting; it holds blocks that have their content
    RUNNING = 3


class EngineCall:
    """A call from its arrival to its end."""

    __slots__ = (
        "admission", "agent", "arrived_ps", "decoding", "final_blocks", "gpu_hit_tokens", "had_first_token", "hold",
        "host_hit_tokens", "id", "joined_at_iteration", "last_iteration", "num_computed_tokens", "num_prefill_tokens",
        "output_tokens", "path", "prompt_tokens", "state", "store_sources", "stored_blocks", "trace_call",
        "was_admitted",
    )  # fmt: skip

    def __init__(self, call: Call, agent: AgentCache, path: Path, final_blocks: int, arrived_ps: int) -> None:
        self.trace_call = call
        self.id = call.id
        self.agent = agent
        self.path = path  # of its prompt and its answer
        self.prompt_tokens = call.prompt.tokens
        self.output_tokens = call.output_tokens
        self.final_blocks = final_blocks  # at its declared budget
        self.arrived_ps = arrived_ps
        self.state = State.WAITING
        self.hold: BlockHold | None = None
        self.was_admitted = False
        self.had_first_token = False
        # What a prefill has to compute: the prompt, and what was generated before a preemption.
        self.num_prefill_tokens = self.prompt_tokens
        self.num_computed_tokens = 0  # those with KV; while it decodes, those at the time it joined
        self.decoding = False
        self.joined_at_iteration = 0
        self.last_iteration = 0
        self.admission = 0  # a number: the latest admission of all calls has the highest
        self.gpu_hit_tokens = 0
        self.host_hit_tokens = 0
        self.stored_blocks = 0  # how many of its first blocks were written through, or had no need to be
        self.store_sources: list[BlockHold] = []  # sources of its copies under way


class AgentCache:
    """What the engine keeps for an agent: its latest finished context, and what is held for it."""

    __slots__ = (
        "context_blocks", "gone", "host", "name", "offloading", "owner", "path", "pin", "pin_until_ps", "uploads",
        "waiting",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner = Owner(name)
        self.path: Path = ()  # of its latest finished call's context
        self.context_blocks = 0  # full blocks with KV
        self.host: BlockHold | None = None  # its copy on the host
        self.offloading = False
        self.uploads: list[Upload] = []  # on their way or ready, by position
        self.pin: BlockHold | None = None
        self.pin_until_ps = 0
        self.waiting = 0  # calls in the queue
        self.gone = False  # its application ended


class Upload:
    """Blocks that are copied back before they are asked for."""

    __slots__ = ("cancelled", "end_block", "first_block", "hold", "num_blocks", "ready_ps", "started_ps")

    def __init__(self, hold: BlockHold, first: int, end: int, started_ps: int) -> None:
        self.hold = hold
        self.first_block = first  # block copied first; those before it were still on the GPU
        self.end_block = end
        self.num_blocks = end - first
        self.started_ps = started_ps
        self.ready_ps: int | None = None
        self.cancelled = False
