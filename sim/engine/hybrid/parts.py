"""What an engine is made of where the KV cache has several groups."""

from __future__ import annotations

from typing import NamedTuple

from ...machine.machine import Machine
from ...machine.timing import Timing
from ..memory.context_tree import ContextTree
from ..memory.link import Link
from ..scheduling.step import StepLog
from .hybrid_copies import HybridCopies
from .hybrid_meter import HybridMeter
from .hybrid_pool import HybridPool
from .hybrid_scheduler import HybridScheduler


class Parts(NamedTuple):
    """Pools of both sides, what moves pages between them, who gets pages, and what is used when."""

    gpu: HybridPool
    host: HybridPool
    copies: HybridCopies
    scheduler: HybridScheduler
    meter: HybridMeter


def hybrid_parts(
    machine: Machine, timing: Timing, tree: ContextTree, link: Link, *, one_by_one: bool, step_log: StepLog | None
) -> Parts:
    """The parts of an engine for this machine."""
    gpu, host = HybridPool(tree, machine.gpu_blocks, 0, machine), HybridPool(tree, machine.host_blocks, 1, machine)
    copies = HybridCopies(gpu, host, link, machine.block_tokens)
    scheduler = HybridScheduler(machine, timing, gpu, host, copies, one_by_one=one_by_one, step_log=step_log)
    return Parts(gpu, host, copies, scheduler, HybridMeter(gpu, scheduler.hybrid_calls))
