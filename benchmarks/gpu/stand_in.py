"""CUDA as far as the copier and its measurement need it, imitated on a CPU: copies are made at once, by the CPU.

For --dry alone: it proves that the phase works, and its times mean nothing.
"""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import Any


class _Stream:
    cuda_stream = 0

    def __init__(self, device: object = None, priority: int = 0) -> None:
        pass

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, -5

    def wait_event(self, event: _Event) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self._at_s = 0.0

    def record(self, stream: _Stream | None = None) -> None:
        self._at_s = perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: _Event) -> float:
        """Milliseconds."""
        return (later._at_s - self._at_s) * 1e3


class _Runtime:
    def cudaHostUnregister(self, address: int) -> int:
        return 0


def _copy_batch(targets: int, sources: int, sizes: int, count: int, *others: Any) -> int:
    """cuMemcpyBatchAsync: addresses of three arrays, and how long they are."""
    arrays = [(ctypes.c_uint64 * count).from_address(address) for address in (targets, sources, sizes)]
    for target, source, size in zip(*arrays, strict=True):
        ctypes.memmove(target, source, size)
    return 0


def imitate_cuda() -> None:
    """For the rest of this process."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.simple_kv_offload import cuda_mem_ops

    cuda: Any = torch.cuda
    cuda.Stream, cuda.Event, cuda.cudart = _Stream, _Event, _Runtime
    cuda.current_stream = lambda device=None: _Stream()
    cuda.synchronize = lambda device=None: None
    current_platform.set_device = lambda device: None
    cuda_mem_ops.pin_tensor = lambda tensor: None
    cuda_mem_ops._batch_memcpy = (_copy_batch, 1)
    cuda_mem_ops._batch_memcpy_fn = _copy_batch  # vLLM 0.26's name
