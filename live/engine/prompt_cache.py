"""What is cached of the prompts of calls that wait: what vLLM is to load of them, and what the policy is told."""

from __future__ import annotations

from collections.abc import Mapping

from ...policies.interface import Hits
from ...traces.apps import CallId
from ...traces.arithmetic import div_ceil
from .memory.copies import Copies
from .memory.gpu_pool import GpuPool, idle
from .requests import EngineCall
from .stores import Stores
from .vllm_surface import VllmRequest, VllmScheduler


class PromptCache:
    """Looks prompts up, on the GPU first and behind that on the host. `calls` are those of a run, by name."""

    def __init__(
        self,
        scheduler: VllmScheduler,
        gpu: GpuPool,
        copies: Copies,
        calls: Mapping[CallId, EngineCall],
        stores: Stores,
    ) -> None:
        self._scheduler = scheduler
        self._gpu = gpu
        self._copies = copies
        self._calls = calls
        self._stores = stores
        self._block_tokens = gpu.block_tokens

    def to_load(self, call: EngineCall, hit_tokens: int, skip: bool) -> tuple[int | None, bool]:
        """How many tokens of a waiting call to load from the host behind those that hit on the GPU, as vLLM asks.

        None: not now. Either something is on its way for it, or, with `skip`, it does not fit and lets those behind it
        try.
        """
        request = call.vllm
        if call.stores or (call.agent.uploads and self._copies.uploading(call.agent)):
            return None, False
        hashes = request.block_hashes
        hits = call.matched_blocks = hit_tokens // self._block_tokens
        limit = (request.num_tokens - 1) // self._block_tokens
        upto = self._copies.host_end(hashes, hits, limit)
        if self._stores.extent and self._copies.coming(hashes, upto, limit):
            return None, False
        if upto > hits and self._copies.copying(hashes, hits, upto):
            return None, False
        if skip and not self._fits(request, hits, upto):
            return None, False
        return (upto - hits) * self._block_tokens, upto > hits

    def _fits(self, request: VllmRequest, hits: int, upto: int) -> bool:
        """Whether there is room for all of a request that nothing was taken for yet, as vLLM is going to ask.

        If its blocks from `hits` to `upto` are to be loaded: also whether that leaves what the loaded calls, and those
        in the middle of their prompts, yet need.
        """
        free = self._gpu.free
        taken = idle(self._gpu.found(request.block_hashes, 0, hits))
        if div_ceil(request.num_tokens, self._block_tokens) - hits + taken > free:
            return False
        if upto == hits:
            return True
        return upto - hits + taken <= free - self._scheduler._inflight_prefill_reserved_blocks()

    def hits(self, call_id: CallId) -> Hits:
        """What is cached of a waiting call's prompt."""
        call = self._calls[call_id]
        request = call.vllm
        if request.num_computed_tokens:
            held = self._scheduler.kv_cache_manager.get_block_ids(request.request_id)[0]
            return Hits(len(held), 0, 0)
        hashes = request.block_hashes
        limit = (request.num_tokens - 1) // self._block_tokens
        blocks = self._gpu.found(hashes, 0, limit)
        gpu = len(blocks)
        return Hits(gpu, idle(blocks), self._copies.host_end(hashes, gpu, limit) - gpu)

    def shared_blocks(self, call_id: CallId) -> int:
        """Blocks of a waiting call's prompt that are held."""
        request = self._calls[call_id].vllm
        blocks = self._gpu.found(request.block_hashes, 0, (request.num_tokens - 1) // self._block_tokens)
        return len(blocks) - idle(blocks)
