"""What must hold of a pool of blocks whenever one looks."""

from __future__ import annotations

from itertools import pairwise

from tokencake.sim.engine.memory.block_pool import KvPool, Run
from tokencake.sim.engine.memory.context_tree import Node


def check_whole(pool: KvPool, side: int) -> None:
    """The pool's structures agree: every run is where it belongs, and the counts are those of the runs."""
    nodes = _nodes(pool._tree.empty.node)
    runs = [run for node in nodes for run in (*node.runs[side], *node.extra[side])]
    for node in nodes:
        found = node.runs[side]
        assert all(a.end <= b.first for a, b in pairwise(found)), "found runs are disjoint and in order"
        known = {block for run in found for block in range(run.first, run.end)}
        assert all(block in known for copy in node.extra[side] for block in range(copy.first, copy.end)), (
            "copies have an elder"
        )
        assert all(run.found for run in found)
        assert not any(copy.found for copy in node.extra[side])
    queue = _queue(pool)
    assert {id(run) for run in queue} == {id(run) for run in runs if not run.refs}
    idle = sum(run.end - run.first for run in queue)
    assert pool.free == pool._blank + idle
    assert all(run.first < run.end for run in runs)
    stalled = [run for run in queue if run.owner is not None and run.owner.stalled]
    assert pool.stalled_idle == sum(run.end - run.first for run in stalled)


def _nodes(root: Node) -> list[Node]:
    nodes = [root]
    for node in nodes:
        nodes.extend(node.children.values())
    return nodes


def _queue(pool: KvPool) -> list[Run]:
    runs = []
    run = pool._queue.behind
    while run is not None and run is not pool._queue:
        runs.append(run)
        run = run.behind
    return runs
