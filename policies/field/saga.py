"""The time to live of SAGA: keep a stalled agent's cache for as long as its tool takes in 95 of 100 cases.

Tool times are taken to be log-normal. With `mu` and `sigma` of their logarithms, estimated for each tool by
exponentially weighted means in which the newest gap has the weight 0.2, an agent's cache is kept for

    exp(mu + 1.645 * sigma) * (1 - 0.5 * m),    m = clip((usage - 0.7) / 0.2, 0, 1),

and at most for 300 s: 1.645 is the normal distribution's 95th percentile, and where memory is short (`usage` is the
share of the blocks that somebody holds) half of the time has to do. Then the cache is free, and least recently used
blocks go. Of SAGA this is what one engine can do; how it spreads workflows over engines has no place here.

Left open there, chosen here:

- *A gap* lasts from the tool's start to the arrival of the agent's next call, since so long the cache has to last.
- *A tool* is the kinds of the tools that one call starts side by side.
- *The first gap* of a tool sets `mu`; before it `mu` is the logarithm of the declared time, or of 1 s. `sigma` starts
  at 0.5 (the 95th percentile is 2.3 times the median), because after one gap a spread of 0 would keep nothing that
  takes longer than the first. Then `sigma` is the exponentially weighted deviation from the mean before.
- *Usage* is looked at once, when the tool starts. Blocks that are cached but free count as free.
- *A keep ends at its time*, whether the agent's call waits by then or not: the rule names no other end, and in a
  first-come queue a call may wait for minutes.
- *Contexts that no later call extends* are not kept: the application says which (`reusable`).
- *Order, admission and preemption* are vLLM's. If nothing runs and nothing fits, the engine gives the pins up.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log, sqrt
from typing import ClassVar

from ...traces import events as e
from ...traces.apps import AgentId
from ...traces.errors import PolicyError
from ...traces.events import Request
from ..interface import NATIVE, Plan, View
from ..parts.dispatch import Handler, tell
from ..parts.tool_stalls import ToolStalls
from ..parts.tool_times import ToolKey, tool_kinds

UNKNOWN_GAP_S = 1.0
FIRST_SIGMA = 0.5
PERCENTILE_95 = 1.645  # of the normal distribution, in standard deviations
SHORTEST_GAP_S = 1e-6  # a logarithm needs one


class LogNormalGaps:
    """Exponentially weighted mean and variance of the logarithms of gaps, for each tool."""

    def __init__(self, weight_share: float) -> None:
        self._weight = weight_share
        self._seen: dict[ToolKey, tuple[float, float]] = {}  # mu, and sigma squared

    def learn(self, request: Request, gap_s: float) -> None:
        """Take in how long the tools of this call really took."""
        key = tool_kinds(request)
        x = log(max(gap_s, SHORTEST_GAP_S))
        if key not in self._seen:
            self._seen[key] = (x, FIRST_SIGMA**2)
            return
        mu, variance = self._seen[key]
        off = x - mu
        self._seen[key] = (mu + self._weight * off, (1 - self._weight) * (variance + self._weight * off**2))

    def percentile_95_s(self, request: Request) -> float:
        """So long, at most, do 95 of 100 such tools take."""
        seen = self._seen.get(tool_kinds(request))
        if seen is None:
            declared_s = max((tool.declared_s for tool in request.tools if tool.declared_s is not None), default=None)
            mu = log(max(UNKNOWN_GAP_S if declared_s is None else declared_s, SHORTEST_GAP_S))
            return exp(mu + PERCENTILE_95 * FIRST_SIGMA)
        mu, variance = seen
        return exp(mu + PERCENTILE_95 * sqrt(variance))


class Saga:
    """Keeps a context for as long as its tool takes in 95 of 100 cases, and shorter where memory is short.

    At most for `most_s`. `weight_share` is the newest gap's weight. Raises PolicyError unless it is above 0 and at most
    1, and `most_s` at least 0.
    """

    # Arrivals and admissions lie in the news until the next tool starts; the engine ends pins by itself.
    listens_to: ClassVar[frozenset[type]] = frozenset({e.ToolStarted})

    def __init__(self, weight_share: float = 0.2, most_s: float = 300.0) -> None:
        if not 0 < weight_share <= 1:
            raise PolicyError(f"saga: option weight_share: expected above 0 and at most 1, got {weight_share!r}")
        if not 0 <= most_s < float("inf"):
            raise PolicyError(f"saga: option most_s: expected a time of at least 0, got {most_s!r}")
        self._most_s = most_s
        self._gaps = LogNormalGaps(weight_share)
        self._stalls = ToolStalls()
        self._pins: dict[AgentId, float] = {}
        self._handlers: Mapping[type, Handler] = {
            e.ToolStarted: self._tool_started,
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._closed,
            e.CallAborted: self._closed,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Keep what is to be kept, each agent until its time or its next call's start."""
        pressure = min(1.0, max(0.0, (1 - view.free_blocks / view.gpu_blocks - 0.7) / 0.2))
        tell(view.news, self._handlers, 1 - 0.5 * pressure)
        self._pins = {agent: until_s for agent, until_s in self._pins.items() if until_s > view.now_s}
        return Plan(pin=self._pins) if self._pins else NATIVE

    # -- facts, with the share of its time for which a context is kept

    def _tool_started(self, fact: e.ToolStarted, time_share: float) -> None:
        stall = self._stalls.started(fact)
        if stall is not None:
            keep_s = min(self._most_s, self._gaps.percentile_95_s(stall.request) * time_share)
            self._pins[stall.agent] = stall.since_s + keep_s

    def _arrived(self, fact: e.CallArrived, time_share: float) -> None:
        stall = self._stalls.arrived(fact)
        if stall is not None:
            self._gaps.learn(stall.request, fact.at_s - stall.since_s)

    def _closed(self, fact: e.CallAdmitted | e.CallAborted, time_share: float) -> None:
        stall = self._stalls.closed(fact.call)
        if stall is not None:
            self._pins.pop(stall.agent, None)

    def _app_finished(self, fact: e.AppFinished, time_share: float) -> None:
        for stall in self._stalls.app_finished(fact):
            self._pins.pop(stall.agent, None)
