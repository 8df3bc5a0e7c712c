"""A policy that wants nonsense, but valid nonsense: what an engine must bear from any policy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from tokencake.policies.interface import EVERYTHING, Move, Plan, View

T = TypeVar("T")
FARTHEST_S = 2.0


class Adversary:
    """Random plans, the same for the same seed and the same facts. How it is inclined is random, too."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        kinds = sorted(EVERYTHING, key=lambda kind: kind.__name__)
        self._hears = EVERYTHING if rng.random() < 0.5 else frozenset(rng.sample(kinds, rng.randint(1, len(kinds))))
        self._holds_back = rng.choice((0.0, 0.3, 1.0))
        self._copies = rng.choice((0.0, 0.2, 0.8))
        self._pins = rng.choice((0.0, 0.2, 0.8))
        self._wakes = rng.choice((0.0, 0.3, 1.0))
        self._reorders = rng.choice((0.0, 0.5))

    @property
    def hears(self) -> frozenset[type]:
        return self._hears

    def plan(self, view: View) -> Plan:
        if not view.agents:
            return Plan()  # nothing to spoil; and a wish to be woken would never end
        rng = self._rng
        agents = list(view.agents)
        for call in self._some(list(view.waiting), 0.2):
            view.hits(call)
            view.shared_blocks(call)
        return Plan(
            admit=self._admit(list(view.waiting)),
            skip=rng.random() < 0.5,
            preempt=self._some(list(view.running), self._reorders),
            evict=self._some(agents, self._reorders),
            offload=tuple(self._move(agent) for agent in self._some(agents, self._copies)),
            upload=tuple(self._move(agent) for agent in self._some(agents, self._copies)),
            cancel=self._some(agents, self._copies / 2),
            forget=self._some(agents, self._copies / 2),
            pin={agent: view.now_s + self._seconds() for agent in self._some(agents, self._pins)},
            wake_at_s=view.now_s + self._seconds() if rng.random() < self._wakes else None,
        )

    def _admit(self, waiting: list[str]) -> tuple[str, ...] | None:
        if self._rng.random() >= self._holds_back:
            return None
        return self._some(waiting, self._rng.random())

    def _move(self, agent: str) -> Move:
        return Move(agent, self._rng.choice((0, 1, self._rng.randint(0, 40), 10**6)), self._rng.random() < 0.5)

    def _some(self, items: Sequence[T], share: float) -> tuple[T, ...]:
        """About this share of the items, in any order."""
        chosen = [item for item in items if self._rng.random() < share]
        self._rng.shuffle(chosen)
        return tuple(chosen)

    def _seconds(self) -> float:
        return self._rng.choice((-1.0, 0.0, 0.01, self._rng.uniform(0.0, FARTHEST_S)))
