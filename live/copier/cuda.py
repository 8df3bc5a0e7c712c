"""Copies between a CUDA device and pinned host memory, on streams of their own.

Written from vLLM's own offload worker, whose batched copy it uses. It awaits its first run on a GPU: the addresses and
the order of the calls are tested with a copy that a CPU makes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic, sleep
from typing import NamedTuple

import torch
from vllm.platforms import current_platform
from vllm.v1.simple_kv_offload import cuda_mem_ops

from ...traces.errors import EngineError
from .copy_thread import Lane, first_line
from .host_memory import HostMemory, check
from .jobs import CopyJob, Ended
from .stretches import Numbers, stretches

POLL_S = 0.0002
# The driver takes a call's descriptors under a lock that launches of kernels need, too, and makes whoever submits more
# than its own queues hold wait there. So calls are short, and what is submitted and has not ended stays below a limit.
DESCRIPTORS_A_CALL = 256
DESCRIPTORS_UNDER_WAY = 1024  # of a direction


class _Submitted(NamedTuple):
    job: CopyJob
    computed: torch.cuda.Event  # on the compute stream, when the job was submitted


class _UnderWay(NamedTuple):
    job: int
    began: torch.cuda.Event
    done: torch.cuda.Event


class _Call(NamedTuple):
    """Descriptors that the driver has."""

    descriptors: int
    done: torch.cuda.Event


class _Descriptors(NamedTuple):
    """Pieces of memory to be copied: addresses and bytes, as long as each other."""

    sources: Numbers
    targets: Numbers
    sizes: Numbers


class _Direction:
    """One direction of the link: its stream, and a thread that hands copies to it.

    To hand over a job of thousands of blocks takes milliseconds, which are not the engine's.
    """

    def __init__(
        self, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], device: torch.device, order: int
    ) -> None:
        lowest, _ = torch.cuda.Stream.priority_range()  # computing comes first
        self.stream = torch.cuda.Stream(device, priority=lowest)
        self.under_way: deque[_UnderWay] = deque()  # in the order of their ends
        self.failure: Exception | None = None
        self._device = device
        self._memory = (sources, targets)  # which lives as long as somebody has its addresses
        self._parameters = cuda_mem_ops.build_params(_named(sources), _named(targets), self.stream, order)
        self._calls: deque[_Call] = deque()  # in the order of their ends; some may have ended
        self._descriptors_under_way = 0  # of all of these
        self.lane: Lane[_Submitted] = Lane("tokencake-copies", self._launch, self._fail, self._begin)

    def ended(self) -> bool:
        """Whether the first job under way has ended."""
        return bool(self.under_way and self.under_way[0].done.query())

    def _begin(self) -> None:
        current_platform.set_device(self._device)  # a thread begins without a CUDA context

    def _launch(self, submitted: _Submitted) -> None:
        self.stream.wait_event(submitted.computed)
        began = done = self._event()
        for descriptors in self._in_calls(self._descriptors(submitted.job)):
            count = len(descriptors.sizes)
            self._make_room(count)
            self._copy(descriptors)
            done = self._event()
            self._calls.append(_Call(count, done))
            self._descriptors_under_way += count
        self.under_way.append(_UnderWay(submitted.job.id, began, done))

    def _descriptors(self, job: CopyJob) -> _Descriptors:
        """One for each stretch of blocks and part of a block."""
        pieces = stretches(job.gpu_blocks, job.host_slots)
        sources, targets = (pieces.blocks, pieces.slots) if job.to_host else (pieces.slots, pieces.blocks)
        known = self._parameters
        part_bytes = known.bpb[:, None]
        return _Descriptors(
            (known.src_bases[:, None] + sources * part_bytes).ravel(),
            (known.dst_bases[:, None] + targets * part_bytes).ravel(),
            (pieces.counts * part_bytes).ravel(),
        )

    @staticmethod
    def _in_calls(all_of_job: _Descriptors) -> list[_Descriptors]:
        begins = range(0, len(all_of_job.sizes), DESCRIPTORS_A_CALL)
        return [_Descriptors(*(column[at : at + DESCRIPTORS_A_CALL] for column in all_of_job)) for at in begins]

    def _make_room(self, descriptors: int) -> None:
        """Wait until the driver has so few that these may come, too. Nobody else waits, nor asks again and again."""
        while self._calls and self._descriptors_under_way + descriptors > DESCRIPTORS_UNDER_WAY:
            call = self._calls.popleft()
            call.done.synchronize()
            self._descriptors_under_way -= call.descriptors

    def _copy(self, descriptors: _Descriptors) -> None:
        """vLLM's batch takes blocks of equal size from each layer; here each descriptor is block 0 of a layer."""
        batch = self._parameters._replace(
            src_bases=descriptors.sources,
            dst_bases=descriptors.targets,
            bpb=descriptors.sizes,
            num_layers=len(descriptors.sizes),
        )
        cuda_mem_ops.copy_blocks([0], [0], batch)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(self.stream)
        return event

    def _fail(self, error: Exception) -> None:
        self.failure = error


def _unpin(memory: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


def _named(views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """As vLLM's copies take them: the names only have to be the same on both sides."""
    return {str(index): view for index, view in enumerate(views)}


class CudaCopier:
    """A `Copier`. Loads and stores have streams of their own, so that no load waits behind stores."""

    def __init__(self, blocks: Sequence[torch.Tensor], host_slots: int) -> None:
        self._blocks = len(blocks[0])
        self._device = blocks[0].device
        self._host = HostMemory(blocks, host_slots)
        stream, any_order = cuda_mem_ops.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM, cuda_mem_ops.CU_MEMCPY_SRC_ACCESS_ORDER_ANY
        try:
            self._host.pin(cuda_mem_ops.pin_tensor, _unpin)
            self._directions = {
                # The source of a store may be in the making; that of a load was complete before it was asked for.
                True: _Direction(blocks, self._host.views, self._device, stream),
                False: _Direction(self._host.views, blocks, self._device, any_order),
            }
        except RuntimeError as error:
            self._host.unpin()
            raise EngineError(
                f"no host pool of {self._host.bytes / 2**30:.1f} GiB could be set up for copies to and from the GPU"
                f" ({first_line(error)}): ask for less host_gib, or for a newer driver"
            ) from None

    def submit(self, jobs: Iterable[CopyJob]) -> None:
        # Stores read what steps before have computed, loads write where they may still read.
        computed = torch.cuda.Event()
        computed.record(torch.cuda.current_stream(self._device))
        for job in jobs:
            check(job, self._blocks, self._host.slots)
            self._directions[job.to_host].lane.put(_Submitted(job, computed))

    def finished(self) -> list[Ended]:
        finished = []
        try:
            for direction in self._directions.values():
                if direction.failure is not None:
                    raise direction.failure
                while direction.ended():
                    job, began, done = direction.under_way.popleft()
                    finished.append(Ended(job, began.elapsed_time(done) / 1e3))
        except Exception as error:
            raise EngineError(f"a copy of KV blocks failed: {first_line(error)}") from error
        return finished

    def wait(self, timeout_s: float) -> None:
        until_s = monotonic() + timeout_s
        while monotonic() < until_s and not self._news():
            sleep(POLL_S)

    def close(self) -> None:
        for direction in self._directions.values():
            direction.lane.close()
            direction.stream.synchronize()  # before the memory under its copies goes
        self._host.unpin()

    def _news(self) -> bool:
        return any(direction.failure is not None or direction.ended() for direction in self._directions.values())
