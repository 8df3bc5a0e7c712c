"""Contexts that stay on the GPU during a tool, where contexts that leave it get lost."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import NamedTuple

from ...traces import events as e
from ...traces.apps import AgentId
from ..interface import EMPTY, View
from ..parts.admission import Admission
from ..parts.dispatch import Handler
from .miss_share import MissShare
from .options import Options
from .seniority import Blocked, Seniority
from .stalls import Stall, Stalls


class RecentStall(NamedTuple):
    """A stall whose context may be worth keeping."""

    stall: Stall
    prefill_s: float  # to compute the context again


class Pins:
    """Which stalled agents' caches to keep on the GPU, and until when.

    A context is kept while its tool has run for less than what leaving it to itself is expected to cost: `keep_weight`
    times the share of a context that gets lost (`MissShare`) times the time to compute it again. How long the tool will
    yet run is nowhere used: that it has run for long is the best sign that it will (Abhyankar and others, *InferCept*,
    ICML 2024, estimate so, too). Where nothing gets lost nothing is kept.

    For a call that comes next and does not fit, contexts of applications younger than its own are given up, the
    youngest first.
    """

    def __init__(self, options: Options, miss_share: MissShare, stalls: Stalls, seniority: Seniority) -> None:
        self._weight = options.keep_weight
        self._miss_share = miss_share
        self._stalls = stalls
        self._seniority = seniority
        self._recent: dict[AgentId, RecentStall] = {}  # in the order in which their tools started
        self._ends: list[tuple[float, int, RecentStall]] = []  # when a stall is recent no more, and its number
        self.handlers: Mapping[type, Handler] = {
            e.ToolStarted: self._tool_started,
            e.ToolReturned: self._tool_returned,
            e.CallArrived: self._arrived,
        }

    def pins(self, admission: Admission, view: View) -> Mapping[AgentId, float]:
        """Agents to pin, each until a time."""
        weight = self._weight * self._miss_share.share
        pins: dict[AgentId, float] = {}
        self._expire(view.now_s)
        if weight:
            for name, (stall, prefill_s) in self._recent.items():
                until_s = stall.since_s + weight * prefill_s
                if view.now_s < until_s and self._stalls.open.get(name) is stall:
                    pins[name] = until_s
            blocked = self._seniority.blocked(admission)
            if pins and blocked is not None:
                self._give_up(pins, blocked, view)
        self._miss_share.pinned = frozenset(pins)
        return pins or EMPTY

    def _expire(self, now_s: float) -> None:
        """Leave out the stalls that would be kept no longer if contexts were lost as a whole."""
        ends = self._ends
        while ends and ends[0][0] <= now_s:
            _, _, recent = heappop(ends)
            if self._recent.get(recent.stall.agent) is recent:
                del self._recent[recent.stall.agent]

    def _give_up(self, pins: dict[AgentId, float], blocked: Blocked, view: View) -> None:
        rank = self._seniority.rank
        missing, senior = blocked.missing_blocks, rank(blocked.app)
        ranks = {name: rank(view.agents[name].app) for name in pins}
        for name in sorted(pins, key=lambda name: (-ranks[name], -view.agents[name].number)):
            if missing <= 0 or ranks[name] <= senior:
                break
            missing -= view.agents[name].context_blocks
            del pins[name]

    # -- facts

    def _tool_started(self, fact: e.ToolStarted, view: View) -> None:
        stall = self._stalls.open.get(fact.agent)
        if stall is None or not self._weight:
            return
        self._recent.pop(fact.agent, None)
        blocks = view.agents[fact.agent].context_blocks
        if blocks:
            recent = RecentStall(stall, view.costs.prefill_s(blocks * view.block_tokens, 0))
            self._recent[fact.agent] = recent
            heappush(self._ends, (stall.since_s + self._weight * recent.prefill_s, stall.number, recent))

    def _tool_returned(self, fact: e.ToolReturned, view: View) -> None:
        self._recent.pop(fact.agent, None)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        self._recent.pop(fact.request.agent, None)
