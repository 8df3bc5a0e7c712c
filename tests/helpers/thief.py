"""A policy that takes the engine's blocks: its module, for engines that have it as a file or from a package."""

from __future__ import annotations

THIEF = '''
import sys
from tokencake.policies.interface import Plan
from tokencake.traces.events import CallFinished

TAKEN = []


class Thief:
    """When some calls have ended, most of the engine's blocks are gone, until it is asked for again, with `back`."""

    listens_to = frozenset({CallFinished})  # of many at once it is told once: a slow engine has no more plans than that

    def __init__(self, back: bool = False):
        self.left = 3
        if back:
            pool, blocks = TAKEN.pop()
            pool.free_blocks(blocks)

    def plan(self, view):
        self.left -= 1
        if not self.left:
            frame = sys._getframe()
            while type(frame.f_locals.get("self")).__name__ != "Adapter":
                frame = frame.f_back
            pool = frame.f_locals["self"]._scheduler.kv_cache_manager.block_pool
            TAKEN.append((pool, pool.get_new_blocks(pool.get_num_free_blocks() - 2)))
        return Plan()
'''
