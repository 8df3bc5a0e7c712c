"""The copier for CUDA devices without one: vLLM's own batch of addresses is copied by the CPU, streams are imitated.

Shows that the right bytes would be asked for, on the right stream, behind the right event; not that a GPU does it. On a
machine with a GPU the tests of the copier run there too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

import torch
from vllm.platforms import current_platform
from vllm.v1.simple_kv_offload import cuda_mem_ops

from tokencake.live.copier import cuda as copier_cuda
from tokencake.live.copier.block_views import block_views
from tokencake.live.copier.jobs import CopyJob, Ended
from tokencake.traces.errors import EngineError

if torch.cuda.is_available():
    pytest.skip("the tests of the copier use the GPU of this machine", allow_module_level=True)

BLOCKS, SLOTS = 11, 13
SOON_S = 20.0


PARTS = 3  # of a block of `layers()`: K, V, and two layers in one row
Entry = tuple[str, ...]


class Cuda:
    """Streams, events and batched copies as torch and vLLM offer them, carried out at once."""

    def __init__(self) -> None:
        self.log: list[Entry] = []  # what the streams were asked for
        self.held: set[str] = set()  # streams whose events do not come to pass
        self.calls: list[int] = []  # how many descriptors each batched copy had
        self.error = 0  # what a batched copy returns
        self.streams: list[Stream] = []

    def copy_batch(self, targets: int, sources: int, sizes: int, count: int, *others: Any) -> int:
        """cuMemcpyBatchAsync: three addresses of arrays, their length, and at the end the stream."""
        self.log.append(("copy", self.streams[others[-1]].name))
        self.calls.append(count)
        arrays = [(ctypes.c_uint64 * count).from_address(address) for address in (targets, sources, sizes)]
        for target, source, size in zip(*arrays, strict=True):
            ctypes.memmove(target, source, size)
        return self.error

    def of_stream(self, name: str) -> list[Entry]:
        return [entry for entry in self.log if entry[1] == name]


class Stream:
    def __init__(self, cuda: Cuda, name: str, priority: int) -> None:
        self.name, self.priority, self.cuda_stream = name, priority, len(cuda.streams)
        self._cuda = cuda
        cuda.streams.append(self)

    def wait_event(self, event: RecordedEvent) -> None:
        self._cuda.log.append(("wait", self.name, event.stream))

    def synchronize(self) -> None:
        self._cuda.log.append(("synchronize", self.name))


class RecordedEvent:
    def __init__(self, cuda: Cuda, enable_timing: bool = False, blocking: bool = False) -> None:
        self._cuda = cuda
        self._timed = enable_timing
        self._blocking = blocking
        self.stream = "none"

    def record(self, stream: Stream) -> None:
        self.stream = stream.name
        self._cuda.log.append(("record", self.stream))
        self.at_copies = len(self._cuda.calls)

    def query(self) -> bool:
        return self.stream not in self._cuda.held

    def synchronize(self) -> None:
        assert self._blocking, "a thread that waits must not keep a core busy"
        while not self.query():
            sleep(0.001)

    def elapsed_time(self, later: RecordedEvent) -> float:
        """Milliseconds: two for each batched copy between the two."""
        assert min(self._timed, later._timed), "events tell no time unless they are asked to"
        assert later.query()
        return 2.0 * (later.at_copies - self.at_copies)


class Runtime:
    def cudaHostUnregister(self, address: int) -> None:
        """Nothing was registered."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    imitated = Cuda()
    compute = Stream(imitated, "compute", -5)
    names = iter(("stores", "loads"))

    class OwnStream(Stream):
        def __init__(self, device: object, priority: int) -> None:
            super().__init__(imitated, next(names), priority)

        @staticmethod
        def priority_range() -> tuple[int, int]:
            return 0, -5

    monkeypatch.setattr(torch.cuda, "Stream", OwnStream)
    monkeypatch.setattr(torch.cuda, "Event", lambda **how: RecordedEvent(imitated, **how))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(current_platform, "set_device", lambda device: None)
    monkeypatch.setattr(cuda_mem_ops, "pin_tensor", lambda tensor: None)
    monkeypatch.setattr(cuda_mem_ops, "_batch_memcpy", (imitated.copy_batch, 1), raising=False)
    monkeypatch.setattr(cuda_mem_ops, "_batch_memcpy_fn", imitated.copy_batch, raising=False)  # vLLM 0.26's name
    return imitated


def layers() -> dict[str, torch.Tensor]:
    """Layers of random bytes, of different sizes and layouts."""
    generator = torch.Generator().manual_seed(3)
    kv_first = torch.randint(256, (2, BLOCKS, 16, 4), dtype=torch.uint8, generator=generator)
    both = torch.randint(256, (BLOCKS, 2, 40), dtype=torch.uint8, generator=generator)
    return {"a": kv_first, "b": both[:, 0], "c": both[:, 1]}


def content(kv_caches: dict[str, torch.Tensor], block: int) -> list[int]:
    parts = [kv_caches["a"][:, block], kv_caches["b"][block], kv_caches["c"][block]]
    return [byte for part in parts for byte in part.flatten().tolist()]


def copier_of(kv_caches: dict[str, torch.Tensor]) -> copier_cuda.CudaCopier:
    return copier_cuda.CudaCopier(block_views(kv_caches, BLOCKS), SLOTS)


def finish(copier: copier_cuda.CudaCopier, jobs: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < jobs:
        copier.wait(SOON_S)
        ended = [ended.job for ended in copier.finished()]
        assert ended, "no copy ended"
        ids += ended
    return ids


def test_blocks_come_back_from_the_host_as_they_were(cuda: Cuda) -> None:
    kv_caches = layers()
    before = {block: content(kv_caches, block) for block in range(BLOCKS)}
    copier = copier_of(kv_caches)
    copier.submit([CopyJob(1, True, (3, 4, 10, 0), (12, 5, 0, 7), None)])
    assert finish(copier, 1) == [1]
    copier.submit([CopyJob(2, False, (1, 9), (0, 12), "call"), CopyJob(3, False, (2,), (7,), None)])
    assert finish(copier, 2) == [2, 3]
    copier.close()
    expected = before | {1: before[10], 9: before[3], 2: before[0]}
    assert {block: content(kv_caches, block) for block in range(BLOCKS)} == expected


def test_a_job_waits_for_what_was_computed_and_is_one_batch_on_its_own_stream(cuda: Cuda) -> None:
    copier = copier_of(layers())
    copier.submit([CopyJob(1, True, tuple(range(9)), tuple(range(9)), None)])
    finish(copier, 1)
    copier.submit([CopyJob(2, False, (0, 1), (0, 1), None), CopyJob(3, False, (2,), (2,), None)])
    finish(copier, 2)
    copier.close()
    stores = [("wait", "stores", "compute"), ("record", "stores"), ("copy", "stores"), ("record", "stores")]
    loads = [("wait", "loads", "compute"), ("record", "loads"), ("copy", "loads"), ("record", "loads")]
    assert cuda.of_stream("stores") == [*stores, ("synchronize", "stores")]
    assert cuda.of_stream("loads") == [*loads, *loads, ("synchronize", "loads")]
    assert cuda.of_stream("compute") == [("record", "compute")] * 2
    assert cuda.log[0] == ("record", "compute")  # by the engine itself, before the job is anywhere else
    assert [stream.priority for stream in cuda.streams] == [-5, 0, 0]


def test_blocks_beside_each_other_on_both_sides_are_one_descriptor_a_part(cuda: Cuda) -> None:
    copier = copier_of(layers())
    copier.submit([CopyJob(1, True, (6, 5, 4, 3, 9), (8, 7, 6, 5, 1), None)])
    finish(copier, 1)
    copier.submit([CopyJob(2, False, (0, 1, 2), (5, 6, 7), None)])
    finish(copier, 1)
    copier.close()
    assert cuda.calls == [2 * PARTS, PARTS]


def test_a_job_of_many_descriptors_is_many_short_calls(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier_cuda, "DESCRIPTORS_A_CALL", 4)
    kv_caches = layers()
    before = {block: content(kv_caches, block) for block in range(BLOCKS)}
    copier = copier_of(kv_caches)
    copier.submit([CopyJob(1, True, (0, 2, 4, 6, 8), (9, 7, 5, 3, 1), None)])  # none beside another: 15
    finish(copier, 1)
    copier.submit([CopyJob(2, False, (10, 9), (9, 5), None)])
    finish(copier, 1)
    copier.close()
    assert cuda.calls == [4, 4, 4, 3, 4, 2]
    assert {block: content(kv_caches, block) for block in range(BLOCKS)} == before | {10: before[0], 9: before[4]}


def test_the_driver_never_has_more_descriptors_than_fit(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever submits more would wait inside the driver, with a lock that the engine's launches need."""
    monkeypatch.setattr(copier_cuda, "DESCRIPTORS_A_CALL", 4)
    monkeypatch.setattr(copier_cuda, "DESCRIPTORS_UNDER_WAY", 9)
    copier = copier_of(layers())
    cuda.held.add("stores")
    copier.submit([CopyJob(1, True, (0, 2, 4, 6, 8), (9, 7, 5, 3, 1), None), CopyJob(2, True, (1,), (12,), None)])
    copier.submit([CopyJob(3, False, (10,), (11,), None)])
    assert finish(copier, 1) == [3]  # the other direction goes on
    wait_for(lambda: len(cuda.calls) == 3)
    sleep(0.05)
    assert sorted(cuda.calls) == [3, 4, 4]  # the store's first two, and the load
    cuda.held.clear()
    assert finish(copier, 2) == [1, 2]
    copier.close()
    assert sorted(cuda.calls) == [3, 3, 3, 4, 4, 4]


def wait_for(reached: Callable[[], bool]) -> None:
    until_s = monotonic() + SOON_S
    while not reached():
        assert monotonic() < until_s, "nothing happens"
        sleep(0.001)


def test_a_copy_says_how_long_it_took_itself(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """By events around it, behind the one for which it waited. Here each call takes two milliseconds."""
    monkeypatch.setattr(copier_cuda, "DESCRIPTORS_A_CALL", 4)
    copier = copier_of(layers())
    copier.submit([CopyJob(1, True, (0, 2, 4, 6, 8), (9, 7, 5, 3, 1), None)])
    wait_for(lambda: copier._news())
    assert copier.finished() == [Ended(1, 0.008)]
    copier.submit([CopyJob(2, True, (), (), None)])
    wait_for(lambda: copier._news())
    assert copier.finished() == [Ended(2, 0.0)]
    copier.close()


def test_a_load_does_not_wait_behind_stores(cuda: Cuda) -> None:
    copier = copier_of(layers())
    cuda.held.add("stores")
    copier.submit([CopyJob(1, True, (0,), (0,), None), CopyJob(2, False, (1,), (1,), None)])
    assert finish(copier, 1) == [2]
    copier.wait(0.01)
    assert copier.finished() == []
    cuda.held.clear()
    assert finish(copier, 1) == [1]
    copier.close()


def test_a_copy_that_fails_is_told_instead_of_waited_for(cuda: Cuda) -> None:
    copier = copier_of(layers())
    cuda.error = 700
    copier.submit([CopyJob(1, True, (0,), (0,), None)])
    begun_s = monotonic()
    copier.wait(SOON_S)
    assert monotonic() - begun_s < SOON_S
    with pytest.raises(EngineError, match=r"^a copy of KV blocks failed: .*err=700"):
        copier.finished()
    copier.close()


def test_a_pool_that_cannot_be_pinned_is_refused(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("cudaHostRegister failed: 2")

    monkeypatch.setattr(cuda_mem_ops, "pin_tensor", refuse)
    with pytest.raises(EngineError, match=r"^no host pool of 0\.0 GiB .*cudaHostRegister failed: 2.*less host_gib"):
        copier_of(layers())
