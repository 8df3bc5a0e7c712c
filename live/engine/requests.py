"""What the adapter keeps beside the facts: calls inside vLLM, and agents' caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...policies.execution.agent_cache import AgentCache
from ...traces.apps import AgentId, AppId, CallId
from ...traces.arithmetic import div_ceil
from ...traces.events import Request
from .memory.host_runs import HostHold
from .vllm_surface import Hash, VllmBlock, VllmRequest


class EngineCall:
    """A call that vLLM has not finished. `vllm` is vLLM's own request."""

    __slots__ = ("agent", "arrived_s", "final_blocks", "gpu_hit_tokens", "host_hit_tokens", "id", "last", "loading",
                 "matched_blocks", "request", "seen", "started", "stored", "stores", "target", "vllm")  # fmt: skip

    def __init__(
        self, request: Request, vllm: VllmRequest, agent: LiveAgent, arrived_s: float, block_tokens: int
    ) -> None:
        self.id: CallId = request.id
        self.request = request
        self.vllm = vllm
        self.agent = agent
        self.arrived_s = arrived_s
        self.final_blocks = div_ceil(request.prompt_tokens + request.max_output_tokens, block_tokens)
        self.last = False  # no call of its application follows
        self.started = False  # was admitted before
        self.loading = False  # its blocks are on their way from the host
        self.seen = False  # its first token came
        self.gpu_hit_tokens = 0
        self.host_hit_tokens = 0
        self.matched_blocks: int | None = None  # that vLLM just found it to hit on the GPU
        self.stored = 0  # how many of its first blocks were written through, or had no need to be
        self.stores: list[Store] = []  # its copies under way
        self.target = 0  # tokens that it computes before it decodes, known when it was admitted


class Store:
    """Blocks of a call that are written through."""

    __slots__ = ("held", "kept")

    def __init__(self, held: list[VllmBlock]) -> None:
        self.held = held  # GPU blocks
        self.kept = False  # whether they are held for no running call


class LiveAgent(AgentCache[list[VllmBlock], HostHold, float]):
    """What the engine keeps for an agent: times in seconds, blocks of vLLM's, slots of the host."""

    __slots__ = ("app", "calls", "hashes", "known_blocks", "source", "stalled_by")

    def __init__(self, name: AgentId, app: AppId) -> None:
        super().__init__(name, 0.0)
        self.app = app
        self.hashes: Sequence[Hash] = ()  # of its latest finished call's context
        self.known_blocks = 0  # of its context, as the books of `Apps` have it
        self.source: Any = None  # what vLLM asks when these blocks are registered again
        self.calls = 0  # not finished
        self.stalled_by: CallId | None = None  # the finished call whose tools run
