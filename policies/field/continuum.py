"""Continuum: a stalled agent's cache has a time to live, and calls start in the order of their programs.

Hanchen Li and others, "Continuum: Efficient and Robust Multi-Turn LLM Agent Scheduling with KV Cache Time-to-Live",
arXiv 2511.02230. Keeping a cache for `tau` is a wager that the tool returns by then. With `F` the share of the tool's
observed gaps that were not longer, what is won is `F(tau) * B`, and what it costs is `tau`; so

    tau = argmax over 0 and the observed gaps of F(tau) * B - tau,    B = T * eta + R(c),

`T` being the mean time in the queue of calls whose cache was not kept, `R(c)` the time to prefill the context again,
and `eta = -Corr(k, N - k)` over the turns k of finished agents with N turns: 1 if all have the same number of turns,
less if a turn says little about how many are left. While at most 100 gaps were seen, gaps are taken to be exponential
with mean 1 s and `eta` to be 1, so `tau = ln B` if `B > 1 s`, else 0; while at most 100 of this tool's were seen, `F`
is that of all tools. This is `rule=paper`. What the authors released is simpler (`rule=released`): 2 s if the mean of
the tool's gaps is at most 2 s or unknown, else nothing is kept.

Waiting calls start in this order: preempted ones, those whose cache is kept, then first come, first served by program.
Under pressure the latest program's cache is given up first.

Left open there, chosen here:

- *A program* is an application, the job that somebody waits for: all its agents have its place in the queue. *Turns*
  are an agent's calls, since it is an agent's context that grows by them.
- *A gap* lasts from the tool's start to the arrival of the agent's next call, and *a tool* is the kinds of the tools
  that one call starts side by side. Of a tool's gaps, and of all, the latest 1,000 count: a stall then costs the same
  however long the engine has been up.
- *`T`* is the mean of all waits so far, from arrival to admission; 0 before there is one. A negative `eta` (many turns
  behind an agent foretell many more) counts as 0, for it would make a loss of what a kept cache wins.
- *`R`* is the prefill's time: nothing is on the host, so nothing is reloaded.
- *A call that came in time* keeps its cache until it starts: the order puts it first.
- *Pressure* is that the first call which does not fit could not start now. Then pins are given up, the latest program
  first, until it fits; while something runs only those of programs later than its own, for theirs is the earlier claim.
- *Contexts that no later call extends* are not kept: the application says which (`reusable`).
- *Preemption* is vLLM's: the last admitted first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from math import log, sqrt
from typing import ClassVar, Literal

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.errors import PolicyError
from ...traces.events import Request
from ..interface import CallView, Plan, View
from ..parts.admission import needed_blocks
from ..parts.dispatch import Handler, tell
from ..parts.ranked_queue import RankedQueue
from ..parts.timed_pins import TimedPins
from ..parts.tool_stalls import ToolStall, ToolStalls
from ..parts.tool_times import ToolKey, tool_kinds

Rule = Literal["paper", "released"]

FEW_GAPS = 100  # so many are not yet a distribution
LATEST_GAPS = 1_000
RELEASED_KEEP_S = 2.0

# Places in the queue.
PREEMPTED, KEPT, OTHER = 0.0, 1.0, 2.0


Place = tuple[float, int]  # a time, and the number of what came then: no two are equal


class SeenGaps:
    """The latest gaps of one tool, or of all."""

    def __init__(self) -> None:
        self.count = 0  # in all
        self.mean_s = 0.0  # of all
        self.sorted_s: list[float] = []
        self._by_age_s: deque[float] = deque()

    def learn(self, gap_s: float) -> None:
        """Take in one more."""
        self.count += 1
        self.mean_s += (gap_s - self.mean_s) / self.count
        insort(self.sorted_s, gap_s)
        self._by_age_s.append(gap_s)
        if len(self._by_age_s) > LATEST_GAPS:
            del self.sorted_s[bisect_left(self.sorted_s, self._by_age_s.popleft())]


class Turns:
    """How much a turn tells about the turns to come: sums over the pairs (k, N - k) of agents that have ended."""

    def __init__(self) -> None:
        self._pairs = self._k = self._left = self._kk = self._left_left = self._k_left = 0

    def learn(self, turns: int) -> None:
        """An agent ended after so many calls."""
        squares = turns * (turns + 1) * (2 * turns + 1) // 6
        self._pairs += turns
        self._k += turns * (turns + 1) // 2
        self._left += turns * (turns - 1) // 2
        self._kk += squares
        self._left_left += squares - turns * turns
        self._k_left += turns * turns * (turns + 1) // 2 - squares

    @property
    def eta(self) -> float:
        """-Corr(k, N - k), at least 0; 1 while either does not vary."""
        n = self._pairs
        spread_k = n * self._kk - self._k**2
        spread_left = n * self._left_left - self._left**2
        if not (spread_k and spread_left):
            return 1.0
        together = n * self._k_left - self._k * self._left
        return max(0.0, -together / sqrt(spread_k * spread_left))


def best_keep_s(gaps_s: Sequence[float], benefit_s: float) -> float:
    """Of 0 and these gaps (sorted) the one for which the share of gaps up to it, times the benefit, exceeds it most.

    The shortest, if there are several.
    """
    keep_s = best_s = 0.0
    share_s = benefit_s / max(1, len(gaps_s))
    for i in range(bisect_right(gaps_s, benefit_s)):  # one that is longer than the benefit can only lose
        won_s = (i + 1) * share_s - gaps_s[i]
        if won_s > best_s:
            keep_s, best_s = gaps_s[i], won_s
    return keep_s


class Continuum:
    """Keeps a context for the time that pays, judged by what tools took before; programs first come, first served.

    Raises PolicyError for an unknown rule.
    """

    listens_to: ClassVar[frozenset[type]] = frozenset({e.CallArrived, e.CallPreempted, e.CallFinished, e.ToolStarted})

    def __init__(self, rule: Rule = "paper") -> None:
        if rule not in ("paper", "released"):
            raise PolicyError(f"continuum: option rule: expected paper or released, got {rule!r}")
        self._keep_s = self._paper_s if rule == "paper" else self._released_s
        self._stalls = ToolStalls()
        self._pins = TimedPins()
        self._queue = RankedQueue()
        self._calls: dict[CallId, tuple[Request, Place]] = {}  # that have not ended, and when they arrived
        self._programs: dict[AppId, Place] = {}  # when they started
        self._numbers = count()  # of programs and calls, as they come
        self._all_gaps = SeenGaps()
        self._gaps_of: dict[ToolKey, SeenGaps] = {}
        self._turns = Turns()
        self._turns_of: dict[AppId, dict[AgentId, int]] = {}
        self._evicted: set[CallId] = set()  # waiting calls whose cache was not kept
        self._waits = 0
        self._wait_s = 0.0  # their mean
        self._handlers: Mapping[type, Handler] = {
            e.AppStarted: self._app_started,
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.CallPreempted: self._preempted,
            e.CallFinished: self._left,
            e.CallAborted: self._left,
            e.ToolStarted: self._tool_started,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Take the news in, let go what was kept long enough or is in the way, and put the queue in order."""
        tell(view.news, self._handlers, view)
        self._pins.expire(view.now_s)
        if self._pins and view.waiting:
            self._make_room(view)
        return Plan(admit=self._queue.names(), pin=self._pins.pins(), wake_at_s=self._pins.wake_at_s)

    # -- how long

    def _paper_s(self, stall: ToolStall, view: View) -> float:
        context = view.agents[stall.agent].context_blocks * view.block_tokens
        refill_s = view.costs.prefill_s(context, 0)
        if self._all_gaps.count <= FEW_GAPS:
            benefit_s = self._wait_s + refill_s
            return log(benefit_s) if benefit_s > 1 else 0.0
        gaps = self._gaps_of.get(tool_kinds(stall.request))
        if gaps is None or gaps.count <= FEW_GAPS:
            gaps = self._all_gaps
        return best_keep_s(gaps.sorted_s, self._wait_s * self._turns.eta + refill_s)

    def _released_s(self, stall: ToolStall, view: View) -> float:
        gaps = self._gaps_of.get(tool_kinds(stall.request))
        return RELEASED_KEEP_S if gaps is None or gaps.mean_s <= RELEASED_KEEP_S else 0.0

    # -- pressure

    def _make_room(self, view: View) -> None:
        """Give up what is kept for later programs until the first call that does not fit does."""
        room = view.free_blocks
        for name in self._queue:
            call = view.waiting[name]
            if call.loading:
                continue
            room -= _needed_blocks(call, view)
            if room < 0:
                self._give_up(-room, call.request, view)
                return

    def _give_up(self, blocks: int, request: Request, view: View) -> None:
        """Give up pins of so many blocks, if there are, the latest program's first."""
        least = self._programs[request.app] if view.running else (-1.0, -1)
        stalls = [stall for stall in self._stalls.open.values() if stall.agent in self._pins]
        stalls.sort(key=lambda stall: self._claim(stall, view), reverse=True)
        for stall in stalls:
            if blocks <= 0 or self._programs[stall.request.app] <= least:
                return
            if stall.agent == request.agent:
                continue
            self._pins.drop(stall.agent)
            blocks -= view.agents[stall.agent].context_blocks
            if stall.call is not None:
                self._evicted.add(stall.call)
                self._place(stall.call, OTHER)

    def _claim(self, stall: ToolStall, view: View) -> tuple[float, ...]:
        """How early what is kept for it was asked for: by its program's start, then its own."""
        return (*self._programs[stall.request.app], stall.since_s, view.agents[stall.agent].number)

    def _place(self, call: CallId, rank: float) -> None:
        request, arrived = self._calls[call]
        self._queue.put(call, (rank, *self._programs[request.app], *arrived))

    # -- facts

    def _app_started(self, fact: e.AppStarted, view: View) -> None:
        self._programs[fact.app] = (fact.at_s, next(self._numbers))

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        turns = self._turns_of.setdefault(request.app, {})
        turns[request.agent] = turns.get(request.agent, 0) + 1
        self._calls[request.id] = (request, (fact.at_s, next(self._numbers)))
        stall = self._stalls.arrived(fact)
        kept = False
        if stall is not None:
            gap_s = fact.at_s - stall.since_s
            self._all_gaps.learn(gap_s)
            self._gaps_of.setdefault(tool_kinds(stall.request), SeenGaps()).learn(gap_s)
            kept = self._pins.came(stall.agent, fact.at_s)
            if not kept:
                self._evicted.add(request.id)
        self._place(request.id, KEPT if kept else OTHER)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        self._queue.remove(fact.call)
        if fact.call in self._evicted:
            self._evicted.remove(fact.call)
            wait_s = fact.at_s - self._calls[fact.call][1][0]
            self._waits += 1
            self._wait_s += (wait_s - self._wait_s) / self._waits
        self._close(fact.call)

    def _preempted(self, fact: e.CallPreempted, view: View) -> None:
        self._place(fact.call, PREEMPTED)

    def _left(self, fact: e.CallFinished | e.CallAborted, view: View) -> None:
        self._queue.remove(fact.call)
        self._evicted.discard(fact.call)
        self._calls.pop(fact.call, None)
        self._close(fact.call)

    def _close(self, call: CallId) -> None:
        stall = self._stalls.closed(call)
        if stall is not None:
            self._pins.drop(stall.agent)

    def _tool_started(self, fact: e.ToolStarted, view: View) -> None:
        stall = self._stalls.started(fact)
        if stall is None or stall.agent not in view.agents:
            return
        keep_s = self._keep_s(stall, view)
        if keep_s > 0:
            self._pins.keep(stall.agent, stall.since_s + keep_s)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self._programs.pop(fact.app, None)
        for stall in self._stalls.app_finished(fact):
            self._pins.drop(stall.agent)
        for turns in self._turns_of.pop(fact.app, {}).values():
            self._turns.learn(turns)


def _needed_blocks(call: CallView, view: View) -> int:
    """Free blocks that a call takes at its start."""
    tokens = call.request.prompt_tokens + call.generated_tokens
    return needed_blocks(tokens, view.hits(call.request.id), view.block_tokens)
