"""A call inside the engine, and an agent's caches: what the simulator keeps beside the facts."""

from __future__ import annotations

from enum import Enum

from ...traces.apps import Call
from .memory.block_pool import Hold, Owner
from .memory.context_tree import Path


class State(Enum):
    """Where a call is in the engine."""

    WAITING = 0
    LOADING = 1  # waiting; it holds blocks, and its host copy is being written into them
    LOADED = 2  # waiting; it holds blocks that have their content
    RUNNING = 3


class Job:
    """A call from its arrival to its end."""

    __slots__ = (
        "agent", "arrived_ps", "call", "computed", "decoding", "final_blocks", "gpu_hit_tokens", "hold",
        "host_hit_tokens", "id", "joined", "last_iteration", "order", "output_tokens", "path", "prompt_tokens", "seen",
        "started", "state", "stored", "stores", "target",
    )  # fmt: skip

    def __init__(self, call: Call, agent: AgentCache, path: Path, final_blocks: int, arrived_ps: int) -> None:
        self.call = call
        self.id = call.id
        self.agent = agent
        self.path = path  # of its prompt and its answer
        self.prompt_tokens = call.prompt.tokens
        self.output_tokens = call.output_tokens
        self.final_blocks = final_blocks  # at its declared budget
        self.arrived_ps = arrived_ps
        self.state = State.WAITING
        self.hold: Hold | None = None
        self.started = False  # was admitted before
        self.seen = False  # its first token came
        self.target = self.prompt_tokens  # tokens that a prefill has to compute: the prompt, and what was generated
        self.computed = 0  # tokens with KV; while it decodes, those at the time it joined
        self.decoding = False
        self.joined = 0  # iteration
        self.last_iteration = 0
        self.order = 0  # of admission, the latest one
        self.gpu_hit_tokens = 0
        self.host_hit_tokens = 0
        self.stored = 0  # how many of its first blocks were written through, or had no need to be
        self.stores: list[Hold] = []  # sources of its copies under way


class AgentCache:
    """What the engine keeps for an agent: its latest finished context, and what is held for it."""

    __slots__ = (
        "context_blocks",
        "gone",
        "host",
        "name",
        "offloading",
        "owner",
        "path",
        "pin",
        "pin_until_ps",
        "uploads",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner = Owner(name)
        self.path: Path = ()  # of its latest finished call's context
        self.context_blocks = 0  # full blocks with KV
        self.host: Hold | None = None  # its copy on the host
        self.offloading = False
        self.uploads: list[Upload] = []  # on their way or ready, by position
        self.pin: Hold | None = None
        self.pin_until_ps = 0
        self.waiting = 0  # calls in the queue
        self.gone = False  # its application ended


class Upload:
    """Blocks that are copied back before they are asked for."""

    __slots__ = ("blocks", "cancelled", "end", "first", "hold", "ready_ps", "started_ps")

    def __init__(self, hold: Hold, first: int, end: int, started_ps: int) -> None:
        self.hold = hold
        self.first = first  # block copied first; those before it were still on the GPU
        self.end = end
        self.blocks = end - first
        self.started_ps = started_ps
        self.ready_ps: int | None = None
        self.cancelled = False
