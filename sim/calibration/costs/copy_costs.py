"""What a copy costs, from copies that were measured: a time for the job, and a time for each byte on the link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..samples import CopySample
from .regression import Array, distinct, fit_costs
from .step_costs import CONFIDENCE, REDRAWN, Estimate

LEAST_COPIES = 4
PROMPT_SHARE = 0.25  # the engine sees the end of a copy when it looks: the quick quarter tells of the copy alone
FASTEST_GBPS, SLOWEST_GBPS = 1e6, 1e-3  # what a machine's link may be


class CopyFit(NamedTuple):
    """The constants of copies: one link for both ways, as a machine has it, and each way by itself."""

    copy_s: Estimate
    link_gbps: Estimate
    to_host_gbps: float | None
    to_gpu_gbps: float | None
    copies: int
    median: float | None  # (fitted − measured) / measured of the middle copy
    p95: float | None


def fit_copies(copies: Sequence[CopySample], block_bytes: int, seed: int = 0) -> CopyFit:
    """Fits both ways together. Where there are too few copies the constants say so, and a link takes no time."""
    if len(copies) < LEAST_COPIES:
        nothing = "no copies were measured"
        return CopyFit(
            Estimate(0.0, why=nothing), Estimate(FASTEST_GBPS, why=nothing), None, None, len(copies), None, None
        )
    rng = np.random.default_rng(seed)
    costs, known = _costs(copies, block_bytes)
    drawn = np.array(
        [
            _costs([copies[i] for i in rng.integers(len(copies), size=len(copies))], block_bytes)[0]
            for _ in range(REDRAWN)
        ]
    )
    rates = np.array([_gbps(cost) for cost in drawn[:, 1]])
    errors = _errors(copies, costs, block_bytes)
    return CopyFit(
        _with_interval(costs[0], drawn[:, 0]) if known else Estimate(0.0, why="the copies are of one size"),
        _with_interval(_gbps(costs[1]), rates),
        _one_way(copies, True, block_bytes),
        _one_way(copies, False, block_bytes),
        len(copies),
        float(np.median(errors)),
        float(np.quantile(np.abs(errors), 0.95)),
    )


def _costs(copies: Sequence[CopySample], block_bytes: int) -> tuple[Array, bool]:
    """Seconds of a job and of 1e9 bytes, and whether the two can be told apart."""
    sizes = sorted({(copy.to_host, copy.blocks) for copy in copies})
    quick = [
        float(np.quantile([copy.seconds for copy in copies if (copy.to_host, copy.blocks) == size], PROMPT_SHARE))
        for size in sizes
    ]
    seconds = np.array(quick)
    columns = np.array([[blocks * block_bytes / 1e9, 1.0] for _, blocks in sizes])
    known = distinct(columns, seconds, np.ones_like(seconds))
    found = np.zeros(2)
    found[known] = fit_costs(columns[:, known], seconds, np.ones_like(seconds)).costs
    return found[::-1], 1 in known


def _one_way(copies: Sequence[CopySample], to_host: bool, block_bytes: int) -> float | None:
    here = [copy for copy in copies if copy.to_host == to_host]
    return _gbps(_costs(here, block_bytes)[0][1]) if len(here) >= LEAST_COPIES else None


def _gbps(seconds_per_gb: float) -> float:
    """Of a link that takes no measurable time: the fastest that a machine may have."""
    return float(np.clip(1 / seconds_per_gb, SLOWEST_GBPS, FASTEST_GBPS)) if seconds_per_gb > 0 else FASTEST_GBPS


def _with_interval(value: float, drawn: Array) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def _errors(copies: Sequence[CopySample], costs: Array, block_bytes: int) -> Array:
    measured = np.array([copy.seconds for copy in copies])
    fitted = np.array([costs[0] + costs[1] * copy.blocks * block_bytes / 1e9 for copy in copies])
    errors: Array = fitted / measured - 1
    return errors
