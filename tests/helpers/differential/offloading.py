"""vLLM's scheduler with its own OffloadingConnector, scheduler side, in virtual time: its workers are a link.

A store begins when the step has ended whose blocks it copies, a load with the step that asked for it, and both are
acknowledged at the end of a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from oracle.play import Clients, step_ps
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.kv_offload.base import make_offload_key
from vllm.v1.outputs import KVConnectorOutput

from differential import vllm_driver  # sets vLLM's environment before it is imported
from differential.vllm_driver import VllmEngine, finished
from differential.workloads import Workload
from tokencake.policies.interface import Extent
from tokencake.sim.engine.memory.link import Link
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Call, CallId

CHUNK_BYTES = 4096  # vLLM rounds the bytes of a block up to pages


class Copied(NamedTuple):
    """A store or a load, as it was scheduled."""

    at_ps: int
    store: bool
    call: CallId
    blocks: tuple[int, ...]  # positions in the call's context


class Offloading:
    """vLLM's scheduler with its OffloadingConnector, and a link instead of workers.

    `extra` goes into the connector's config, `additional` into the engine's.
    """

    def __init__(
        self,
        made: Workload,
        extent: Extent,
        monkeypatch: pytest.MonkeyPatch,
        extra: dict[str, Any] | None = None,
        additional: dict[str, Any] | None = None,
    ) -> None:
        self.applications, self.machine = made
        transfer = KVTransferConfig(
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            kv_connector_extra_config={
                "cpu_bytes_to_use": self.machine.host_blocks * CHUNK_BYTES,
                "offload_prompt_only": extent == "prompts",
                **(extra or {}),
            },
        )
        plain = vllm_driver._config

        def with_transfer(machine: Machine) -> Any:
            config = plain(machine)
            config.kv_transfer_config = transfer
            config.additional_config = additional or {}
            return config

        monkeypatch.setattr(vllm_driver, "_config", with_transfer)
        self.engine = VllmEngine(self.applications, self.machine)
        self.scheduler: Any = self.engine.scheduler
        self.side = self.scheduler.connector.connector_scheduler
        assert self.side.manager._num_chunks == self.machine.host_blocks
        self._cap_loads()
        self.link = Link(self.machine.timing())
        self.ended: dict[int, int] = {}
        self.loaded: set[str] = set()
        self.unsubmitted: list[tuple[int, int]] = []  # stores of the step before: job, blocks
        self.copied: list[Copied] = []
        self.hits: list[tuple[CallId, int]] = []
        self.keys: dict[CallId, list[bytes]] = {}
        self.preempted = 0
        self.now_ps = 0

    def _cap_loads(self) -> None:
        """Never the last token's block: vLLM's own parameter for it."""
        ask, size = self.side.get_num_new_matched_tokens, self.machine.block_tokens

        def capped(request: Any, computed: int, max_num_new_tokens: int | None = None) -> Any:
            del max_num_new_tokens
            return ask(request, computed, (request.num_tokens - 1) // size * size - computed)

        self.side.get_num_new_matched_tokens = capped

    def add(self, call: Call, now_ps: int) -> None:
        """A call arrives."""
        self.engine.add(call)

    def run(self) -> None:
        clients = Clients(self.applications, self.machine.timing().client_ps)
        now_ps = 0
        while clients.unfinished:
            self.now_ps = now_ps
            for call in clients.arrivals(now_ps):
                self.add(call, now_ps)
            output = self.scheduler.schedule()
            schedule = self.engine.described(output)
            self.preempted += len(schedule.preempted)
            self.hits += schedule.admitted
            sampling = self.engine.sampling(output)
            self._begin(output, now_ps)
            if schedule.pieces:
                now_ps += step_ps(schedule, self.machine)
            elif not schedule.preempted and not self._at_once(now_ps):
                ends = [self.link.next_end_ps] if self.link.under_way else []
                due = [clients._due[0][0]] if clients._due else []
                now_ps = max(now_ps, min(at for at in (*ends, *due) if at is not None))
            self.link.finish(now_ps)
            ran = self.engine.sampled(output, sampling)
            ended, self.ended = self.ended, {}
            loaded, self.loaded = self.loaded, set()
            meta = OffloadingWorkerMetadata(completed_jobs=ended) if ended else None
            ran.kv_connector_output = KVConnectorOutput(finished_recving=loaded or None, kv_connector_worker_meta=meta)
            for call_id in finished(self.scheduler.update_from_output(output, ran)):
                clients.finish(call_id, now_ps)
            for name, request in self.scheduler.requests.items():
                self.keys[name] = list(request.block_hashes)
            self._store_pending(now_ps)

    def _at_once(self, now_ps: int) -> bool:
        return self.link.under_way != [] and (self.link.next_end_ps or 0) <= now_ps

    def _begin(self, output: Any, now_ps: int) -> None:
        """What workers do with a step's metadata: loads begin now, its stores with the next step."""
        told = output.kv_connector_metadata
        for job, transfer in told.load_jobs.items():
            self._note(job, now_ps, False, transfer)
            self.link.to_gpu(len(transfer.dst_spec.block_ids), now_ps, self._done(job, transfer.req_id))
        for job, transfer in told.store_jobs.items():
            self._note(job, now_ps, True, transfer)
            self.unsubmitted.append((job, len(transfer.src_spec.block_ids)))

    def _store_pending(self, now_ps: int) -> None:
        for job, blocks in self.unsubmitted:
            self.link.to_host(blocks, now_ps, self._done(job, None))
        self.unsubmitted = []

    def _done(self, job: int, request: str | None) -> Any:
        def done(at_ps: int) -> None:
            del at_ps
            self.ended[job] = 1
            if request is not None:
                self.loaded.add(request)

        return done

    def _note(self, job: int, now_ps: int, store: bool, transfer: Any) -> None:
        name = transfer.req_id
        hashes = self.side._req_status[name].req.block_hashes
        keys = self.side._jobs[job].keys
        blocks = tuple(at for at, content in enumerate(hashes) if make_offload_key(content, 0) in keys)
        self.keys[name] = list(hashes)
        self.copied.append(Copied(now_ps, store, name, blocks))
