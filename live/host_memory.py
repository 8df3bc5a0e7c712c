"""The host's room for blocks: as many slots as there is memory for, laid out as the blocks are on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..traces.errors import EngineError
from .block_views import row_bytes
from .jobs import CopyJob


class HostMemory:
    """One allocation, and in it for each view of the GPU's blocks one of the slots.

    The slots of one view lie back to back: a stretch of blocks is one copy a view, and both sides have equal strides.
    """

    def __init__(self, blocks: Sequence[torch.Tensor], slots: int) -> None:
        self.slots = slots
        self.bytes = slots * row_bytes(blocks)
        try:
            self.allocation = torch.empty(self.bytes, dtype=torch.uint8)
        except RuntimeError:
            raise EngineError(
                f"there is no memory for a host pool of {self.bytes / 2**30:.1f} GiB: ask for less host_gib"
            ) from None
        lengths = [slots * view.shape[1] for view in blocks]
        self.views = [
            stretch.view(slots, view.shape[1])
            for stretch, view in zip(self.allocation.split(lengths), blocks, strict=True)
        ]


def check(job: CopyJob, blocks: int, slots: int) -> None:
    """A copy to a place that does not exist would be one to somebody else's memory."""
    assert len(job.gpu_blocks) == len(job.host_slots), job
    assert all(0 <= block < blocks for block in job.gpu_blocks), job
    assert all(0 <= slot < slots for slot in job.host_slots), job
