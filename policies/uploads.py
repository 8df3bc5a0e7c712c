"""Uploads ahead of need: bring a saved context back before its tool returns; give the room up when it is needed.

`predictive` starts at the predicted return, less the time of the copy, less a lead; over a short time before that it
gathers GPU blocks step by step, so that no single step has to find them all. `pause` starts as soon as there is idle
room. Uploads only take room that no more urgent waiting call could use, and are cancelled when one needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil
from typing import Any, NamedTuple

from ..traces import events as e
from ..traces.apps import AgentId
from ..traces.events import Request
from .admission import Rival
from .interface import Move, View
from .rules import Rules
from .temporal import Stall

GATHER_PARTS = 4


class Uploading:
    """Room that was asked for an agent's next call."""

    __slots__ = ("blocks", "request")

    def __init__(self, request: Request, blocks: int) -> None:
        self.request = request  # the agent's last call
        self.blocks = blocks


class Wishes(NamedTuple):
    """What to upload, what to cancel, when to look again."""

    upload: tuple[Move, ...]
    cancel: tuple[AgentId, ...]
    wake_at_s: float | None


NOTHING = Wishes((), (), None)


class Uploads:
    """Uploads of stalled agents. `fold` first, then `due`, then `wishes`."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._uploading: dict[AgentId, Uploading] = {}
        self._refused: set[AgentId] = set()  # in this stall: there is nothing to bring back
        self._fold: dict[type, Callable[[Any], None]] = {
            e.ToolStarted: self._tool_started,
            e.UploadRefused: self._refuse,
            e.UploadTaken: self._end,
            e.UploadCancelled: self._end,
            e.CallArrived: self._arrived,
        }

    def fold(self, view: View) -> None:
        """Take in the news."""
        handlers = self._fold
        for fact in view.news:
            handler = handlers.get(type(fact))
            if handler is not None:
                handler(fact)

    def due(
        self, stalls: Iterable[Stall], room_blocks: int, contested: bool, view: View
    ) -> tuple[list[tuple[Stall, int]], float | None]:
        """Stalls whose uploads lag behind, each with the blocks it should hold by now; and when to look again.

        If the room is `contested`, some waiting call found too little of it: then only an upload that fits as a whole
        is considered, since room changes with news alone, and a part would help neither.
        """
        now_s = view.now_s
        wake_at_s: float | None = None
        ready = []
        for stall in stalls:
            agent = view.agents[stall.agent]
            blocks = agent.host_blocks
            if not blocks or agent.offloading or stall.agent in self._refused:
                continue
            uploading = self._uploading.get(stall.agent)
            missing = blocks if uploading is None else blocks - uploading.blocks
            if missing <= 0 or missing > room_blocks and (contested or not room_blocks):
                continue
            part, next_s = self._progress(stall, view.costs.upload_s(blocks), now_s)
            if part and blocks - missing < part * blocks:
                ready.append((stall, ceil(part * blocks)))
            if next_s is not None and (wake_at_s is None or next_s < wake_at_s):
                wake_at_s = next_s
        return ready, wake_at_s

    def _progress(self, stall: Stall, copy_s: float, now_s: float) -> tuple[float, float | None]:
        """The share of the blocks that should be gathered now, and when it grows next."""
        if self._rules.upload == "pause":
            return 1.0, None
        start_s = stall.returns_s - copy_s - self._rules.lead_s
        part_s = self._rules.gather_s / GATHER_PARTS
        if now_s >= start_s:
            return 1.0, None
        if not part_s:
            return 0.0, start_s
        parts_left = ceil((start_s - now_s) / part_s)
        if parts_left > GATHER_PARTS:
            return 0.0, start_s - self._rules.gather_s
        next_s = start_s - (parts_left - 1) * part_s
        return (GATHER_PARTS + 1 - parts_left) / (GATHER_PARTS + 1), next_s if next_s > now_s else start_s

    @property
    def hold_room(self) -> bool:
        """Whether any upload has room."""
        return bool(self._uploading)

    def wishes(
        self,
        ready: list[tuple[Stall, int]],
        wake_at_s: float | None,
        room_blocks: int,
        rival: Rival | None,
        score: Callable[[Request, View], float],
        view: View,
    ) -> Wishes:
        """Grow what is due as far as there is room; give up what a more urgent waiting call needs."""
        cancel = self._cancelled(room_blocks, rival, score, view)
        if cancel:
            return Wishes((), cancel, wake_at_s)
        moves = []
        for stall, target in ready:
            uploading = self._uploading.get(stall.agent)
            has = 0 if uploading is None else uploading.blocks
            blocks = min(target, has + room_blocks)
            if blocks <= has or (rival is not None and rival.score >= score(stall.request, view)):
                continue
            room_blocks -= blocks - has
            self._uploading[stall.agent] = Uploading(stall.request, blocks)
            moves.append(Move(stall.agent, blocks))
        return Wishes(tuple(moves), (), wake_at_s)

    def _cancelled(
        self, room_blocks: int, rival: Rival | None, score: Callable[[Request, View], float], view: View
    ) -> tuple[AgentId, ...]:
        """Uploads to give up, the least urgent first: as many as the rival needs, none if they do not help it."""
        if rival is None or not self._uploading:
            return ()
        missing = rival.need_blocks - room_blocks
        scored = [(score(upload.request, view), agent, upload) for agent, upload in self._uploading.items()]
        cancel = []
        for points, agent, upload in sorted(scored, key=lambda entry: entry[:2]):
            if missing <= 0 or points >= rival.score:
                break
            missing -= upload.blocks
            cancel.append(agent)
        if missing > 0:
            return ()
        for agent in cancel:
            del self._uploading[agent]
        return tuple(cancel)

    # -- facts

    def _tool_started(self, fact: e.ToolStarted) -> None:
        self._refused.discard(fact.agent)

    def _refuse(self, fact: e.UploadRefused) -> None:
        self._refused.add(fact.agent)
        self._uploading.pop(fact.agent, None)

    def _end(self, fact: e.UploadTaken | e.UploadCancelled) -> None:
        self._uploading.pop(fact.agent, None)

    def _arrived(self, fact: e.CallArrived) -> None:
        self._refused.discard(fact.request.agent)
