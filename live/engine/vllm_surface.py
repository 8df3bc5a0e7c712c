"""Every attribute of vLLM's objects that is leaned on: what has to be looked at when vLLM changes.

Hardly any of it is public. Types elsewhere are these; a test walks them through the objects of the installed version,
so that what vLLM renames or takes away fails by its name. What only some of the supported versions have is `Annotated`
so. What is imported from vLLM is not here: that fails by its name anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

Hash = bytes  # of a block's content and of all that is before it


class Varies(NamedTuple):
    """A version that has an attribute, and one that lacks it: so do those beyond each. In between, it is not known."""

    having: str
    lacking: str


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
    session_id: Annotated[str | None, Varies(having="0.28", lacking="0.27")]

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
    def __getitem__(self, at: int, /) -> VllmRequest: ...
    def pop(self) -> VllmRequest: ...
    def popleft(self) -> VllmRequest: ...
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


class VllmCoordinator(Protocol):
    """Of the KV cache groups; asked where there are several, in 0.32 and later."""

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Any, num_encoder_tokens: int,
        total_computed_tokens: int, num_local_computed_tokens: int, num_tokens_main_model: int,
        apply_admission_cap: bool, prefill_end: int,
    ) -> int: ...  # fmt: skip


class VllmKVCacheManager(Protocol):
    block_pool: VllmBlockPool
    coordinator: VllmCoordinator
    allocate_slots: Callable[..., Any]  # is replaced while a plan names victims

    def get_block_ids(self, request_id: str, /) -> tuple[list[int], ...]: ...
    def cache_blocks(self, request: VllmRequest, num_computed_tokens: int, /) -> None: ...
    def get_computed_blocks(self, request: VllmRequest, /) -> tuple[Any, ...]: ...  # first: what it hits
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

    @property
    def outputs(self) -> Sequence[VllmOutput]: ...


class VllmConnectorOutput(Protocol):
    kv_connector_worker_meta: Any | None


# -- configuration: vllm.config, vllm.v1.kv_cache_interface


class VllmModelConfig(Protocol):
    model: str
    served_model_name: str | list[str] | None
    original_max_model_len: int | None
    dtype: Any

    def get_vocab_size(self) -> int: ...


class VllmSchedulerConfig(Protocol):
    long_prefill_token_threshold: int
    async_scheduling: bool | None
    max_num_batched_tokens: int
    max_num_seqs: int
    scheduler_cls: Any


class VllmParallelConfig(Protocol):
    world_size: int
    data_parallel_size: int
    data_parallel_index: int  # of this engine, also where the engines are independent and the size is 1


class VllmTransferConfig(Protocol):
    kv_connector_extra_config: Mapping[str, Any]


class VllmCacheConfig(Protocol):
    enable_prefix_caching: bool


class VllmConfiguration(Protocol):
    model_config: VllmModelConfig
    scheduler_config: VllmSchedulerConfig
    parallel_config: VllmParallelConfig
    kv_transfer_config: VllmTransferConfig
    speculative_config: Any | None
    additional_config: Any
    use_v2_model_runner: bool


class VllmKVCacheSpec(Protocol):
    @property
    def page_size_bytes(self) -> int: ...  # of a layer; where layers differ, the scheduler sees one of them


class VllmKVCacheGroup(Protocol):
    kv_cache_spec: VllmKVCacheSpec
    layer_names: list[str]


class VllmKVCacheTensor(Protocol):
    """Memory of layers, with all blocks."""

    size: int  # bytes
    layers: Annotated[list[str], Varies(having="0.29", lacking="0.27")]  # whose `size` is that of all tensors together


class VllmKVCacheConfig(Protocol):
    num_blocks: int
    kv_cache_tensors: Sequence[VllmKVCacheTensor]  # none where there is no worker
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
    kv_holding_waiting: Annotated[
        VllmRequestQueue, Varies(having="0.31", lacking="0.30")
    ]  # waiting requests that hold blocks
    skipped_waiting: Annotated[
        VllmRequestQueue, Varies(having="0.30", lacking="0.31")
    ]  # with those, others that vLLM passed over
    finished_req_ids: set[str]  # that have ended since the latest step was scheduled
    finished_recving_kv_req_ids: set[str]  # loaded, and not looked at since
    defer_block_free: bool
    _inflight_prefills: set[VllmRequest]

    def _inflight_prefill_reserved_blocks(self) -> int: ...
    def has_requests(self) -> bool: ...


class VllmSchedulerHooks(Protocol):
    """Methods that `live.scheduler` extends."""

    def add_request(self, request: VllmRequest) -> None: ...
    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: Any
    ) -> Iterable[VllmRequest]: ...
    def get_request_counts(self) -> tuple[int, int]: ...
    def schedule(self) -> VllmSchedulerOutput: ...
    def update_from_output(
        self, scheduler_output: VllmSchedulerOutput, model_runner_output: Any
    ) -> Mapping[int, VllmOutputs]: ...
    def shutdown(self) -> None: ...
    def _preempt_request(self, request: VllmRequest, timestamp: float) -> None: ...


# -- the connector: vllm.distributed.kv_transfer.kv_connector.v1.base


class VllmConnectorHooks(Protocol):
    """Methods that `live.connector` has in place of vLLM's."""

    @property
    def requires_kv_delivery(self) -> Annotated[bool, Varies(having="0.27", lacking="0.26")]: ...
    def get_num_new_matched_tokens(self, request: VllmRequest, num_computed_tokens: int) -> tuple[int | None, bool]: ...
    def update_state_after_alloc(
        self, request: VllmRequest, blocks: VllmKVCacheBlocks, num_external_tokens: int
    ) -> None: ...
    def build_connector_meta(self, scheduler_output: VllmSchedulerOutput) -> Any: ...
    def update_connector_output(self, connector_output: VllmConnectorOutput) -> None: ...
    def has_pending_push_work(self) -> bool: ...
    def reset_cache(self) -> bool | None: ...
    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None: ...
    def start_load_kv(self, forward_context: Any) -> None: ...
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]: ...
    def build_connector_worker_meta(self) -> Any: ...
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any) -> None: ...
    def wait_for_save(self) -> None: ...
    def shutdown(self) -> None: ...
    def _get_connector_metadata(self) -> Any: ...  # is asked, and stays vLLM's


class VllmGroupsHooks(Protocol):
    """What a connector has that knows of KV cache groups."""

    def request_finished_all_groups(self, request: VllmRequest, block_ids: tuple[list[int], ...]) -> Any: ...


# -- an engine in this process: vllm.v1.engine.llm_engine, core_client, core, vllm.outputs


class VllmEngineCore(Protocol):
    scheduler: VllmScheduler
    batch_queue: Any | None  # of an asynchronous engine: steps under way, each with its SchedulerOutput in the middle
    step_fn: Callable[[], tuple[Any, bool]]


class VllmCoreClient(Protocol):
    engine_core: VllmEngineCore

    def shutdown(self) -> None: ...


class VllmLLMEngine(Protocol):
    engine_core: VllmCoreClient
    vllm_config: VllmConfiguration
    model_config: VllmModelConfig
    logger_manager: Any  # what is told of each step's statistics

    def add_request(self, request_id: str, prompt: Any, params: Any, arrival_time: float) -> str: ...
    def abort_request(self, request_ids: list[str], internal: bool) -> None: ...
    def step(self) -> Sequence[VllmRequestOutput]: ...
    def reset_prefix_cache(self) -> bool: ...


class VllmCompletion(Protocol):
    token_ids: Sequence[int]
    finish_reason: str | None


class VllmRequestOutput(Protocol):
    request_id: str
    finished: bool
    outputs: Sequence[VllmCompletion]


# -- statistics: vllm.v1.metrics


class VllmPromptTokens(Protocol):
    total: int
    local_cache_hit: int
    external_kv_transfer: int


class VllmIterationStats(Protocol):
    num_generation_tokens: int
    num_preempted_reqs: int
    prompt_token_stats: VllmPromptTokens


class VllmStatsHooks(Protocol):
    """Methods of what `live.client.counters` takes the place of."""

    def record(self, scheduler_stats: Any, iteration_stats: Any) -> None: ...
    def log(self) -> None: ...
    def log_engine_initialized(self) -> None: ...


# -- a server: vllm.v1.engine.core, core_client


class VllmEngineCoreProcess(Protocol):
    input_queue: Any  # wakes the engine that waits for it


class VllmAsyncCoreClient(Protocol):
    async def call_utility_async(self, method: str, op: str, payload: Any, /) -> Any: ...


# -- copies on a GPU: vllm.v1.simple_kv_offload.cuda_mem_ops, a module


class VllmCudaMemOps(Protocol):
    CU_MEMCPY_SRC_ACCESS_ORDER_STREAM: Any
    CU_MEMCPY_SRC_ACCESS_ORDER_ANY: Any

    def build_params(self, sources: Any, targets: Any, stream: Any, order: Any, /) -> Any: ...
    def copy_blocks(self, sources: Any, targets: Any, parameters: Any, /) -> None: ...
    def pin_tensor(self, tensor: Any, /) -> None: ...
