"""What a plan can do in a tier that vLLM fills by itself: hold what is there of a context, and give it up.

Blocks are chunks: so many tokens as the connector stores at once. Nothing is copied here: vLLM writes through what it
computes, and loads what a prompt hits. `AgentCache` is kept as the engines keep it, but for its host copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from ...policies.execution.copy_rules import blocks_to_move
from ...policies.interface import Move
from ...traces import events as e
from ...traces.apps import AgentId
from ...traces.events import Fact
from ..engine.requests import LiveAgent
from .chunks import Chunks
from .offload_surface import Key


class Held(NamedTuple):
    """What is held for an agent: its first blocks, and in which chunks they lie, of all KV cache groups."""

    agent: LiveAgent
    blocks: int
    keys: Sequence[Key]


class TierCopies:
    """Contexts of agents, and those that are held. `group` is the KV cache group that blocks are of."""

    pinned: ClassVar[Mapping[AgentId, LiveAgent]] = {}  # the GPU is not ours

    def __init__(self, chunks: Chunks, group: int, report: Callable[[Fact], None]) -> None:
        self._chunks = chunks
        self._group = group
        self._report = report
        self._contexts: dict[AgentId, Sequence[Sequence[Key]]] = {}  # by group, of latest finished calls
        self._held: dict[AgentId, Held] = {}  # the one that was held first is the first

    def remember(self, agent: LiveAgent, keys: Sequence[Sequence[Key]]) -> None:
        """A call of the agent has finished: its context is the agent's latest."""
        self._contexts[agent.name] = keys

    # -- what a plan wants, as `carry_out` asks for it

    def offload(self, agent: LiveAgent, move: Move, now_s: float) -> None:
        """Hold what the tier has of the first blocks of an agent's context; refused if that is no more than before."""
        held = self._held.get(agent.name)
        keys = self._contexts.get(agent.name, ())
        upto = blocks_to_move(agent, move)
        there = self._chunks.prefix(keys[self._group][:upto]) if keys else 0
        if agent.gone or there <= (0 if held is None else held.blocks):
            self._report(e.OffloadRefused(now_s, agent.name))
            return
        chosen = [key for of_group in keys for key in of_group[:there] if key in self._chunks]
        self._chunks.hold(chosen)
        if held is not None:
            self._chunks.release(held.keys)
        self._held[agent.name] = Held(agent, there, chosen)
        self._report(e.OffloadStarted(now_s, agent.name, 0, there))
        self._report(e.OffloadFinished(now_s, agent.name, 0, there))

    def forget(self, agent: LiveAgent, now_s: float) -> None:
        """What was held for the agent goes when it is the least recently used."""
        held = self._held.pop(agent.name, None)
        if held is not None:
            self._report(e.HostDropped(now_s, agent.name, self._chunks.release(held.keys)))
        if agent.gone:
            self._contexts.pop(agent.name, None)

    def give_up_oldest(self, now_s: float) -> bool:
        """Forget what has been held for the longest time. False if nothing is held."""
        held = next(iter(self._held.values()), None)
        if held is not None:
            self.forget(held.agent, now_s)
        return held is not None

    def forget_all(self, now_s: float) -> None:
        while self.give_up_oldest(now_s):
            pass

    def evict_first(self, agents: Sequence[LiveAgent]) -> None:
        """The chunks of these agents' contexts go first, the last of each before the others; a shared one with the
        agent that comes later."""
        order: dict[Key, None] = {}
        for agent in agents:
            for key in _from_the_end(self._contexts.get(agent.name, ())):
                order.pop(key, None)
                order[key] = None
        self._chunks.evict_first(order)

    def upload(self, agent: LiveAgent, move: Move, now_s: float) -> None:
        self._report(e.UploadRefused(now_s, agent.name))

    def cancel(self, agent: LiveAgent, now_s: float) -> None:
        """Nothing is uploaded."""

    def pin(self, agent: LiveAgent, until_s: float) -> None:
        """The GPU is not ours."""

    def unpin(self, agent: LiveAgent) -> None:
        """Nothing is pinned."""


def _from_the_end(keys: Sequence[Sequence[Key]]) -> Iterable[Key]:
    """The chunks of a context in all groups, the last one's first."""
    for at in range(max(map(len, keys), default=0) - 1, -1, -1):
        for of_group in keys:
            if at < len(of_group):
                yield of_group[at]
