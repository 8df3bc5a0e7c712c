"""vLLM's scheduler with a policy: `--scheduler-cls tokencake.live.scheduler.TokencakeAsyncScheduler`.

Each method lets vLLM do what it does and tells the adapter. vLLM's rules stay vLLM's: a plan reaches them through the
order of its queues, the references of its blocks and the hooks of its connector. Attributes of our own are called
`tokencake…`, since vLLM's scheduler has a `policy`, a `connector` and a `waiting` already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from ..policies.run_settings import control_token, server_settings
from ..traces.errors import EngineError
from .connector import TokencakeConnector
from .engine.adapter import Adapter
from .engine.control.control import Control
from .engine.control.engine_core import EngineHandle
from .engine.control.engine_limits import about, check_supported, host_slots, longest_context_tokens
from .engine.control.kv_groups import page_rules
from .engine.control.stall import Watch
from .engine.control.versions import check_vllm
from .engine.queues import Queues
from .engine.vllm_surface import VllmOutputs, VllmRequest, VllmSchedulerOutput

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)


class TokencakeMixin(_Base):
    """What both of vLLM's schedulers get."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        version = check_vllm()
        super().__init__(*args, **kwargs)
        if not isinstance(self.connector, TokencakeConnector):
            raise EngineError(
                "the scheduler of Tokencake needs its KV connector: expected kv_connector TokencakeConnector of"
                f" tokencake.live.connector in the KV transfer config, got {type(self.connector).__name__}"
            )
        check_supported(self)
        if self.vllm_config.model_config.original_max_model_len == -1:  # vLLM fits the limit to the blocks
            self.max_model_len = longest_context_tokens(self)
        # Blocks of a preempted call may still be written by the step in flight. vLLM keeps them back then, for
        # connectors whose loads could overtake that step; ours begin when the step has ended (see `copier`).
        self.defer_block_free = False
        slots = host_slots(self.vllm_config, self.kv_cache_config)
        self.tokencake = Adapter(self, page_rules(self, version), slots, about(self, version))
        self.connector.adapter = self.tokencake
        self._tokencake_queues = Queues(self, self.tokencake, lambda: create_request_queue(SchedulingPolicy.FCFS))
        self._tokencake_allocate: Callable[..., Any] | None = None
        told = server_settings(self.vllm_config.additional_config)
        control_token(told, [])  # one that is none is found before the model is loaded
        watch = self._tokencake_watch = Watch(told.stall_s)
        control = self._tokencake_control = Control(self.tokencake, watch, told.client_timeout_s)
        self._tokencake_engine = EngineHandle.find(control)
        if told.run is not None:
            control.begin_own(told.run)

    # -- a step

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests. Those that a policy holds back wait, too: a long prompt is cut for them."""
        running, waiting = super().get_request_counts()
        return running, waiting + self._tokencake_queues.withheld

    def schedule(self, *args: Any, **kwargs: Any) -> VllmSchedulerOutput:
        adapter, queues = self.tokencake, self._tokencake_queues
        self._tokencake_control.look()
        plan = adapter.boundary()
        if bool(plan.preempt) != (self._tokencake_allocate is not None):
            self._tokencake_choose_victims(bool(plan.preempt))
        laid = queues.lay(plan)
        try:
            output: VllmSchedulerOutput = super().schedule(*args, **kwargs)
        finally:
            if laid is not None:
                queues.restore(laid)
        waiting = not self.running and self.get_request_counts()[1] > 0
        adapter.scheduled(output, waiting)
        if self._tokencake_engine.has_own_process:  # else whoever drives it looks, and wakes it
            self._tokencake_look_out(output)
            self._tokencake_engine.wake_at(adapter.wake_s(), adapter.now_s)
        return output

    def _tokencake_look_out(self, output: VllmSchedulerOutput) -> None:
        """Say it, once, when calls wait and nothing happens."""
        watch, now_s = self._tokencake_watch, monotonic()
        if output.total_num_scheduled_tokens or not self.requests or self.tokencake.computing:
            watch.happened(now_s)
        elif (said := watch.look(now_s, self, self.tokencake)) is not None:
            logger.error("%s", said)

    def update_from_output(
        self, scheduler_output: VllmSchedulerOutput, model_runner_output: Any
    ) -> Mapping[int, VllmOutputs]:
        self.tokencake.came()
        if scheduler_output.total_num_scheduled_tokens:
            self._tokencake_watch.happened(monotonic())
        outputs: Mapping[int, VllmOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        if self.finished_req_ids:  # one that was preempted with tokens in flight may have waited
            self._tokencake_queues.version += 1
        self.tokencake.stepped(scheduler_output, outputs)
        return outputs

    def _preempt_request(self, request: VllmRequest, *args: Any, **kwargs: Any) -> None:
        # with asynchronous scheduling, tokens in flight are still delivered
        generated = request.num_output_tokens + request.num_output_placeholders
        super()._preempt_request(request, *args, **kwargs)
        self._tokencake_queues.version += 1
        self.tokencake.preempted(request, generated)

    def shutdown(self) -> None:
        try:
            self._tokencake_control.close()
        finally:
            super().shutdown()

    # -- requests

    def add_request(self, request: VllmRequest) -> None:
        self._tokencake_control.look()
        super().add_request(request)
        self._tokencake_queues.version += 1
        if self.requests.get(request.request_id) is request:  # else: more input of one that is there
            self._tokencake_watch.happened(monotonic())
            self.tokencake.arrived(request)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> Iterable[VllmRequest]:
        given_up: Iterable[VllmRequest] = super().finish_requests(request_ids, finished_status)
        self._tokencake_queues.version += 1
        self.tokencake.aborted(given_up)
        return given_up

    def unload_last(self) -> bool:
        """The waiting call that was loaded last gives its blocks up; they stay cached. False if there is none."""
        loading, ended = RequestStatus.WAITING_FOR_REMOTE_KVS, self.finished_recving_kv_req_ids
        loaded = [
            request
            for request in self._tokencake_queues
            if request.num_computed_tokens and (request.status != loading or request.request_id in ended)
        ]
        if not loaded:
            return False
        request = loaded[-1]
        if request.status == loading:  # vLLM has not looked at it since its load ended
            ended.remove(request.request_id)
            request.status = RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING
        self.kv_cache_manager.free(request)
        request.num_computed_tokens = 0
        self._inflight_prefills.discard(request)
        self._tokencake_queues.requeue(request)
        return True

    # -- whom to preempt

    def _tokencake_choose_victims(self, chosen: bool) -> None:
        """vLLM preempts the last running request when `allocate_slots` says no; a plan may name another."""
        manager = self.kv_cache_manager
        if not chosen:
            manager.allocate_slots = self._tokencake_allocate
            self._tokencake_allocate = None
            return
        allocate = self._tokencake_allocate = manager.allocate_slots
        adapter, queues = self.tokencake, self._tokencake_queues

        def allocate_slots(request: VllmRequest, *args: Any, **kwargs: Any) -> Any:
            blocks = allocate(request, *args, **kwargs)
            if blocks is None and request.status == RequestStatus.RUNNING:
                queues.give_way(request, adapter.laid.preempt)
            return blocks

        manager.allocate_slots = allocate_slots


class TokencakeScheduler(TokencakeMixin, Scheduler):
    """For engines with synchronous scheduling, CPUs among them."""


class TokencakeAsyncScheduler(TokencakeMixin, AsyncScheduler):
    """For engines with asynchronous scheduling, vLLM's default on GPUs."""
