"""What vLLM does by itself: first come, first served, and the least recently used blocks go first."""

from __future__ import annotations

from typing import ClassVar

from ..interface import NATIVE, Plan, View


class Vllm:
    """What vLLM does by itself: first come, first served, and the least recently used blocks are evicted first.

    The baseline. It wants nothing, so every decision is the engine's own; it is asked once and never again.
    """

    listens_to: ClassVar[frozenset[type]] = frozenset()

    def plan(self, view: View) -> Plan:
        """Leave everything to the engine."""
        return NATIVE
