"""vLLM's KV connector for a policy's copies: offload now, upload now, load on demand.

Named in the KV transfer config: `{"kv_connector": "TokencakeConnector", "kv_connector_module_path":
"tokencake.live.connector", "kv_role": "kv_both", "kv_connector_extra_config": {"host_gib": 16}}`. With vLLM's own
scheduler it does nothing. Its scheduler side hands vLLM's questions to the adapter and the adapter's jobs to the
workers; its worker side copies (`copier`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from .copier.copier import Copier, make_copier
from .copier.jobs import Acknowledgements, CopyJob, Ended
from .engine.adapter import Adapter
from .engine.control.engine_limits import block_bytes_of_rank, host_slots, ranks
from .engine.vllm_surface import (
    VllmConfiguration,
    VllmConnectorOutput,
    VllmKVCacheBlocks,
    VllmKVCacheConfig,
    VllmRequest,
    VllmSchedulerOutput,
)

IDLE_WAIT_S = 0.001  # a step that computes nothing waits so long for a copy: an idle engine must not spin


@dataclass(slots=True)
class Jobs(KVConnectorMetadata):
    """What the scheduler tells the workers at a step."""

    jobs: list[CopyJob] = field(default_factory=list)
    idle: bool = False  # whether nothing is computed


@dataclass(slots=True)
class Done(KVConnectorWorkerMetadata):
    """What the workers tell the scheduler: for each job that ended, how many workers ended it, and how fast."""

    workers: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)  # of the slowest of them; may be untold

    def aggregate(self, other: KVConnectorWorkerMetadata) -> Done:
        assert isinstance(other, Done)
        workers, seconds = dict(self.workers), dict(self.seconds)
        for job, count in other.workers.items():
            workers[job] = workers.get(job, 0) + count
        for job, took_s in other.seconds.items():
            seconds[job] = max(seconds.get(job, 0.0), took_s)
        return Done(workers, seconds)


class TokencakeConnector(KVConnectorBase_V1, SupportsHMA):
    """Both sides: vLLM makes one in the scheduler and one in each worker.

    `SupportsHMA`: vLLM keeps its KV cache groups apart; without that it has all layers keep all tokens.
    """

    def __init__(
        self, vllm_config: VllmConfiguration, role: KVConnectorRole, kv_cache_config: VllmKVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._vllm = vllm_config
        self._kv_cache = kv_cache_config
        self.adapter: Adapter | None = None  # scheduler side; set by our scheduler
        self._acknowledgements = Acknowledgements(ranks(vllm_config))
        self._copier: Copier | None = None  # worker side
        self._waiting_requests: dict[int, str] = {}  # by job, the request that waits for it
        self._done: list[Ended] = []

    @property
    def requires_kv_delivery(self) -> bool:
        """Copies are a cache: a dropped one costs time, nothing else."""
        return False

    # -- scheduler side

    def get_num_new_matched_tokens(self, request: VllmRequest, num_computed_tokens: int) -> tuple[int | None, bool]:
        return (0, False) if self.adapter is None else self.adapter.matched(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: VllmRequest, blocks: VllmKVCacheBlocks, num_external_tokens: int
    ) -> None:
        if self.adapter is not None:
            self.adapter.allocated(request, blocks.blocks, num_external_tokens)

    def request_finished_all_groups(
        self, request: VllmRequest, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Nobody waits for a finished request's blocks: what is copied of them is held by the copy."""
        return False, None

    def build_connector_meta(self, scheduler_output: VllmSchedulerOutput) -> Jobs:
        jobs = [] if self.adapter is None else self.adapter.take_jobs()
        return Jobs(jobs, not scheduler_output.total_num_scheduled_tokens)

    def update_connector_output(self, connector_output: VllmConnectorOutput) -> None:
        done = connector_output.kv_connector_worker_meta
        if self.adapter is not None and done is not None:
            self.adapter.acknowledge(self._acknowledgements.complete(done.workers, done.seconds))

    def has_pending_push_work(self) -> bool:
        """Keeps an engine without requests stepping while copies are under way or the policy is to be asked."""
        return self.adapter is not None and self.adapter.has_work()

    def reset_cache(self) -> bool:
        """vLLM empties its caches, since the weights changed, say: what the host has is of no use then, either."""
        return self.adapter is None or self.adapter.forget_contents()

    # -- worker side

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        extra = self._vllm.kv_transfer_config.kv_connector_extra_config
        slots = host_slots(self._vllm, self._kv_cache)
        block_bytes = block_bytes_of_rank(self._kv_cache)
        self._copier = make_copier(kv_caches, self._kv_cache.num_blocks, slots, extra.get("link_gbps"), block_bytes)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begin with the step's copies, stores and loads alike."""
        told = self._get_connector_metadata()
        assert isinstance(told, Jobs)
        if self._copier is None:
            return
        if told.jobs:
            self._waiting_requests.update({job.id: job.request for job in told.jobs if job.request is not None})
            self._copier.submit(told.jobs)
        if told.idle:
            self._copier.wait(IDLE_WAIT_S)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """The requests whose loads have ended."""
        if self._copier is None:
            return None, None
        ended = self._copier.finished()
        self._done.extend(ended)
        waiting = self._waiting_requests
        loaded = {waiting.pop(job) for job, _ in ended if job in waiting}
        return None, loaded or None

    def build_connector_worker_meta(self) -> Done | None:
        if not self._done:
            return None
        done, self._done = self._done, []
        return Done({job: 1 for job, _ in done}, dict(done))

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded layer by layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved layer by layer."""

    def wait_for_save(self) -> None:
        """Sources stay held until the scheduler knows that a copy has ended: there is nothing to wait for."""

    def shutdown(self) -> None:
        if self._copier is not None:
            self._copier.close()
            self._copier = None
