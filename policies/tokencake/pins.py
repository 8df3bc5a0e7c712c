"""Contexts that stay on the GPU during a tool, where contexts that leave it get lost."""

from __future__ import annotations

from collections.abc import Mapping

from ...traces.apps import AgentId
from ..interface import EMPTY, View
from ..parts.admission import Admission
from .miss_share import MissShare
from .options import Options
from .seniority import Blocked, Seniority
from .stalls import Stalls


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

    def pins(self, admission: Admission, view: View) -> Mapping[AgentId, float]:
        """Agents to pin, each until a time."""
        weight = self._weight * self._miss_share.share
        pins: dict[AgentId, float] = {}
        if weight:
            for stall in self._stalls.open.values():
                tokens = view.agents[stall.agent].context_blocks * view.block_tokens
                until_s = stall.since_s + weight * view.costs.prefill_s(tokens, 0)
                if tokens and view.now_s < until_s:
                    pins[stall.agent] = until_s
            blocked = self._seniority.blocked(admission)
            if pins and blocked is not None:
                self._give_up(pins, blocked, view)
        self._miss_share.pinned = frozenset(pins)
        return pins or EMPTY

    def _give_up(self, pins: dict[AgentId, float], blocked: Blocked, view: View) -> None:
        rank = self._seniority.rank
        missing, senior = blocked.missing_blocks, rank(blocked.app)
        ranks = {name: rank(view.agents[name].app) for name in pins}
        for name in sorted(pins, key=lambda name: (-ranks[name], -view.agents[name].number)):
            if missing <= 0 or ranks[name] <= senior:
                break
            missing -= view.agents[name].context_blocks
            del pins[name]
