"""Uploads ahead of need: bring a saved context back before its tool returns; give the room up when it is needed.

`predictive` starts at the predicted return, less the time of the copy, less a lead; over a short time before that it
gathers GPU blocks step by step, so that no single step has to find them all. `pause` starts as soon as there is idle
room.

Room goes by score: an upload claims it like a waiting call would, with the score that the agent's next call will have
when it arrives. It is cancelled when a more urgent waiting call would fit into its room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil

from ....traces import events as e
from ....traces.apps import AgentId, AppId
from ....traces.events import Request
from ...interface import Move, View
from ...parts.admission import Admission, Claim, Rival
from ...parts.dispatch import Handler
from ..halves import NOTHING, Wishes
from ..options import Options
from ..stalls import Stall, Stalls

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

    `score` is that of the next call of an agent whose last call is given.
    """

    def __init__(self, options: Options, stalls: Stalls, score: Callable[[Request], float]) -> None:
        self._options = options
        self._stalls = stalls
        self._score = score
        self._blocks: dict[AgentId, int] = {}  # asked for, and not taken yet
        self._for: dict[AgentId, Request] = {}  # the last call of each of these agents
        self._refused: dict[AppId, set[AgentId]] = {}  # in this stall: there is nothing to bring back
        self._next: list[tuple[float, int]] = []  # when claims grow, and what room that takes
        self.handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.UploadRefused: self._refuse,
            e.UploadTaken: self._end,
            e.UploadCancelled: self._end,
            e.AppFinished: self._app_finished,
        }

    @property
    def held_blocks(self) -> int:
        """Room that is held, or being filled."""
        return sum(self._blocks.values())

    def claims(self, view: View) -> Sequence[UploadClaim]:
        """Stalls whose uploads lag behind what should be gathered by now, highest score first."""
        self._next.clear()
        now_s, agents = view.now_s, view.agents
        claims = []
        for stall in self._stalls.open.values():
            agent = agents[stall.agent]
            blocks = agent.host_blocks
            if not blocks:
                continue  # most of them
            has = self._blocks.get(stall.agent, 0)
            if blocks <= has or agent.offloading or stall.agent in self._refused.get(agent.app, ()):
                continue
            share, next_s = self._progress(stall, view.costs.upload_s(blocks), now_s)
            target = ceil(share * blocks)
            if target > has:
                claims.append(UploadClaim(self._score(stall.request), stall, has, target - has))
            if next_s is not None:
                self._next.append((next_s, ceil(blocks / (GATHER_PARTS + 1))))
        if len(claims) > 1:
            claims.sort(key=lambda claim: (-claim.score, agents[claim.stall.agent].number))
        return claims

    def wishes(self, claims: Sequence[UploadClaim], admission: Admission, view: View) -> Wishes:
        """Cancel for the rival, or else upload what was granted. A part that is neither a step nor the rest waits."""
        room_blocks = admission.room_blocks
        rival = admission.rival if self._blocks else None  # or there is nothing to cancel for it
        if not claims and not self._next and rival is None:
            return NOTHING
        wake_at_s = min((at_s for at_s, blocks in self._next if blocks <= room_blocks), default=None)
        cancel = () if rival is None else self._cancelled(room_blocks, rival, view)
        if cancel:
            return Wishes((), cancel, wake_at_s)
        moves = []
        for claim in claims:
            agent = claim.stall.agent
            step = ceil(view.agents[agent].host_blocks / (GATHER_PARTS + 1))
            if claim.granted_blocks >= min(step, claim.blocks):
                self._blocks[agent] = claim.has_blocks + claim.granted_blocks
                self._for[agent] = claim.stall.request
                moves.append(Move(agent, self._blocks[agent]))
        if not moves and wake_at_s is None:
            return NOTHING
        return Wishes(tuple(moves), (), wake_at_s)

    def _progress(self, stall: Stall, copy_s: float, now_s: float) -> tuple[float, float | None]:
        """The share of the blocks that should be gathered now, and when it grows next."""
        if self._options.upload == "pause":
            return 1.0, None
        start_s = stall.returns_s - copy_s - self._options.lead_s
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
        cancel = []
        scored = [(self._score(request), -view.agents[agent].number, agent) for agent, request in self._for.items()]
        for points, _, agent in sorted(scored):
            if missing <= 0 or points >= rival.score:
                break
            missing -= self._blocks[agent]
            cancel.append(agent)
        if missing > 0:
            return ()
        for agent in cancel:
            self._drop(agent)
        return tuple(cancel)

    def _drop(self, agent: AgentId) -> None:
        self._blocks.pop(agent, None)
        self._for.pop(agent, None)

    # -- facts

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        self._refused.get(fact.request.app, set()).discard(fact.request.agent)

    def _refuse(self, fact: e.UploadRefused, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is not None:
            self._refused.setdefault(agent.app, set()).add(fact.agent)

    def _end(self, fact: e.UploadTaken | e.UploadCancelled, view: View) -> None:
        self._drop(fact.agent)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for agent in [agent for agent, request in self._for.items() if request.app == fact.app]:
            self._drop(agent)
        self._refused.pop(fact.app, None)
