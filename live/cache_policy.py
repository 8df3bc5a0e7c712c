"""vLLM's cache policy that asks a policy of ours: the host half of it, in vLLM's own CPU tier, without our scheduler.

Named in the KV transfer config of vLLM's own `OffloadingConnector`: `"kv_connector_extra_config": {"eviction_policy":
"TokencakeCachePolicy", "cache_policy_module_path": "tokencake.live.cache_policy", …}`. What the policy is comes from
`additional_config`, as for our scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.v1.kv_offload.cpu.policies.base import CachePolicy
from vllm.v1.kv_offload.cpu.policies.lru import LRUCachePolicy

from .engine.control.versions import check_vllm
from .host_tier.abilities import check_tier
from .host_tier.begin import begun
from .host_tier.chunks import Chunks
from .host_tier.making import making
from .host_tier.offload_surface import Evicted, Key, VllmReqContext


class TokencakeCachePolicy(CachePolicy):  # type: ignore[misc]  # vLLM need not be installed
    """vLLM's LRU, but for what the policy holds or wants to go first."""

    def __init__(self, cache_capacity: int) -> None:
        check_tier(check_vllm())
        super().__init__(cache_capacity)
        self._inner = LRUCachePolicy(cache_capacity)
        self._chunks = Chunks(self._inner)
        self.tokencake = begun(making(), self._chunks, cache_capacity)

    def get(self, key: Key) -> Any:
        return self._inner.get(key)

    def insert(self, key: Key, chunk: Any, *req_context: VllmReqContext) -> None:
        self._inner.insert(key, chunk, *req_context)

    def remove(self, key: Key) -> None:
        self._inner.remove(key)

    def touch(self, keys: Iterable[Key], req_context: VllmReqContext) -> None:
        self._inner.touch(keys, req_context)

    def on_store_miss(self, keys: Iterable[Key], req_context: VllmReqContext) -> None:
        self.tokencake.stores(req_context.req_id)
        self._inner.on_store_miss(keys, req_context)

    def on_request_access(self, keys: Iterable[Key], req_context: VllmReqContext) -> None:
        """vLLM 0.33 tells of it; what it means is LRU's."""
        self._inner.on_request_access(keys, req_context)

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[Key]],
        insertion_only_keys: set[Key],
        reused_keys: set[Key],
        req_context: VllmReqContext,
    ) -> None:
        self._inner.on_request_finished(key_groups, insertion_only_keys, reused_keys, req_context)
        self.tokencake.ended(req_context.req_id)

    def evict(self, n: int, protected: set[Key]) -> Evicted | None:
        return self.tokencake.evict(n, protected) if n else []

    def clear(self) -> None:
        self.tokencake.cleared()

    def mark_evictable(self, key: Key) -> None:
        self._chunks.mark_evictable(key)

    def mark_non_evictable(self, key: Key) -> None:
        self._chunks.mark_non_evictable(key)
