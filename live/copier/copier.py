"""The worker's copies between GPU and host: what they promise, and who makes them on which device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from ...traces.errors import EngineError
from .block_views import Kept, block_views, row_bytes
from .jobs import CopyJob, Ended


class Copier(Protocol):
    """Copies blocks in the background, one job after another in each direction.

    A block or slot of an unfinished job is used by no other, but that several jobs may read the same one. A slot that
    is being stored may be loaded by jobs that are submitted after the store was reported as finished.
    """

    def submit(self, jobs: Iterable[CopyJob]) -> None:
        """Queue copies of what the engine has computed, or is computing, by now."""

    def finished(self) -> list[Ended]:
        """The jobs that ended since the last call, first to end first. Raises `EngineError` if one failed."""

    def wait(self, timeout_s: float) -> None:
        """Return when `finished` has something to tell, or after `timeout_s`."""

    def close(self) -> None:
        """End the copy under way and drop the others. Nothing is submitted afterwards."""


def make_copier(
    kv_caches: Mapping[str, Kept],
    gpu_blocks: int,
    host_slots: int,
    link_gbps: float | None,
    expected_block_bytes: int | None = None,
) -> Copier:
    """A copier between vLLM's cache tensors, as it registers them, and `host_slots` blocks of host memory, taken here.

    `gpu_blocks` counts vLLM's null block too. `link_gbps` (1e9 bytes a second, each way) makes copies of a CPU engine
    as slow as such a link would. `expected_block_bytes` is what the scheduler takes a block for. Raises `EngineError`
    if the tensors say otherwise or do not tell, and if there is not as much memory.
    """
    blocks = block_views(kv_caches, gpu_blocks)
    if expected_block_bytes not in (None, row_bytes(blocks)):
        raise EngineError(
            f"a KV block has {row_bytes(blocks)} bytes in the engine's tensors and {expected_block_bytes} in its"
            " configuration: this layout of the cache cannot be copied"
        )
    device = blocks[0].device.type
    if device == "cpu":
        from .cpu import CpuCopier

        return CpuCopier(blocks, host_slots, link_gbps)
    if device != "cuda":
        raise EngineError(f"KV blocks are copied between host and CUDA devices; these are on {device!r}")
    if link_gbps is not None:
        raise EngineError("link_gbps stands in for a link that a CPU engine lacks; this engine has one of its own")
    from .cuda import CudaCopier

    return CudaCopier(blocks, host_slots)


def block_bytes(kv_caches: Mapping[str, Kept], gpu_blocks: int) -> int:
    """Bytes of one block over all layers, with padding. Raises `EngineError` where the tensors do not tell."""
    return row_bytes(block_views(kv_caches, gpu_blocks))
