"""vLLM's own objects, for a walk through what is leaned on. Importing this module imports vLLM."""

from __future__ import annotations

import inspect
import random
from dataclasses import replace

from random_clients import machine
from virtual_engine import Virtual
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, SupportsHMA
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.simple_kv_offload import cuda_mem_ops

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.live.engine import vllm_surface as surface

from .walk import Walk


def through_a_scheduler(walk: Walk) -> None:
    """One that has a request running, and one waiting."""
    engine = Virtual(replace(machine(random.Random(0), asynchronous=True), max_running=1))
    for name in ("r1", "r2"):
        engine.add(name, [1, 2, 3], 2, 0.0, {})
    engine._schedule()
    walk.look(surface.VllmScheduler, engine.scheduler)
    walk.look(surface.VllmKVCacheBlocks, engine.scheduler.kv_cache_manager.get_blocks("r1"))
    walk.look(surface.VllmConnectorOutput, KVConnectorOutput())
    flight = engine.flights.popleft()
    walk.look(surface.VllmSchedulerOutput, flight.output)
    (of_client,) = engine.scheduler.update_from_output(flight.output, engine._run(flight)).values()
    walk.look(surface.VllmOutputs, of_client)


def through_an_engine(walk: Walk) -> None:
    """A tiny one, which answers a request."""
    with InProcess(EngineOptions(model="tiny", gpu_blocks=8)) as engine:
        llm = engine._engine.llm
        walk.look(surface.VllmKVCacheConfig, engine.scheduler.kv_cache_config)
        walk.look(surface.VllmLLMEngine, llm)
        engine._engine.add("r1", [1, 2, 3], 1, {}, 0.0)
        (answer,) = [output for _ in range(2) for output in llm.step()]
        walk.look(surface.VllmRequestOutput, answer)


def through_classes(walk: Walk) -> None:
    """Methods of ours that vLLM has to call, and what no engine without workers has."""
    walk.look(surface.VllmSchedulerHooks, AsyncScheduler)
    walk.look(surface.VllmConnectorHooks, KVConnectorBase_V1)
    walk.look(surface.VllmGroupsHooks, SupportsHMA)
    walk.look(surface.VllmStatsHooks, StatLoggerManager)
    walk.look(surface.VllmIterationStats, IterationStats())
    walk.look(surface.VllmAsyncCoreClient, AsyncMPClient)
    walk.look(surface.VllmCudaMemOps, cuda_mem_ops)
    made = dict.fromkeys(inspect.unwrap(EngineCoreProc.__init__).__code__.co_names)
    walk.look(surface.VllmEngineCoreProcess, type("EngineCoreProc", (), made))
