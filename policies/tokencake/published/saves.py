"""When the published policy saves a context: at the start of a tool, if the copy pays.

A save is a wager that the context will be overwritten before the tool returns; so it is considered only when some
waiting call could start now and overwrite it, and weighed against what the copies cost. In stock vLLM a finished call's
blocks are free already but still cached: the copy saves their content, it does not free them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import ClassVar

from ....traces import events as e
from ....traces.apps import AgentId, AppId
from ....traces.arithmetic import div_ceil
from ....traces.events import Request
from ...interface import AgentView, Costs, Move, View
from ...parts.admission import LOOK_AHEAD_CALLS, startable_blocks
from ...parts.dispatch import Handler
from ..options import Options
from ..stalls import Stall, Stalls

CHURN_A_COPY = 0.25  # score that each earlier copy of an agent costs
CHURN_MOST = 1.0


class PublishedSaves:
    """Saves stalled agents, one by one, as far as the gate lets them pass. `importance` is that of an agent's call.

    The published score subtracts a *churn* that is not spelt out: here 0.25 points for each copy that the agent had, at
    most 1.
    """

    after: ClassVar[frozenset[type]] = frozenset({e.ToolStarted})
    due = False  # a stall that is open is no debt

    def __init__(self, options: Options, stalls: Stalls, importance: Callable[[Request], float]) -> None:
        self._options = options
        self._stalls = stalls
        self._importance = importance
        self._copies_of: dict[AppId, dict[AgentId, int]] = {}  # how many copies were made of each agent
        self._agents_of: dict[AppId, dict[AgentId, None]] = {}  # that had a stall
        self._heard_of: deque[Stall] = deque()  # by the step in which they are looked at first
        self._refused: deque[Stall] = deque()  # by the step in which they are looked at again
        self._due: dict[AgentId, Stall] = {}  # that may be looked at
        self.handlers: Mapping[type, Handler] = {
            e.ToolStarted: self._tool_started,
            e.ToolReturned: self._tool_returned,
            e.CallArrived: self._arrived,
            e.OffloadFinished: self._offload_finished,
            e.AppFinished: self._app_finished,
        }

    def weighs(self, view: View) -> bool:
        """Whether some stall may be saved in this step."""
        return bool(self._candidates(view))

    def saves(self, view: View) -> tuple[Move, ...]:
        """Which stalls to save now, and how much of each.

        With the gate, only in a step in which some waiting call could be admitted.
        """
        stalls = self._candidates(view)
        if not stalls:
            return ()
        agents = [view.agents[stall.agent] for stall in stalls]
        enough = 2 * max([agent.context_blocks for agent in agents]) + 1  # more makes no difference to any of them
        fit = startable_blocks(view, enough) if self._options.gate else 0
        if self._options.gate and not fit:
            return ()
        for stall in stalls:
            del self._due[stall.agent]
        demand = waiting_blocks(view, max(view.free_blocks, enough) + 1)
        room = view.host_free_blocks
        refuses_all = self._options.gate and self._refuses_all(demand, view)
        moves: list[Move] = []
        for stall, agent in zip(stalls, agents, strict=True):
            if not self._options.gate:
                blocks = min(agent.context_blocks, agent.host_blocks + room)
            elif refuses_all:
                blocks = 0
            else:
                blocks = self._weigh(stall, agent, fit, demand, room, view)
            new = blocks - agent.host_blocks
            if new <= 0:
                stall.refused = True
                stall.look_step = view.step + self._options.offload_retry_steps
                self._refused.append(stall)
                continue
            room -= new
            stall.saved = True
            moves.append(Move(stall.agent, blocks))
        return tuple(moves)

    def wake_at_s(self, view: View) -> float | None:
        """When to look at stalls of which this step heard: in the next one, if they may be saved then."""
        if not (view.waiting or (view.running and not self._options.gate)):
            return None
        if any(map(self._is_open, self._heard_of)):
            return view.now_s
        return None

    def _candidates(self, view: View) -> list[Stall]:
        """Stalls that may be saved in this step: from the step after the one that heard of the tool's start on.

        In that step the memory that the call gave up is handed out already; so what waits may overwrite a part of the
        context before it can be saved. One that was weighed and refused may be weighed again some steps later. To be
        passed over because nothing that waits could be admitted is no refusal. No more than 128 are weighed in a step.
        """
        due = self._due
        for coming in (self._heard_of, self._refused):
            while coming and coming[0].look_step <= view.step:
                stall = coming.popleft()
                if self._is_open(stall):
                    due[stall.agent] = stall
        stalls = list(islice(due.values(), LOOK_AHEAD_CALLS))
        stalls.sort(key=_number)
        return stalls

    def _is_open(self, stall: Stall) -> bool:
        return self._stalls.open.get(stall.agent) is stall

    # -- the gate

    def _refuses_all(self, demand_blocks: int, view: View) -> bool:
        """Whether no stall is saved now, whichever it is: the GPU has room enough, or the host has none."""
        options = self._options
        if view.host_free_blocks <= 0:
            return True
        least_usage = min(options.offload_usage_share, options.emergency_usage_share)
        return _usage(view) < least_usage and demand_blocks <= view.free_blocks

    def _weigh(
        self,
        stall: Stall,
        agent: AgentView,
        fit_blocks: int,
        demand_blocks: int,
        host_blocks: int,
        view: View,
    ) -> int:
        """Blocks to save, 0 to refuse. `host_blocks` is the room on the host."""
        options = self._options
        blocks = agent.context_blocks
        new = blocks - agent.host_blocks
        if new <= 0 or host_blocks <= 0:
            return 0
        gap_s = stall.returns_s - view.now_s
        copy_s = max(view.costs.offload_s(blocks), view.costs.upload_s(blocks))
        margin_s = gap_s - copy_s
        if margin_s <= 0:
            return 0
        usage = _usage(view)
        near = stall.request.hints.near_completion
        emergency = usage >= options.emergency_usage_share and margin_s >= max(4 * copy_s, options.emergency_margin_s)
        if not emergency:
            if margin_s < max(options.margin_s, options.margin_copies * copy_s):
                return 0
            if usage < options.offload_usage_share and demand_blocks <= view.free_blocks:
                return 0
            weight = self._importance(stall.request)
            if weight >= options.offload_importance and (near or margin_s < max(0.5, 8 * copy_s) or gap_s < 2 * copy_s):
                return 0
            score = (
                min(6.0, margin_s / max(0.25, copy_s))
                + max(0.0, 6 * (usage - options.offload_usage_share))
                + min(2.0, demand_blocks / (blocks + 1))
                + min(2.0, fit_blocks / max(1, blocks))
                + (1 if gap_s >= 2 * copy_s else -1)
                + (1 if host_blocks >= new else -4)
                - 0.35 * min(10.0, weight)
                - (2 if near else 0)
                - self._churn(agent)
            )
            if score < options.offload_score:
                return 0
        most = min(blocks, agent.host_blocks + host_blocks)
        return longest_save(most, agent.host_blocks, gap_s, view.costs, options)

    def _churn(self, agent: AgentView) -> float:
        copies = self._copies_of.get(agent.app, {}).get(agent.id, 0)
        return min(CHURN_MOST, CHURN_A_COPY * copies)

    # -- facts

    def _tool_started(self, fact: e.ToolStarted, view: View) -> None:
        stall = self._stalls.open.get(fact.agent)
        if stall is not None and stall.request.id == fact.call and not stall.saved:
            self._heard_of.append(stall)
            self._agents_of.setdefault(stall.request.app, {})[stall.agent] = None

    def _tool_returned(self, fact: e.ToolReturned, view: View) -> None:
        self._due.pop(fact.agent, None)

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        self._due.pop(fact.request.agent, None)

    def _offload_finished(self, fact: e.OffloadFinished, view: View) -> None:
        agent = view.agents.get(fact.agent)
        if agent is not None:  # its application may have ended meanwhile
            copies = self._copies_of.setdefault(agent.app, {})
            copies[agent.id] = copies.get(agent.id, 0) + 1

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        self._copies_of.pop(fact.app, None)
        for agent in self._agents_of.pop(fact.app, ()):
            self._due.pop(agent, None)  # a client may leave while its tools run


def _usage(view: View) -> float:
    return 1 - view.free_blocks / view.gpu_blocks


def _number(stall: Stall) -> int:
    return stall.number


def waiting_blocks(view: View, enough_blocks: int) -> int:
    """Blocks of the waiting calls' prompts, cached or not; counted only until they are enough."""
    block_tokens = view.block_tokens
    blocks = 0
    for call in view.waiting.values():
        if not call.loading:
            blocks += div_ceil(call.request.prompt_tokens, block_tokens)
            if blocks >= enough_blocks:
                break
    return blocks


def longest_save(most_blocks: int, host_blocks: int, remaining_s: float, costs: Costs, options: Options) -> int:
    """The longest prefix, in blocks, that can go down and come up again in time: published window.

    With `t` the time for the new blocks down and all blocks up, what remains must leave `max(0.05 s, 2 t)` beside `t`.
    0 if no block that the host lacks does.
    """

    def in_time(blocks: int) -> bool:
        t = costs.offload_s(blocks - host_blocks) + costs.upload_s(blocks)
        return remaining_s - t >= max(options.margin_s, options.margin_copies * t)

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
