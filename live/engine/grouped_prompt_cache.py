"""What is cached of the prompts of calls that wait, for models with several KV cache groups."""

from __future__ import annotations

from collections.abc import Mapping

from ...policies.interface import Hits
from ...traces.apps import CallId
from .memory.copies import Copies
from .memory.gpu_pool import GpuPool, idle
from .memory.grouped_gpu_pool import GroupedGpuPool
from .prompt_cache import PromptCache
from .requests import EngineCall
from .stores import Stores
from .vllm_surface import VllmBlock, VllmRequest, VllmScheduler


class GroupedPromptCache(PromptCache):
    """Hits are blocks of the prompt, up to a boundary at which every group hits; what is held or idle are pages."""

    _gpu: GroupedGpuPool

    def _fits(self, request: VllmRequest, hits: int, upto: int) -> bool:
        """As vLLM counts: what windows need no more is not needed, whatever the prompt's length."""
        manager, free = self._scheduler.kv_cache_manager, self._gpu.free
        found = manager.get_computed_blocks(request)[0].blocks
        computed, local = upto * self._block_tokens, hits * self._block_tokens

        def needed(tokens: int, *, whole: bool) -> int:
            return manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=tokens,
                new_computed_blocks=found,
                num_encoder_tokens=0,
                total_computed_tokens=computed,
                num_local_computed_tokens=local,
                num_tokens_main_model=tokens,
                apply_admission_cap=whole,
                prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
            )

        if needed(request.num_tokens, whole=True) > free:
            return False
        if upto == hits:
            return True
        return needed(computed, whole=False) <= free - self._scheduler._inflight_prefill_reserved_blocks()

    def hits(self, call_id: CallId) -> Hits:
        call = self._calls[call_id]
        request = call.vllm
        if request.num_computed_tokens:
            return Hits(request.num_computed_tokens // self._block_tokens, 0, 0)
        pages, gpu, limit = self._found(request)
        return Hits(gpu, idle(pages), self._copies.host_end(request.block_hashes, gpu, limit) - gpu)

    def shared_blocks(self, call_id: CallId) -> int:
        """Pages of a waiting call's prompt that are held."""
        pages, _, _ = self._found(self._calls[call_id].vllm)
        return len(pages) - idle(pages)

    def _found(self, request: VllmRequest) -> tuple[list[VllmBlock], int, int]:
        """The pages that a request's hit on the GPU needs, where it ends, and where it would at most."""
        limit = (request.num_tokens - 1) // self._block_tokens
        boundary = self._gpu.hit(request.block_hashes, limit)
        return self._gpu.pages(request.block_hashes, boundary), boundary, limit


def prompt_cache(
    scheduler: VllmScheduler, gpu: GpuPool, copies: Copies, calls: Mapping[CallId, EngineCall], stores: Stores
) -> PromptCache:
    """That of a model with the pool's groups."""
    kind = GroupedPromptCache if isinstance(gpu, GroupedGpuPool) else PromptCache
    return kind(scheduler, gpu, copies, calls, stores)
