"""vLLM's own offloading: every full block is written through to the host, and loaded by any call whose prompt hits it.

Source: vLLM's OffloadingConnector and its two managers of host memory, `lru` and `arc` (vLLM 0.26 to 0.32,
`vllm/v1/kv_offload`; 0.33 orders `lru` by a block's latest request, the end of its prompt first); ARC is Megiddo and
Modha, *ARC: A Self-Tuning, Low Overhead Replacement Cache*, FAST 2003.

The engine writes through by itself (`Plan.write_through`), so with `lru` there is nothing to decide. What the published
rule leaves open here:

- *Answers.* vLLM copies a block when the step has ended that fills it. Here that is so for prompts; an answer's blocks
  are copied when its call ends. vLLM saves answers only with `offload_prompt_only=false`; its default is
  `save=prompts`.
- *What ARC manages.* vLLM's keys are blocks. Here they are the contexts of agents that live, weighed by their blocks,
  because that is what a plan can hold and give up; all else on the host goes by last use. A context that is saved the
  first time is *recent*; one that was loaded or saved again since is *frequent*. What is given up leaves its name
  behind, and when it is saved again, the target of the recent part moves as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from ...traces import events as e
from ...traces.apps import AgentId, AppId
from ..interface import Extent, Plan, View
from ..parts.dispatch import Handler, merged, tell
from ..parts.ended_calls import EndedCalls, whole_contexts

Evict = Literal["lru", "arc"]


class NativeOffload:
    """vLLM's own offloading: full blocks written through to the host, and loaded by any call whose prompt hits them.

    `evict`: who leaves a full host, the least recently used block or ARC's choice. `save`: whether answers are saved
    or prompts alone.
    """

    def __init__(self, evict: Evict = "lru", save: Extent = "contexts") -> None:
        self._ended_calls = EndedCalls()
        self._arc = Arc()
        self.handlers: Mapping[type, Handler] = {
            e.LoadStarted: self._load_started,
            e.OffloadFinished: self._offload_finished,
            e.AppFinished: self._app_finished,
        }
        self._handlers = merged((self._ended_calls, self))
        self._save = save
        self._evict = evict
        self._plan = Plan(write_through=save if evict == "lru" else "prompts")
        self.listens_to: frozenset[type] = frozenset()
        if evict == "arc":
            self.listens_to = frozenset({e.CallFinished, e.OffloadFinished})

    def plan(self, view: View) -> Plan:
        """Write through; with ARC, save what ended and hold it, and make room for it."""
        if self._evict == "lru":
            return self._plan
        tell(view.news, self._handlers, view)
        agents = self._ended_calls.ended(view)
        moves = tuple(whole_contexts(agents))
        if self._save == "prompts":
            prompts = (view.agents[move.agent].last.prompt_tokens // view.block_tokens for move in moves)
            moves = tuple(move._replace(blocks=blocks) for move, blocks in zip(moves, prompts, strict=True) if blocks)
        new = (move.blocks - view.agents[move.agent].host_blocks for move in moves)
        missing = sum(max(0, blocks) for blocks in new) - view.host_free_blocks
        forget = self._arc.room_for(missing, keep={agent.id for agent in agents})
        return replace(self._plan, offload=moves, forget=forget) if moves or forget else self._plan

    def _load_started(self, fact: e.LoadStarted, view: View) -> None:
        self._arc.hit(self._ended_calls.agent_of(fact.call))

    def _offload_finished(self, fact: e.OffloadFinished, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if fact.upto_blocks and agent is not None:
            self._arc.saved(agent.app, fact.agent, fact.upto_blocks, view.host_blocks)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self._arc.forget(fact.app)


class CopiesByUse:
    """Copies of one kind by their last use, the oldest first, in blocks, and how many blocks they have together."""

    def __init__(self) -> None:
        self._blocks: dict[AgentId, int] = {}
        self.total_blocks = 0

    def __contains__(self, agent: AgentId) -> bool:
        return agent in self._blocks

    def put(self, agent: AgentId, blocks: int) -> None:
        """Add a copy; it is the latest used."""
        self._blocks[agent] = blocks
        self.total_blocks += blocks

    def pop(self, agent: AgentId) -> int | None:
        """Take a copy out. Its blocks, if it was in."""
        blocks = self._blocks.pop(agent, None)
        if blocks is not None:
            self.total_blocks -= blocks
        return blocks

    def oldest(self, keep: set[AgentId]) -> AgentId | None:
        """The least recently used copy that is none of `keep`."""
        return next((name for name in self._blocks if name not in keep), None)


class Arc:
    """Which copies to give up, by ARC's rule. Sizes are blocks."""

    def __init__(self) -> None:
        self._recent = CopiesByUse()
        self._frequent = CopiesByUse()
        self._gone_recent = CopiesByUse()  # copies that were given up
        self._gone_frequent = CopiesByUse()
        self._agents_of: dict[AppId, dict[AgentId, None]] = {}  # that had a copy
        self.recent_target_blocks = 0.0  # how much of the host the recent ones should have

    def hit(self, agent: AgentId) -> None:
        """A copy was loaded: it is frequent from now on."""
        blocks = self._recent.pop(agent)
        if blocks is None:
            blocks = self._frequent.pop(agent)
        if blocks is not None:
            self._frequent.put(agent, blocks)

    def saved(self, app: AppId, agent: AgentId, blocks: int, host_blocks: int) -> None:
        """A copy was made, or made longer. If it was given up before, the part that it fell out of should be larger."""
        self._agents_of.setdefault(app, {})[agent] = None
        recent, frequent = self._gone_recent.total_blocks, self._gone_frequent.total_blocks
        if (missed := self._gone_recent.pop(agent)) is not None:
            grown = self.recent_target_blocks + missed * max(1.0, frequent / recent)
            self.recent_target_blocks = min(float(host_blocks), grown)
        elif (missed := self._gone_frequent.pop(agent)) is not None:
            self.recent_target_blocks = max(0.0, self.recent_target_blocks - missed * max(1.0, recent / frequent))
        known = self._recent.pop(agent) is not None or self._frequent.pop(agent) is not None
        (self._frequent if known or missed is not None else self._recent).put(agent, blocks)

    def room_for(self, blocks: int, keep: set[AgentId]) -> tuple[AgentId, ...]:
        """Give up copies until so many blocks are free, as far as they are known to be; but none of `keep`."""
        given_up: list[AgentId] = []
        while blocks > 0 and (name := self._next(keep)) is not None:
            recent = name in self._recent
            size = (self._recent if recent else self._frequent).pop(name)
            assert size is not None
            (self._gone_recent if recent else self._gone_frequent).put(name, size)
            blocks -= size
            given_up.append(name)
        return tuple(given_up)

    def forget(self, app: AppId) -> None:
        """The application ended: its agents do not come back, and the engine gives up their copies."""
        for agent in self._agents_of.pop(app, ()):
            for copies in (self._recent, self._frequent, self._gone_recent, self._gone_frequent):
                copies.pop(agent)

    def _next(self, keep: set[AgentId]) -> AgentId | None:
        recent, frequent = self._recent.oldest(keep), self._frequent.oldest(keep)
        if recent is None or frequent is None:
            return frequent if recent is None else recent
        return recent if self._recent.total_blocks > self.recent_target_blocks else frequent
