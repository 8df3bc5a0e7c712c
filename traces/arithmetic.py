"""Division of whole numbers, rounded up."""

from __future__ import annotations


def div_ceil(dividend: int, divisor: int) -> int:
    """The least whole number that is not below `dividend / divisor`."""
    return -(-dividend // divisor)
