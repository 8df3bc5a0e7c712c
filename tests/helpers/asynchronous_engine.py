"""An engine on a CPU that schedules asynchronously, as engines on GPUs do: a step is scheduled while another computes.

vLLM for CPUs schedules synchronously, whatever is asked for, though its scheduler, its queue of steps and its model
runner know the other way, too. Here its refusal is undone, streams and events of CUDA stand for nothing, and the worker
computes in a thread of its own. Everything else is vLLM's and ours: scheduler, connector, copier, and whoever drives.

    with schedules_asynchronously():
        with InProcess(EngineOptions(model="tiny", asynchronous=True)) as engine: ...
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.serial_utils import run_method


class _Event:
    """What a CPU computes is there when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def wait(self, *args: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class _Stream:
    device = torch.device("cpu")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: _Stream) -> None:
        pass

    def wait_event(self, event: _Event) -> None:
        pass

    def synchronize(self) -> None:
        pass


class ThreadExecutor(UniProcExecutor):
    """vLLM's executor of one worker in this process, with all that the worker does in a thread of its own.

    What it is told is a copy, as for a worker in another process: the scheduler goes on while it computes.
    """

    def _init_executor(self) -> None:
        self._thread = ThreadPoolExecutor(1, "worker")
        self._thread.submit(super()._init_executor).result()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
        single_value: bool = False,
    ) -> Any:
        told = pickle.dumps((args, kwargs or {}))

        def carry_out() -> Any:
            result = run_method(self.driver_worker, method, *pickle.loads(told))
            if isinstance(result, AsyncModelRunnerOutput):
                result = result.get_output()
            return result if single_value else [result]

        future: Future[Any] = self._thread.submit(carry_out)
        return future if non_block else future.result()

    def shutdown(self) -> None:
        self._thread.submit(super().shutdown).result()
        self._thread.shutdown()


@contextmanager
def schedules_asynchronously() -> Iterator[None]:
    """Engines that start meanwhile, and are asked to schedule asynchronously, do. They must end before this does."""
    synchronous = CpuPlatform.check_and_update_config.__func__

    def as_asked(platform: type[CpuPlatform], vllm_config: Any) -> None:
        asked = vllm_config.scheduler_config.async_scheduling
        synchronous(platform, vllm_config)
        if asked:
            vllm_config.scheduler_config.async_scheduling = True
            vllm_config.parallel_config.distributed_executor_backend = ThreadExecutor

    stream = _Stream()
    with ExitStack() as patches:
        patches.enter_context(patch.object(CpuPlatform, "check_and_update_config", classmethod(as_asked)))
        for owner, name, stand_in in (
            (torch, "Event", _Event),
            (torch.cuda, "Event", _Event),
            (torch.cuda, "Stream", _Stream),
            (torch.cuda, "current_stream", lambda device=None: stream),
            (torch.cuda, "set_stream", lambda stream: None),
            (torch.cuda, "stream", nullcontext),
        ):
            patches.enter_context(patch.object(owner, name, stand_in))
        yield
