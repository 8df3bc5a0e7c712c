"""Copies of blocks without an engine: how fast they are, in which sizes and layouts, and what they cost computing.

All are made by the engine's own copier, so pieces are merged and handed to the driver as they are in a run. Each entry
is written down at once, those that matter most first.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokencake.live.copier import cuda as copier_cuda
from tokencake.live.copier.block_views import block_views
from tokencake.live.copier.jobs import CopyJob

from .setups import available_gib
from .work import Work

GIB, MIB, KIB = 2**30, 2**20, 2**10
TO_HOST, TO_GPU, BOTH = "to the host", "to the GPU", "both ways"
WAYS = {TO_HOST: (True,), TO_GPU: (False,), BOTH: (True, False)}
SCATTERED, IN_A_ROW = "scattered", "in a row"
DESCRIPTORS_A_CALL = (64, 256, 1024, 1 << 30)  # that the driver gets in a call: the copier's own number, and others
LAUNCHES = 2_000
MATMULS = 40
JOBS_BESIDE = 8
SLOWEST_S = 10.0  # that a measured job may take


@dataclass(frozen=True, slots=True)
class Layout:
    """How an engine's blocks lie in memory: a part of each block in each layer."""

    title: str
    layers: int
    part_bytes: int
    blocks: int

    @property
    def block_bytes(self) -> int:
        return self.layers * self.part_bytes


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: on a GPU, and so little on a CPU that it takes seconds."""

    layouts: tuple[Layout, ...]
    jobs_blocks: tuple[int, ...]
    pinned_gib: tuple[float, ...]
    repeats: int
    matrix: int


# The published model's blocks are 48 parts of 64 KiB; the played shape's 28 of 32 KiB; one part is the best case.
ON_GPU = Sizes(
    (
        Layout("28 x 32 KiB", 28, 32 * KIB, 1024),
        Layout("48 x 64 KiB", 48, 64 * KIB, 1024),
        Layout("1 x 3 MiB", 1, 3 * MIB, 1024),
    ),
    (1, 16, 128, 437),
    (1, 4, 8),
    5,
    8192,
)
DRY = Sizes((Layout("4 x 4 KiB", 4, 4 * KIB, 64), Layout("1 x 16 KiB", 1, 16 * KIB, 64)), (1, 16), (0.01,), 2, 64)


class Bench:
    """A copier over blocks that no engine has."""

    def __init__(self, layout: Layout, device: str) -> None:
        self.layout = layout
        shape = (layout.blocks, layout.part_bytes)
        tensors = {f"layer {index}": torch.zeros(shape, dtype=torch.uint8, device=device)
                   for index in range(layout.layers)}  # fmt: skip
        began_s = time.perf_counter()
        self.copier = copier_cuda.CudaCopier(block_views(tensors, layout.blocks), layout.blocks)
        self.pool_s = time.perf_counter() - began_s
        self._jobs = 0
        self._rng = random.Random(0)

    def submit(self, to_host: bool, blocks: int, placed: str) -> None:
        """Hand over one job."""
        every = range(self.layout.blocks)
        if placed == IN_A_ROW:
            first = self._rng.randrange(self.layout.blocks - blocks + 1)
            pairs = [list(range(first, first + blocks))] * 2
        else:
            pairs = [self._rng.sample(every, blocks) for _ in range(2)]
        self._jobs += 1
        self.copier.submit([CopyJob(self._jobs, to_host, tuple(pairs[0]), tuple(pairs[1]), None)])

    def wait(self, jobs: int) -> list[float]:
        """Until so many jobs have ended: the seconds of each, as the copier tells them."""
        seconds: list[float] = []
        end_s = time.perf_counter() + SLOWEST_S
        while len(seconds) < jobs:
            self.copier.wait(0.1)
            seconds += [ended.seconds for ended in self.copier.finished()]
            if time.perf_counter() > end_s:
                raise TimeoutError(f"{len(seconds)} of {jobs} copies had ended after {SLOWEST_S:.0f} s")
        return seconds

    def timed(self, way: str, blocks: int, placed: str, repeats: int) -> dict[str, Any]:
        """Medians of some jobs: from submission until the end is told, by which the rate goes, and the copier's own."""
        took, own = [], []
        for _ in range(repeats + 1):  # the first warms up
            synchronize()
            began_s = time.perf_counter()
            for to_host in WAYS[way]:
                self.submit(to_host, blocks, placed)
            told = self.wait(len(WAYS[way]))
            took.append(time.perf_counter() - began_s)
            own.append(max(told))
        seconds = statistics.median(took[1:])
        moved = blocks * self.layout.block_bytes * len(WAYS[way])
        return {
            "layout": self.layout.title,
            "way": way,
            "placed": placed,
            "blocks": blocks,
            "bytes": moved,
            "seconds": seconds,
            "copier_s": statistics.median(own[1:]),
            "gbps": moved / seconds / 1e9,
        }


def measured(work: Work) -> dict[str, Any]:
    sizes, device = (DRY, "cpu") if work.dry else (ON_GPU, "cuda")
    if work.dry:
        from .stand_in import imitate_cuda

        imitate_cuda()
    copies: list[dict[str, Any]] = []
    pools: dict[str, float] = {}
    for number, layout in enumerate(sizes.layouts):
        bench = Bench(layout, device)
        pools[f"{layout.title}, {layout.blocks * layout.block_bytes / GIB:.2f} GiB"] = round(bench.pool_s, 3)
        work.note(pools_s=pools)
        for blocks in reversed(sizes.jobs_blocks):
            for way in WAYS:
                for placed in (SCATTERED, IN_A_ROW):
                    copies.append(bench.timed(way, blocks, placed, sizes.repeats))
            work.note(copies=copies)
        if number == 0:
            work.note(beside=beside(bench, sizes, device))
            work.note(calls=by_descriptors(bench, sizes))
        bench.copier.close()
        del bench
        if work.left_s < 10:
            break
    work.note(pinned=pinned(work, sizes))
    best = max(copies, key=lambda entry: float(entry["gbps"]))
    first = copies[0]
    job = f"{first['layout']}, {first['blocks']} blocks {first['placed']}"
    return {"said": f"{first['gbps']:.1f} GB/s {first['way']} ({job}), at best {best['gbps']:.1f}"}


def by_descriptors(bench: Bench, sizes: Sizes) -> list[dict[str, Any]]:
    """The largest scattered job where the driver gets fewer or more descriptors in a call, and launches beside it."""
    usual = copier_cuda.DESCRIPTORS_A_CALL, copier_cuda.DESCRIPTORS_UNDER_WAY
    found = []
    try:
        for number in DESCRIPTORS_A_CALL:
            copier_cuda.DESCRIPTORS_A_CALL = number
            copier_cuda.DESCRIPTORS_UNDER_WAY = max(usual[1], number)
            entry = bench.timed(TO_GPU, max(sizes.jobs_blocks), SCATTERED, sizes.repeats)
            found.append({"descriptors_a_call": number, "launches": _launches_beside(bench, sizes, TO_GPU), **entry})
    finally:
        copier_cuda.DESCRIPTORS_A_CALL, copier_cuda.DESCRIPTORS_UNDER_WAY = usual
    return found


def beside(bench: Bench, sizes: Sizes, device: str) -> dict[str, Any]:
    """Launches of kernels, and a product of matrices, alone and while blocks are copied."""
    found: dict[str, Any] = {"launches": {"alone": _launches(lambda: None)}, "matmul_s": {}}
    for way in WAYS:
        found["launches"][way] = _launches_beside(bench, sizes, way)
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    matrix = torch.randn(sizes.matrix, sizes.matrix, dtype=kind, device=device)
    matrix @ matrix
    found["matmul_s"]["alone"] = _matmuls(matrix)
    for way in WAYS:
        jobs = _submit_many(bench, sizes, way)
        found["matmul_s"][way] = _matmuls(matrix)
        bench.wait(jobs)
    return found


def _launches_beside(bench: Bench, sizes: Sizes, way: str) -> dict[str, float]:
    jobs = 0

    def submit() -> None:
        nonlocal jobs
        jobs += _submit_many(bench, sizes, way)

    told = _launches(submit)
    bench.wait(jobs)
    return told


def _submit_many(bench: Bench, sizes: Sizes, way: str) -> int:
    """Enough large scattered jobs to be under way for tens of milliseconds. How many."""
    for _ in range(JOBS_BESIDE):
        for to_host in WAYS[way]:
            bench.submit(to_host, sizes.jobs_blocks[-1], SCATTERED)
    return JOBS_BESIDE * len(WAYS[way])


def _launches(before: Callable[[], None]) -> dict[str, float]:
    """Microseconds that the launch of a small kernel takes the launching thread."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = torch.zeros(256, device=device)
    small.add_(1.0)
    synchronize()
    before()
    took = []
    for _ in range(LAUNCHES):
        began_s = time.perf_counter()
        small.add_(1.0)
        took.append((time.perf_counter() - began_s) * 1e6)
    synchronize()
    return {"p50": _share(took, 0.5), "p99": _share(took, 0.99), "max": max(took), "mean": statistics.fmean(took)}


def _matmuls(matrix: torch.Tensor) -> float:
    """Seconds of one product."""
    synchronize()
    began_s = time.perf_counter()
    for _ in range(MATMULS):
        matrix @ matrix
    synchronize()
    return (time.perf_counter() - began_s) / MATMULS


def pinned(work: Work, sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds to register host memory, fresh and where all pages are there already."""
    from vllm.v1.simple_kv_offload import cuda_mem_ops

    found: list[dict[str, Any]] = []
    for gib in sizes.pinned_gib:
        if available_gib() < 3 * gib or work.left_s < 3 * gib:
            break
        for touched in (False, True):
            memory = torch.empty(int(gib * GIB), dtype=torch.uint8)
            began_s = time.perf_counter()
            if touched:
                memory.zero_()
            touched_s = time.perf_counter() - began_s
            cuda_mem_ops.pin_tensor(memory)
            whole_s = time.perf_counter() - began_s
            found.append({"gib": gib, "touched": touched, "touch_s": touched_s, "pin_s": whole_s - touched_s})
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
            del memory
    return found


def synchronize() -> None:
    torch.cuda.synchronize()


def _share(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]
