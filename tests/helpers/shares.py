"""What must hold of the integrals of block use."""

from __future__ import annotations

from collections.abc import Sequence

from tokencake.traces import events as e
from tokencake.traces.results.metrics import Metrics


def check_shares(facts: Sequence[object]) -> e.Occupied:
    """Every integral is within what it is part of."""
    started = next(fact for fact in facts if isinstance(fact, e.RunStarted))
    occupied = next(fact for fact in facts if isinstance(fact, e.Occupied))
    all_block_s = started.gpu_blocks * occupied.at_s
    assert 0 <= occupied.held_block_s <= occupied.used_block_s <= all_block_s * (1 + 1e-12)
    assert 0 <= occupied.stalled_block_s <= all_block_s * (1 + 1e-12)
    assert 0 <= occupied.busy_s <= occupied.at_s
    metrics = Metrics()
    for fact in facts:
        metrics.add(fact)
    found = metrics.result()
    if found["gpu_usage_mean"] is not None:
        assert 0 <= found["effective_utilisation"] <= found["gpu_usage_mean"] <= 1 + 1e-12
    return occupied
