"""Contexts that stay on the GPU during a tool, where contexts that leave it get lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ...traces.apps import AgentId, AppId
from ..interface import EMPTY, View
from .losses import Losses
from .options import Options
from .published.temporal import Stall


class Blocked(NamedTuple):
    """The waiting call that comes next and did not fit."""

    app: AppId
    missing_blocks: int


class Keeps:
    """Which stalled agents' caches to keep on the GPU, and until when.

    A context is kept while its tool has run for less than what leaving it to itself is expected to cost: `keep_weight`
    times the share of a context that gets lost (`Losses`) times the time to compute it again. How long the tool will
    yet run is nowhere used: that it has run for long is the best sign that it will (Abhyankar and others, *InferCept*,
    ICML 2024, estimate so, too). Where nothing gets lost nothing is kept.

    For a call that comes next and does not fit, contexts of applications younger than its own are given up, the
    youngest first.
    """

    def __init__(self, rules: Options, losses: Losses) -> None:
        self._weight = rules.keep_weight
        self._losses = losses

    def pins(
        self, stalls: Iterable[Stall], blocked: Blocked | None, rank: Callable[[AppId], int], view: View
    ) -> Mapping[AgentId, float]:
        """Agents to pin, each until a time."""
        weight = self._weight * self._losses.share
        pins: dict[AgentId, float] = {}
        if weight:
            for stall in stalls:
                tokens = view.agents[stall.agent].context_blocks * view.block_tokens
                until_s = stall.since_s + weight * view.costs.prefill_s(tokens, 0)
                if tokens and view.now_s < until_s:
                    pins[stall.agent] = until_s
            if pins and blocked is not None:
                _give_up(pins, blocked, rank, view)
        self._losses.kept = frozenset(pins)
        return pins or EMPTY


def _give_up(pins: dict[AgentId, float], blocked: Blocked, rank: Callable[[AppId], int], view: View) -> None:
    missing, senior = blocked.missing_blocks, rank(blocked.app)
    ranks = {name: rank(view.agents[name].app) for name in pins}
    for name in sorted(pins, key=lambda name: (-ranks[name], -view.agents[name].number)):
        if missing <= 0 or ranks[name] <= senior:
            break
        missing -= view.agents[name].context_blocks
        del pins[name]
