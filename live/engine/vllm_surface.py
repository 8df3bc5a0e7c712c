"""Every attribute of vLLM that the engine's half leans on: what a new version of vLLM has to be asked about.

None of it is public. Types elsewhere are these; a test walks them against the installed version, so that what vLLM
renames or takes away fails by its name. `Annotated` with `Since` or `Until` is what only some supported versions have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

from .host_pool import Hash


class Since(NamedTuple):
    """The first version of vLLM that has an attribute."""

    version: str


class Until(NamedTuple):
    """The first version of vLLM that lacks an attribute."""

    version: str


# -- requests: vllm.v1.request


class VllmSamplingParams(Protocol):
    extra_args: Mapping[str, Any] | None


class VllmRequest(Protocol):
    request_id: str
    arrival_time: float  # wall time, in seconds
    sampling_params: VllmSamplingParams | None  # None of what generates nothing
    max_tokens: int
    block_hashes: Sequence[Hash]  # of its full blocks
    status: Any  # a RequestStatus
    num_computed_tokens: int
    num_output_placeholders: int  # tokens of steps in flight
    num_preemptions: int

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...


class VllmRequestQueue(Protocol):
    """The queue of the policy `fcfs`, a deque."""

    def __iter__(self) -> Iterator[VllmRequest]: ...
    def __len__(self) -> int: ...
    def clear(self) -> None: ...
    def extend(self, requests: Iterable[VllmRequest], /) -> None: ...
    def extendleft(self, requests: Iterable[VllmRequest], /) -> None: ...
    def remove(self, request: VllmRequest, /) -> None: ...
    def remove_request(self, request: VllmRequest, /) -> None: ...
    def prepend_request(self, request: VllmRequest, /) -> None: ...


# -- blocks: vllm.v1.core.kv_cache_utils, block_pool, kv_cache_manager


class VllmBlock(Protocol):
    block_id: int
    ref_cnt: int
    next_free_block: Any  # a block, of those in the free queue

    @property
    def block_hash(self) -> Any: ...


class VllmFreeQueue(Protocol):
    """Blocks without a reference, the next to be handed out first."""

    fake_free_list_head: VllmBlock
    fake_free_list_tail: VllmBlock

    def remove(self, block: VllmBlock, /) -> None: ...
    def popleft_n(self, n: int, /) -> list[VllmBlock]: ...
    def prepend_n(self, blocks: list[VllmBlock], /) -> None: ...


class VllmBlockPool(Protocol):
    num_gpu_blocks: int  # with the null block
    enable_kv_cache_events: bool
    free_block_queue: VllmFreeQueue

    def get_num_free_blocks(self) -> int: ...
    def get_cached_block(self, block_hash: Hash, kv_cache_group_ids: list[int], /) -> list[VllmBlock] | None: ...
    def touch(self, blocks: Sequence[VllmBlock], /) -> None: ...
    def get_new_blocks(self, num_blocks: int, /) -> list[VllmBlock]: ...
    def free_blocks(self, ordered_blocks: Iterable[VllmBlock], /) -> None: ...
    def evict_blocks(self, block_ids: set[int], /) -> None: ...
    def cache_full_blocks(
        self,
        request: Any,  # which is asked for its `block_hashes`, and for more only where events are published
        blocks: list[VllmBlock | None],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        /,
    ) -> None: ...


class VllmKVCacheManager(Protocol):
    block_pool: VllmBlockPool
    allocate_slots: Callable[..., Any]  # is replaced while a plan names victims

    def get_block_ids(self, request_id: str, /) -> tuple[list[int], ...]: ...
    def cache_blocks(self, request: VllmRequest, num_computed_tokens: int, /) -> None: ...
    def free(self, request: VllmRequest, /) -> None: ...
    def reset_prefix_cache(self) -> bool: ...


class VllmKVCacheBlocks(Protocol):
    """What a request was given."""

    blocks: Sequence[Sequence[VllmBlock]]  # by group


# -- a step: vllm.v1.core.sched.output, vllm.v1.engine, vllm.v1.outputs


class VllmSchedulerOutput(Protocol):
    num_scheduled_tokens: Mapping[str, int]  # by request
    total_num_scheduled_tokens: int


class VllmOutput(Protocol):
    """What a step brought one request."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: Any | None


class VllmOutputs(Protocol):
    """What a step brought the requests of one client."""

    outputs: list[Any]  # of VllmOutput


class VllmConnectorOutput(Protocol):
    kv_connector_worker_meta: Any | None


# -- configuration: vllm.config, vllm.v1.kv_cache_interface


class VllmModelConfig(Protocol):
    model: str
    served_model_name: str | list[str] | None
    original_max_model_len: int | None


class VllmSchedulerConfig(Protocol):
    long_prefill_token_threshold: int
    async_scheduling: bool | None


class VllmParallelConfig(Protocol):
    world_size: int
    data_parallel_size: int


class VllmTransferConfig(Protocol):
    kv_connector_extra_config: Mapping[str, Any]


class VllmCacheConfig(Protocol):
    enable_prefix_caching: bool


class VllmConfiguration(Protocol):
    model_config: VllmModelConfig
    scheduler_config: VllmSchedulerConfig
    parallel_config: VllmParallelConfig
    kv_transfer_config: VllmTransferConfig
    additional_config: Any


class VllmKVCacheSpec(Protocol):
    @property
    def page_size_bytes(self) -> int: ...


class VllmKVCacheGroup(Protocol):
    kv_cache_spec: VllmKVCacheSpec
    layer_names: list[str]


class VllmKVCacheConfig(Protocol):
    num_blocks: int
    kv_cache_groups: Sequence[VllmKVCacheGroup]


# -- the scheduler: vllm.v1.core.sched.scheduler, async_scheduler


class VllmScheduler(Protocol):
    """Without what `live.scheduler` adds."""

    vllm_config: VllmConfiguration
    kv_cache_config: VllmKVCacheConfig
    cache_config: VllmCacheConfig
    policy: Any  # a SchedulingPolicy
    connector: Any
    block_size: int  # tokens
    hash_block_size: int
    max_model_len: int
    max_num_scheduled_tokens: int
    max_num_running_reqs: int
    kv_cache_manager: VllmKVCacheManager
    requests: Mapping[str, VllmRequest]
    running: list[VllmRequest]
    waiting: VllmRequestQueue
    kv_holding_waiting: Annotated[VllmRequestQueue, Since("0.31")]  # waiting requests that hold blocks
    skipped_waiting: Annotated[VllmRequestQueue, Until("0.31")]  # with those, others that vLLM passed over
    finished_recving_kv_req_ids: set[str]  # loaded, and not looked at since
    defer_block_free: bool
    _inflight_prefills: Collection[VllmRequest]

    def _inflight_prefill_reserved_blocks(self) -> int: ...
    def _preempt_request(self, request: VllmRequest, timestamp: float, /) -> None: ...
    def add_request(self, request: VllmRequest, /) -> None: ...
    def finish_requests(self, request_ids: Any, finished_status: Any, /) -> Any: ...
    def get_request_counts(self) -> tuple[int, int]: ...
    def has_requests(self) -> bool: ...
    def schedule(self) -> VllmSchedulerOutput: ...
    def update_from_output(self, scheduler_output: VllmSchedulerOutput, model_runner_output: Any, /) -> Any: ...
    def shutdown(self) -> None: ...
