"""A call inside the engine, and an agent's caches: what the simulator keeps beside the facts."""

from __future__ import annotations

from enum import Enum
from typing import Final

from ...policies.execution.agent_cache import AgentCache
from ...policies.interface import Hits
from ...traces.apps import Call
from ...traces.arithmetic import div_ceil
from .memory.blocks import BlockHold, Owner
from .memory.context_tree import Context, full_blocks

NO_HITS: Final = Hits(0, 0, 0)


class State(Enum):
    """Where a call is in the engine."""

    WAITING = 0
    LOADING = 1  # waiting; it holds blocks, and its host copy is being written into them
    LOADED = 2  # waiting; it holds blocks that have their content
    RUNNING = 3


class EngineCall:
    """A call from its arrival to its end."""

    __slots__ = (
        "_block_tokens", "admission", "agent", "arrived_ps", "context", "decoding", "final_blocks", "generated_tokens",
        "gpu_hit_tokens", "had_first_token", "hits", "hits_changes", "hold", "host_hit_tokens", "id",
        "joined_at_iteration", "last_iteration", "most_hit_blocks", "num_computed_tokens", "num_prefill_tokens",
        "output_tokens", "path", "prefill_blocks", "prompt_tokens", "state", "store_sources", "stored_blocks",
        "trace_call", "was_admitted",
    )  # fmt: skip

    def __init__(self, call: Call, agent: SimAgent, context: Context, block_tokens: int, arrived_ps: int) -> None:
        self._block_tokens = block_tokens
        self.trace_call = call
        self.id = call.id
        self.agent = agent
        self.context = context  # its prompt and its answer
        self.path = full_blocks(context, block_tokens)  # of these
        self.prompt_tokens = call.prompt.tokens
        self.output_tokens = call.output_tokens
        self.final_blocks = div_ceil(
            call.prompt.tokens + call.max_output_tokens, block_tokens
        )  # at its declared budget
        self.arrived_ps = arrived_ps
        self.state = State.WAITING
        self.hold: BlockHold | None = None
        self.hits = NO_HITS  # what was found of its prompt when the changes of its path were these; -1: nothing was
        self.hits_changes = -1
        self.was_admitted = False
        self.had_first_token = False
        self.set_prefill(self.prompt_tokens)
        self.num_computed_tokens = 0  # those with KV; while it decodes, those at the time it joined
        self.decoding = False
        self.joined_at_iteration = 0
        self.last_iteration = 0
        self.admission = 0  # a number: the latest admission of all calls has the highest
        self.gpu_hit_tokens = 0
        self.host_hit_tokens = 0
        self.stored_blocks = 0  # how many of its first blocks were written through, or had no need to be
        self.store_sources: list[BlockHold] = []  # sources of its copies under way

    def set_prefill(self, tokens: int) -> None:
        """What a prefill has to compute from now on: the prompt, and what was generated before a preemption."""
        self.num_prefill_tokens = tokens
        self.hits_changes = -1
        self.prefill_blocks = div_ceil(tokens, self._block_tokens)
        self.most_hit_blocks = (tokens - 1) // self._block_tokens  # the last token is always computed
        self.generated_tokens = tokens - self.prompt_tokens  # of the answer, those that are computed again


class HostCopy:
    """The first blocks of a context, held on the host. Which ones these are is found again when they are given back."""

    __slots__ = ("context", "num_blocks")

    def __init__(self, context: Context | None, num_blocks: int) -> None:
        self.context = context
        self.num_blocks = num_blocks


class SimAgent(AgentCache[BlockHold, HostCopy, int]):
    """What the engine keeps for an agent. Times are picoseconds."""

    __slots__ = ("before", "context", "owner")

    def __init__(self, name: str, before: SimAgent | None = None) -> None:
        super().__init__(name, 0)
        self.before = before  # of the same application, the one that came before it
        self.owner = Owner(name)
        self.context: Context | None = None  # of its latest finished call; which blocks these are is found when needed
