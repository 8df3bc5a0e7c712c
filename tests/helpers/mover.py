"""Policies that copy, whatever that is good for."""

from __future__ import annotations

import random

from tokencake.policies.interface import EVERYTHING, Move, Plan, View
from tokencake.traces.events import ToolStarted


class Mover:
    """Copies at any time, the same for the same seed and facts: saves and drops stalled agents' caches, brings back
    what it saved too early, on time or too late, and changes its mind."""

    listens_to = EVERYTHING

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def plan(self, view: View) -> Plan:
        rng = self._rng
        offload, upload, cancel = [], [], []
        for agent in view.stalled.values():
            if not (agent.host_blocks or agent.offloading) and rng.random() < 0.7:
                offload.append(Move(agent.id, agent.context_blocks, rng.random() < 0.3))
            elif agent.host_blocks and not (agent.uploading or agent.uploaded_blocks) and rng.random() < 0.5:
                upload.append(Move(agent.id, agent.context_blocks))
            elif (agent.uploading or agent.uploaded_blocks) and rng.random() < 0.2:
                cancel.append(agent.id)
        wake_at_s = view.now_s + rng.uniform(0.01, 0.2) if view.stalled else None
        return Plan(offload=tuple(offload), upload=tuple(upload), cancel=tuple(cancel), wake_at_s=wake_at_s)


class Dropper:
    """Saves and drops each stalled agent's context at once: its next call loads it."""

    listens_to = frozenset({ToolStarted})

    def plan(self, view: View) -> Plan:
        saved = [agent for agent in view.stalled.values() if not agent.offloading]
        return Plan(offload=tuple(Move(agent.id, agent.context_blocks, keep=False) for agent in saved))
