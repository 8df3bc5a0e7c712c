"""The temporal half of Tokencake: save an agent's context when its tool starts, give the copy up when it is not needed.

A save is a wager that the context will be overwritten before the tool returns; so it is considered only when some
waiting call could start now and overwrite it, and weighed against what the copies cost. In stock vLLM a finished call's
blocks are free already but still cached: the copy saves their content, it does not free them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from ....traces import events as e
from ....traces.apps import AgentId, AppId
from ....traces.events import Request
from ...interface import AgentView, Costs, Move, View
from ...parts.admission import startable_blocks
from ...parts.tool_times import GapEstimates, Gaps
from ...parts.write_through import WriteThrough, whole_contexts
from ..options import Options

CHURN_A_COPY = 0.25  # score that each earlier copy of an agent costs
CHURN_MOST = 1.0


class Stall:
    """An agent that waits for its tool."""

    __slots__ = ("agent", "gap_s", "look_step", "refused", "request", "saved", "since_s")

    def __init__(self, agent: AgentId, request: Request, since_s: float, gap_s: float, look_step: int) -> None:
        self.agent = agent
        self.request = request
        self.since_s = since_s
        self.gap_s = gap_s  # predicted
        self.saved = False  # one save a stall, and none if the call may not be saved
        self.refused = False  # it was weighed, and not saved
        self.look_step = look_step  # from this step on it may be weighed, the first time or again

    @property
    def returns_s(self) -> float:
        """When the tool is predicted to return."""
        return self.since_s + self.gap_s


class Temporal:
    """Offload and hold. First `handlers` for each fact, then `begin`, then `saves`.

    A copy is held while its tool runs, at most four predictions, within [60 s, 1 h]; then it is given up. What is given
    up can still be hit until the host needs its room; the authors' host never does, and each of their copies is loaded
    several times.

    The published score subtracts a *churn* that is not spelt out: here 0.25 points for each copy that the agent had, at
    most 1.
    """

    def __init__(self, rules: Options, gaps: Gaps | None = None) -> None:
        self._rules = rules
        self._gaps = GapEstimates(rules.gap_weight_share, rules.unknown_gap_s) if gaps is None else gaps
        self.stalls: dict[AgentId, Stall] = {}
        self._stalled_of: dict[AppId, dict[AgentId, None]] = {}
        self._held_until_s: dict[AgentId, float] = {}  # copies on the host that this policy has not given up
        self._expires_s = inf  # no copy sooner
        self._copies_of: dict[AppId, dict[AgentId, int]] = {}  # how many copies were made of each agent
        self._forget: list[AgentId] = []
        self.through = WriteThrough() if rules.save == "all" else None  # has handlers of its own
        self.handlers: Mapping[type, Callable[[Any, View], None]] = {
            e.CallArrived: self._arrived,
            e.ToolStarted: self._tool_started,
            e.ToolReturned: self._tool_returned,
            e.OffloadFinished: self._offload_finished,
            e.HostDropped: self._host_dropped,
            e.AppFinished: self._app_finished,
        }

    def begin(self, view: View) -> None:
        """The news is taken in: give up what was held for too long."""
        if self._expires_s <= view.now_s:
            self._expire(view.now_s)

    @property
    def at_rest(self) -> bool:
        """No tool runs, and nothing is left to give up."""
        return not (self.stalls or self._forget or (self.through is not None and self.through.due))

    @property
    def holds_nothing(self) -> bool:
        """Whether there is no copy on the host that this policy has not given up."""
        return not (self._held_until_s or self._forget)

    def open_stalls(self, view: View) -> list[Stall]:
        """Stalls that may be saved in this step: from the step after the one that heard of the tool's start on.

        In that step the memory that the call gave up is handed out already; so what waits may overwrite a part of the
        context before it can be saved. One that was weighed and refused may be weighed again some steps later. To be
        passed over because nothing that waits could be admitted is no refusal.
        """
        if self.through is not None:
            return []
        step = view.step
        return [stall for stall in self.stalls.values() if not stall.saved and step >= stall.look_step]

    def wake_at_s(self, view: View) -> float | None:
        """When to look at stalls of which this step heard: in the next one, if they may be saved then."""
        if self.through is not None or not (view.waiting or (view.running and not self._rules.gate)):
            return None
        step = view.step
        for stall in reversed(self.stalls.values()):  # the latest of them are last
            if not (stall.saved or stall.refused) and step < stall.look_step:
                return view.now_s
        return None

    def saves(self, stalls: list[Stall], importance: Callable[[Request, View], float], view: View) -> list[Move]:
        """Which of these stalls to save now, and how much of each.

        With the gate, only in a step in which some waiting call could be admitted. Where all contexts are saved, a
        stall is nothing special: what its call left was saved when the call ended.
        """
        if self.through is not None:
            return whole_contexts(self.through.ended(view))
        if not stalls:
            return []
        agents = [view.agents[stall.agent] for stall in stalls]
        enough = 2 * max(agent.context_blocks for agent in agents) + 1  # more makes no difference to any of them
        fit = startable_blocks(view, enough) if self._rules.gate else 0
        if self._rules.gate and not fit:
            return []
        demand = waiting_blocks(view, max(view.free_blocks, enough) + 1)
        room = view.host_free_blocks
        moves = []
        for stall, agent in zip(stalls, agents, strict=True):
            if self._rules.gate:
                blocks = self._weigh(stall, agent, fit, demand, room, importance, view)
            else:
                blocks = min(agent.context_blocks, agent.host_blocks + room)
            new = blocks - agent.host_blocks
            if new <= 0:
                stall.refused = True
                stall.look_step = view.step + self._rules.offload_retry_steps
                continue
            room -= new
            stall.saved = True
            moves.append(Move(stall.agent, blocks))
        return moves

    def forgotten(self) -> tuple[AgentId, ...]:
        """Host copies to give up now. Each is named once."""
        forget, self._forget = tuple(self._forget), []
        return forget

    # -- the gate

    def _weigh(
        self,
        stall: Stall,
        agent: AgentView,
        fit_blocks: int,
        demand_blocks: int,
        host_blocks: int,
        importance: Callable[[Request, View], float],
        view: View,
    ) -> int:
        """Blocks to save, 0 to refuse. `host_blocks` is the room on the host."""
        rules = self._rules
        blocks = agent.context_blocks
        new = blocks - agent.host_blocks
        if new <= 0 or host_blocks <= 0:
            return 0
        gap_s = stall.returns_s - view.now_s
        copy_s = max(view.costs.offload_s(blocks), view.costs.upload_s(blocks))
        margin_s = gap_s - copy_s
        if margin_s <= 0:
            return 0
        usage = 1 - view.free_blocks / view.gpu_blocks
        near = stall.request.hints.near_completion
        emergency = usage >= rules.emergency_usage_share and margin_s >= max(4 * copy_s, rules.emergency_margin_s)
        if not emergency:
            if margin_s < max(rules.margin_s, rules.margin_copies * copy_s):
                return 0
            if usage < rules.offload_usage_share and demand_blocks <= view.free_blocks:
                return 0
            weight = importance(stall.request, view)
            if weight >= rules.offload_importance and (near or margin_s < max(0.5, 8 * copy_s) or gap_s < 2 * copy_s):
                return 0
            score = (
                min(6.0, margin_s / max(0.25, copy_s))
                + max(0.0, 6 * (usage - rules.offload_usage_share))
                + min(2.0, demand_blocks / (blocks + 1))
                + min(2.0, fit_blocks / max(1, blocks))
                + (1 if gap_s >= 2 * copy_s else -1)
                + (1 if host_blocks >= new else -4)
                - 0.35 * min(10.0, weight)
                - (2 if near else 0)
                - self._churn(agent)
            )
            if score < rules.offload_score:
                return 0
        most = min(blocks, agent.host_blocks + host_blocks)
        return longest_save(most, agent.host_blocks, gap_s, view.costs, rules)

    def _churn(self, agent: AgentView) -> float:
        copies = self._copies_of.get(agent.app, {}).get(agent.id, 0)
        return min(CHURN_MOST, CHURN_A_COPY * copies)

    # -- hold

    def _give_up(self, agent: AgentId) -> None:
        if self._held_until_s.pop(agent, None) is not None:
            self._forget.append(agent)

    def _expire(self, now_s: float) -> None:
        for agent in [agent for agent, until_s in self._held_until_s.items() if until_s <= now_s]:
            self._give_up(agent)
        self._expires_s = min(self._held_until_s.values(), default=inf)

    # -- facts

    def _tool_started(self, fact: e.ToolStarted, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is None or agent.last.id != fact.call:
            return
        request = agent.last
        look_step = view.step + self._rules.notice_steps
        stall = Stall(fact.agent, request, fact.at_s, self._gaps.estimate_s(request), look_step)
        stall.saved = not request.hints.reusable
        self.stalls[fact.agent] = stall
        self._stalled_of.setdefault(request.app, {})[fact.agent] = None

    def _tool_returned(self, fact: e.ToolReturned, view: View) -> None:
        self._end(fact.agent, fact.at_s)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        self._end(fact.request.agent, fact.at_s)

    def _end(self, agent: AgentId, at_s: float) -> None:
        stall = self.stalls.pop(agent, None)
        if stall is not None:
            of_app = self._stalled_of[stall.request.app]
            del of_app[agent]
            if not of_app:
                del self._stalled_of[stall.request.app]
            self._gaps.learn(stall.request, at_s - stall.since_s)
            self._give_up(agent)

    def _offload_finished(self, fact: e.OffloadFinished, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is None:
            return  # its application ended meanwhile
        copies = self._copies_of.setdefault(agent.app, {})
        copies[agent.id] = copies.get(agent.id, 0) + 1
        stall = self.stalls.get(agent.id)
        hold_s = 0.0 if stall is None else min(self._rules.hold_max_s, max(self._rules.hold_min_s, 4 * stall.gap_s))
        until_s = self._held_until_s[agent.id] = fact.at_s + hold_s
        self._expires_s = min(self._expires_s, until_s)

    def _host_dropped(self, fact: e.HostDropped, view: View) -> None:
        self._held_until_s.pop(fact.agent, None)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for agent in self._copies_of.pop(fact.app, ()):
            self._held_until_s.pop(agent, None)
        for name in self._stalled_of.pop(fact.app, ()):  # a client may leave while its tools run
            del self.stalls[name]


def waiting_blocks(view: View, enough_blocks: int) -> int:
    """Blocks of the waiting calls' prompts, cached or not; counted only until they are enough."""
    block_tokens = view.block_tokens
    blocks = 0
    for call in view.waiting.values():
        if not call.loading:
            blocks += -(-call.request.prompt_tokens // block_tokens)
            if blocks >= enough_blocks:
                break
    return blocks


def longest_save(most_blocks: int, host_blocks: int, remaining_s: float, costs: Costs, rules: Options) -> int:
    """The longest prefix, in blocks, that can go down and come up again in time: published window.

    With `t` the time for the new blocks down and all blocks up, what remains must leave `max(0.05 s, 2 t)` beside `t`.
    0 if no block that the host lacks does.
    """

    def in_time(blocks: int) -> bool:
        t = costs.offload_s(blocks - host_blocks) + costs.upload_s(blocks)
        return remaining_s - t >= max(rules.margin_s, rules.margin_copies * t)

    if most_blocks <= host_blocks:
        return 0
    if in_time(most_blocks):
        return most_blocks
    fits, fails = host_blocks, most_blocks
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if in_time(middle):
            fits = middle
        else:
            fails = middle
    return fits if fits > host_blocks else 0
