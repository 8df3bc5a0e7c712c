"""What is leaned on of vLLM's `OffloadingConnector` and its cache policies, beside `live.engine.vllm_surface`.

vllm.v1.kv_offload.cpu.policies.base and vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ..engine.vllm_surface import VllmRequest

Key = bytes  # of a chunk: its content and all that is before it, and its KV cache group
Evicted = list[tuple[Key, Any]]


class VllmReqContext(Protocol):
    req_id: str


class VllmCachePolicy(Protocol):
    """A `CachePolicy`: chunks that lie in the tier, and which of them go."""

    def get(self, key: Key, /) -> Any | None: ...
    def insert(self, key: Key, chunk: Any, /, *req_context: VllmReqContext) -> None: ...  # has a context since 0.33
    def remove(self, key: Key, /) -> None: ...
    def touch(self, keys: Iterable[Key], req_context: VllmReqContext, /) -> None: ...
    def on_store_miss(self, keys: Iterable[Key], req_context: VllmReqContext, /) -> None: ...
    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[Key]],
        insertion_only_keys: set[Key],
        reused_keys: set[Key],
        req_context: VllmReqContext,
        /,
    ) -> None: ...
    def evict(self, n: int, protected: set[Key], /) -> Evicted | None: ...
    def clear(self) -> None: ...
    def mark_evictable(self, key: Key, /) -> None: ...
    def mark_non_evictable(self, key: Key, /) -> None: ...


class VllmOffloadGroup(Protocol):
    """Of a request, in one KV cache group."""

    offload_keys: list[Key]  # of its full chunks, from the first on
    num_hit_chunks: int  # on the GPU and in the tier, when it was last looked up


class VllmOffloadState(Protocol):
    """A request, from its arrival until its last transfer has ended."""

    req: VllmRequest
    num_locally_computed_tokens: int  # that hit on the GPU, when it was last looked up

    @property
    def group_states(self) -> Sequence[VllmOffloadGroup]: ...


class VllmGroupOffloadConfig(Protocol):
    @property
    def tokens_per_chunk(self) -> int: ...
    @property
    def sliding_window_size_in_chunks(self) -> int | None: ...  # None: full attention


class VllmOffloadConfig(Protocol):
    @property
    def kv_group_configs(self) -> Sequence[VllmGroupOffloadConfig]: ...
    @property
    def blocks_per_chunk(self) -> int: ...


class VllmOffloadScheduler(Protocol):
    """The scheduler's side of the connector."""

    config: VllmOffloadConfig
    _req_status: dict[str, VllmOffloadState]  # by request, in the order of their arrivals
