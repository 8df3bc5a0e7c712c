"""Uploads ahead of need: bring a saved context back before its tool returns; give the room up when it is needed.

`predictive` starts at the predicted return, less the time of the copy, less a lead; over a short time before that it
gathers GPU blocks step by step, so that no single step has to find them all. `pause` starts as soon as there is idle
room.

Room goes by score: an upload claims it like a waiting call would, with the score that the agent's next call will have
when it arrives. It is cancelled when a more urgent waiting call would fit into its room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf

from ....traces import events as e
from ....traces.apps import AgentId, AppId, CallId
from ....traces.events import Request
from ...interface import Move, View
from ...parts.admission import Admission, Claim, Rival
from ...parts.dispatch import Handler
from ..halves import NOTHING, SpaceHalf, Wishes
from ..options import Options
from ..stalls import Stall, Stalls
from .gather_queue import GatherQueue
from .upload_ranks import UploadRanks

GATHER_PARTS = 4


class UploadClaim(Claim):
    """The blocks that a stalled agent's upload should grow by now."""

    __slots__ = ("has_blocks", "stall")

    def __init__(self, score: float, stall: Stall, has_blocks: int, blocks: int) -> None:
        super().__init__(score, blocks)
        self.stall = stall
        self.has_blocks = has_blocks


class Uploads:
    """Uploads of stalled agents. First `handlers`, then `claims`, then (with what they were granted) `wishes`.

    `space` says which score the next call of an agent will have.
    """

    def __init__(self, options: Options, stalls: Stalls, space: SpaceHalf) -> None:
        self._options = options
        self._stalls = stalls
        self._space = space
        self._blocks: dict[AgentId, int] = {}  # asked for, and not taken yet
        self._for: dict[AgentId, Request] = {}  # the last call of each of these agents
        self._ranks = UploadRanks()  # of these agents
        self._caller: dict[CallId, AgentId] = {}  # of calls that came while they had uploads, and have not ended
        self._went_on: dict[AgentId, None] = {}  # agents whose scores are others since such a call ended
        self._refused: dict[AppId, set[AgentId]] = {}  # in this stall: there is nothing to bring back
        self._queue = GatherQueue()  # of those who lack blocks that the host has
        self._agents_of: dict[AppId, dict[AgentId, None]] = {}  # that were in the queue
        self._changed: dict[AgentId, None] = {}  # agents that may have another place in it
        self._next: list[tuple[float, int]] = []  # when claims of `near` ones grow, and what room that takes
        self.held_blocks = 0  # room that is held, or being filled
        self.handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallFinished: self._call_ended,
            e.CallAborted: self._call_ended,
            e.ToolStarted: self._agent_changed,
            e.ToolReturned: self._agent_changed,
            e.OffloadStarted: self._agent_changed,
            e.OffloadFinished: self._agent_changed,
            e.HostDropped: self._agent_changed,
            e.UploadRefused: self._refuse,
            e.UploadTaken: self._end,
            e.UploadCancelled: self._end,
            e.AppFinished: self._app_finished,
        }

    def claims(self, view: View) -> Sequence[UploadClaim]:
        """Stalls whose uploads lag behind what should be gathered by now, highest score first.

        Where all scores are equal and nothing is gathered, those are enough that take all free blocks.
        """
        self._next.clear()
        for name in self._changed:
            self._place(name, view)
        self._changed.clear()
        now_s, agents = view.now_s, view.agents
        alike = not self._options.space and self._options.upload == "pause"
        enough_blocks = view.free_blocks if alike else inf
        claims: list[UploadClaim] = []
        for _, name in self._queue.near(now_s):
            if enough_blocks <= 0:
                break
            stall = self._stalls.open[name]
            blocks = agents[name].host_blocks
            has = self._blocks.get(name, 0)
            share, next_s = self._progress(stall, view.costs.upload_s(blocks), now_s)
            target = ceil(share * blocks)
            if target > has:
                claims.append(UploadClaim(self._space.agent_score(stall.request), stall, has, target - has))
                enough_blocks -= target - has
            if next_s is not None:
                self._next.append((next_s, _step(blocks)))
        if len(claims) > 1:
            claims.sort(key=lambda claim: (-claim.score, agents[claim.stall.agent].number))
        return claims

    def wishes(self, claims: Sequence[UploadClaim], admission: Admission, view: View) -> Wishes:
        """Cancel for the rival, or else upload what was granted. A part that is neither a step nor the rest waits."""
        room_blocks = admission.room_blocks
        rival = admission.rival if self._blocks else None  # or there is nothing to cancel for it
        if not (claims or self._queue) and rival is None:
            return NOTHING
        wake_at_s = self._grows_s(room_blocks, view)
        cancel = () if rival is None else self._cancelled(room_blocks, rival, view)
        if cancel:
            return Wishes((), cancel, wake_at_s)
        moves = []
        for claim in claims:
            agent = claim.stall.agent
            if claim.granted_blocks >= min(_step(view.agents[agent].host_blocks), claim.blocks):
                self.held_blocks += claim.has_blocks + claim.granted_blocks - self._blocks.get(agent, 0)
                self._blocks[agent] = claim.has_blocks + claim.granted_blocks
                self._for[agent] = claim.stall.request
                self._rank(agent, view)
                self._changed[agent] = None
                moves.append(Move(agent, self._blocks[agent]))
        if not moves and wake_at_s is None:
            return NOTHING
        return Wishes(tuple(moves), (), wake_at_s)

    def _place(self, name: AgentId, view: View) -> None:
        """Where an agent belongs in the queue: nowhere, unless the host has blocks for its stall that it lacks."""
        self._queue.remove(name)
        stall, agent = self._stalls.open.get(name), view.agents.get(name)
        if stall is None or agent is None or agent.offloading or name in self._refused.get(agent.app, ()):
            return
        blocks = agent.host_blocks
        if blocks > self._blocks.get(name, 0):
            pause = self._options.upload == "pause"
            start_s = self._starts_s(stall, view.costs.upload_s(blocks))
            self._queue.put(name, agent.number, -inf if pause else start_s - self._options.gather_s)
            self._agents_of.setdefault(agent.app, {})[name] = None

    def _grows_s(self, room_blocks: int, view: View) -> float | None:
        """When the next claim grows whose part there is room for."""
        grows_s: float | None = None
        for at_s, blocks in self._next:
            if blocks <= room_blocks and (grows_s is None or at_s < grows_s):
                grows_s = at_s
        for at_s, _, name in self._queue.far():
            if grows_s is not None and grows_s <= at_s:
                break
            if _step(view.agents[name].host_blocks) <= room_blocks:
                return at_s
        return grows_s

    def _starts_s(self, stall: Stall, copy_s: float) -> float:
        """When the copy must start to be complete in time."""
        return stall.returns_s - copy_s - self._options.lead_s

    def _progress(self, stall: Stall, copy_s: float, now_s: float) -> tuple[float, float | None]:
        """The share of the blocks that should be gathered now, and when it grows next."""
        if self._options.upload == "pause":
            return 1.0, None
        start_s = self._starts_s(stall, copy_s)
        part_s = self._options.gather_s / GATHER_PARTS
        if now_s >= start_s:
            return 1.0, None
        if not part_s:
            return 0.0, start_s
        parts_left = ceil((start_s - now_s) / part_s)
        if parts_left > GATHER_PARTS:
            return 0.0, start_s - self._options.gather_s
        next_s = start_s - (parts_left - 1) * part_s
        return (GATHER_PARTS + 1 - parts_left) / (GATHER_PARTS + 1), next_s if next_s > now_s else start_s

    def _cancelled(self, room_blocks: int, rival: Rival, view: View) -> tuple[AgentId, ...]:
        """Uploads to give up, the least urgent first: as many as the rival needs, none if they do not help it."""
        missing = rival.need_blocks - room_blocks
        cancel: list[AgentId] = []
        if missing > self.held_blocks:
            return ()
        self._went_on.update(dict.fromkeys(self._ranks.ended(view.now_s)))
        for agent in self._went_on:
            if agent in self._for:
                self._rank(agent, view)
        self._went_on.clear()
        for points, agent in self._ranks.lowest(self._points):
            if missing <= 0 or points >= rival.score:
                break
            missing -= self._blocks[agent]
            cancel.append(agent)
        if missing > 0:
            return ()
        for agent in cancel:
            self._drop(agent)
        return tuple(cancel)

    def _points(self, agent: AgentId) -> float:
        return self._space.agent_score(self._for[agent])

    def _rank(self, agent: AgentId, view: View) -> None:
        self._ranks.put(agent, view.agents[agent].number, self._space.agent_line(self._for[agent]))

    def _drop(self, agent: AgentId) -> None:
        self.held_blocks -= self._blocks.pop(agent, 0)
        self._for.pop(agent, None)
        self._ranks.remove(agent)
        self._changed[agent] = None

    # -- facts

    def _agent_changed(
        self, fact: e.ToolStarted | e.ToolReturned | e.OffloadStarted | e.OffloadFinished | e.HostDropped, view: View
    ) -> None:
        self._changed[fact.agent] = None

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        self._refused.get(request.app, set()).discard(request.agent)
        self._changed[request.agent] = None
        if request.agent in self._for:
            self._caller[request.id] = request.agent

    def _call_ended(self, fact: e.CallFinished | e.CallAborted, view: View) -> None:
        agent = self._caller.pop(fact.call, None)
        if agent in self._for:  # what was asked for it was refused, or it has several calls
            self._went_on[agent] = None

    def _refuse(self, fact: e.UploadRefused, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is not None:
            self._refused.setdefault(agent.app, set()).add(fact.agent)
            self._changed[fact.agent] = None

    def _end(self, fact: e.UploadTaken | e.UploadCancelled, view: View) -> None:
        self._drop(fact.agent)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for agent in self._agents_of.pop(fact.app, ()):
            self._drop(agent)
        self._refused.pop(fact.app, None)


def _step(blocks: int) -> int:
    """The blocks of a context that are gathered at once."""
    return ceil(blocks / (GATHER_PARTS + 1))
