"""What an engine holds for an agent beside its calls: the record that both engines keep.

Each engine holds blocks in a way of its own: `Held` is what it holds on the GPU, `Saved` the agent's copy on the host.
Times are in the engine's own unit.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Held = TypeVar("Held")
Saved = TypeVar("Saved")
Time = TypeVar("Time")


class Upload(Generic[Held, Time]):
    """Blocks that are copied back before they are asked for: `first_block` … `end_block - 1` of an agent's context."""

    __slots__ = ("cancelled", "end_block", "first_block", "held", "ready_at", "started_at")

    def __init__(self, held: Held, first_block: int, end_block: int, started_at: Time) -> None:
        self.held = held  # blocks that were still on the GPU and that no earlier upload holds, then those copied
        self.first_block = first_block
        self.end_block = end_block
        self.started_at = started_at
        self.ready_at: Time | None = None
        self.cancelled = False

    @property
    def num_blocks(self) -> int:
        """Those that are copied."""
        return self.end_block - self.first_block


class AgentCache(Generic[Held, Saved, Time]):
    """An agent's latest finished context, and what is held for it. `pin_until` means something while there is a pin."""

    __slots__ = ("context_blocks", "gone", "host", "name", "offloading", "pin", "pin_until", "uploads", "waiting")

    def __init__(self, name: str, pin_until: Time) -> None:
        self.name = name
        self.context_blocks = 0  # full blocks with KV
        self.host: Saved | None = None  # its copy on the host, from the first block on
        self.offloading = False
        self.uploads: tuple[Upload[Held, Time], ...] = ()  # on their way or ready, by position
        self.pin: Held | None = None
        self.pin_until = pin_until
        self.waiting = 0  # calls in the queue
        self.gone = False  # its application ended
