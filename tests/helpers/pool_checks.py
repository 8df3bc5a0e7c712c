"""What must hold of a pool of blocks whenever one looks."""

from __future__ import annotations

from itertools import pairwise

from tokencake.sim.engine.memory.block_pool import BlockPool
from tokencake.sim.engine.memory.blocks import BlockRun
from tokencake.sim.engine.memory.context_tree import Node


def check_whole(pool: BlockPool, side: int) -> None:
    """The pool's structures agree: every run is where it belongs, and the counts are those of the runs."""
    nodes = _nodes(pool._cached._tree.empty.node)
    runs = [run for node in nodes for run in (*node.runs[side], *node.later_copies[side])]
    for node in nodes:
        found = node.runs[side]
        assert all(a.end_block <= b.first_block for a, b in pairwise(found)), "found runs are disjoint and in order"
        known = {block for run in found for block in range(run.first_block, run.end_block)}
        assert all(
            block in known for copy in node.later_copies[side] for block in range(copy.first_block, copy.end_block)
        ), "copies have an elder"
        assert all(run.is_first_copy for run in found)
        assert not any(copy.is_first_copy for copy in node.later_copies[side])
    queue = _queue(pool)
    assert {id(run) for run in queue} == {id(run) for run in runs if not run.ref_cnt}
    idle = sum(run.end_block - run.first_block for run in queue)
    assert pool.num_free_blocks == pool._uncached_free_blocks + idle
    assert all(run.first_block < run.end_block for run in runs)
    stalled = [run for run in queue if run.owner is not None and run.owner.stalled]
    assert pool.stalled_idle_blocks == sum(run.end_block - run.first_block for run in stalled)


def _nodes(root: Node) -> list[Node]:
    nodes = [root]
    for node in nodes:
        nodes.extend(node.children.values())
    return nodes


def _queue(pool: BlockPool) -> list[BlockRun]:
    return list(pool._queue)
