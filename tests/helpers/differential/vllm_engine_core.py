"""vLLM's own engine loop in virtual time: `EngineCore.step` and `step_with_batch_queue` over a worker without a model.

It holds `oracle.play`, which says when steps are scheduled and whose arrival they see, to the real thing.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from oracle.play import Clients, step_ps
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.outputs import ModelRunnerOutput

from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application, CallId

from .vllm_driver import VllmEngine, finished


class Executed(NamedTuple):
    """A step that a worker was given."""

    scheduled_ps: int
    start_ps: int
    end_ps: int
    tokens: dict[CallId, int]


@dataclass(slots=True)
class Future:
    """A step's outcome: to wait for it is to let the time pass until the step ends."""

    worker: Worker
    output: SchedulerOutput
    sampling: frozenset[CallId]
    end_ps: int

    def result(self) -> ModelRunnerOutput:
        self.worker.now_ps = max(self.worker.now_ps, self.end_ps)
        return self.worker.engine.sampled(self.output, self.sampling)


class Worker:
    """Takes the place of vLLM's executor: runs steps one after another, in no time of ours."""

    def __init__(self, engine: VllmEngine, machine: Machine) -> None:
        self.engine = engine
        self.now_ps = 0
        self.executed: list[Executed] = []
        self._machine = machine
        self._busy_until_ps = 0
        self._last: Future | None = None

    def execute_model(self, output: SchedulerOutput, non_block: bool) -> Future:
        schedule = self.engine.described(output)
        start_ps = max(self.now_ps, self._busy_until_ps)
        self._busy_until_ps = start_ps + step_ps(schedule, self._machine)
        if schedule.pieces:
            tokens = dict(output.num_scheduled_tokens)
            self.executed.append(Executed(self.now_ps, start_ps, self._busy_until_ps, tokens))
        self._last = Future(self, output, self.engine.sampling(output), self._busy_until_ps)
        return self._last

    def sample_tokens(self, grammar: object, non_block: bool = False) -> Future | None:
        """Comes right after `execute_model`; the outcome is the same future."""
        return self._last


def executed(applications: Sequence[Application], machine: Machine) -> list[Executed]:
    """The steps that vLLM's engine loop gives its worker until all applications are done."""
    timing = machine.timing()
    engine = VllmEngine(applications, machine)
    worker = Worker(engine, machine)
    core = _engine_core(engine, worker, machine)
    step = core.step_with_batch_queue if machine.asynchronous else core.step
    clients = Clients(applications, timing.client_ps)
    while clients.unfinished:
        for call in clients.arrivals(worker.now_ps):
            engine.add(call)
        if not engine.scheduler.has_requests() and not core.batch_queue:
            worker.now_ps = clients.next_arrival_ps()
            continue
        outputs, _ = step()
        for call_id in finished(outputs or {}):
            clients.finish(call_id, worker.now_ps)
    return worker.executed


def _engine_core(engine: VllmEngine, worker: Worker, machine: Machine) -> Any:
    """An `EngineCore` without the processes and sockets that its constructor opens."""
    core: Any = EngineCore.__new__(EngineCore)
    core.scheduler = engine.scheduler
    core.vllm_config = engine.scheduler.vllm_config
    core.model_executor = worker
    core.batch_queue_size = 2  # what asynchronous scheduling asks for without pipeline parallelism
    core.batch_queue = deque(maxlen=core.batch_queue_size) if machine.asynchronous else None
    core.aborts_queue = queue.Queue()
    core.is_mm_encoder_only = core.is_pooling_model = core.log_stats = core.check_for_draft_tokens = False
    core.is_ec_consumer = True  # 0.26: whether steps compute tokens
    core._weight_version = 0
    return core
