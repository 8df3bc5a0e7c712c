"""KVFlow: the cache whose agent is furthest from running again goes first, and what comes next is brought back early.

Source: Z. Pan et al., "KVFlow: Efficient Prefix Caching for Accelerating LLM-Based Multi-Agent Workflows", arXiv
2507.07400.

The rule. Each agent has *steps to execution*: how many calls its application has to make, one after another, until the
agent runs. When room is needed, idle caches go in descending steps; a block that several agents share counts with the
fewest steps among them. Evicted caches stay on the host; those of agents at most `prefetch_steps` away are copied back
while others compute, and a call whose copy is under way is passed over until it is there (the engine does that).

How the steps are found. The paper's client sends the graph; a view shows no call that has not arrived, only hints of
those that have. `remaining_depth` counts the calls down to an end of the application, so the difference between two
calls of one path is the number of steps between them. With `live`, the calls of the same application that wait, run,
or whose tools run:

- 0 if the agent's own call waits or runs;
- never, if nothing says that it calls again (see `endings`): furthest of all;
- 1 if its tools run: its next call needs nothing else that is known;
- 1 if it is idle and no other call of its application is live: its next call is on its way;
- a branch that is joined with live ones (same `join_group`) waits for the slowest of them. The joining call has one
  less remaining than the branch's own last call, so: largest remaining of the live branches - (own remaining - 1);
- otherwise it handed its work on, and runs after what is live: no later than with the application's last call, so the
  largest remaining of the live ones. An upper bound, since nobody says where the work comes back.

Equal steps go by last use, the longest idle first, then the agent that came first.

What else had to be chosen:

- vLLM cannot be stopped at an eviction, so a context is copied to the host when its call ends, if the agent calls again
  ("write-through"): later its blocks may be gone. Where the host lacks room, copies of agents that are no nearer are
  given up for it in the same order: the furthest first, then the longest idle.
- Only as many agents are named for eviction as may have to give up blocks before the policy is asked again.
- Blocks that idle agents share: a plan names agents, and the engine lets what two of them share go with the one that is
  named last, the nearest. What a running call shares with them stays. So the minimum of the paper holds among the
  agents that are named and against those that run; what they share with an idle agent that is not named goes with
  them, and the copies on the host make up for it at the price of a load.
- Prefetched blocks are held until the agent's call takes them, and only room is used that neither waiting nor running
  calls need. They are given up, the furthest agent first, when the first call that waits would fit into their room.
- What is still on the GPU cannot be seen, so a prefetch may be refused because nothing is missing. It is asked for
  again when an eighth of the GPU's blocks was handed out since.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import ClassVar

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.errors import PolicyError
from ...traces.events import Request
from ..interface import AgentView, Move, Plan, Status, View
from ..parts.admission import Admission, first_come
from ..parts.dispatch import Handler, tell
from ..parts.live_calls import LiveCalls
from ..parts.ranked_queue import RankedQueue
from ..parts.returns import Returns

RETRY_SHARE = 1 / 8  # of the GPU's blocks: handed out before a refused prefetch is asked for again


class Workflow:
    """An application's agents."""

    __slots__ = ("agents", "idle", "live")

    def __init__(self) -> None:
        self.agents: list[AgentId] = []
        self.idle: dict[AgentId, None] = {}  # those that wait for others, and call again
        self.live = LiveCalls()  # of all that are not idle


class KvFlow:
    """Saves every context, evicts those whose agents run last, and brings back those whose agents run next."""

    listens_to: ClassVar[frozenset[type]] = frozenset({e.CallArrived, e.CallFinished, e.CallAborted, e.OffloadFinished})

    def __init__(self, prefetch_steps: int = 1) -> None:
        if prefetch_steps < 0:
            raise PolicyError(f"kvflow: option prefetch_steps: expected at least 0, got {prefetch_steps!r}")
        self._prefetch_steps = prefetch_steps
        self._returns = Returns()
        self._last: dict[AgentId, Request] = {}
        self._workflows: dict[AppId, Workflow] = {}
        self._changed: dict[AgentId, None] = {}  # agents whose status or latest call may be another one now
        self._steps: dict[AgentId, float] = {}  # of agents whose calls neither wait nor run
        self._furthest = RankedQueue()  # these agents, in the order in which their caches go
        self._nearest = RankedQueue()  # those of them that are near enough to be prefetched
        self._caller: dict[CallId, AgentId] = {}  # of the calls that have not ended
        self._ended: list[AgentId] = []  # agents whose calls ended since the last plan
        self._held_blocks: dict[AgentId, int] = {}  # prefetched, or on their way
        self._handed_out_blocks = 0  # at least, since the start
        self._retry_blocks: dict[AgentId, float] = {}  # how far that must be before a prefetch is asked for again
        self._handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.CallPreempted: self._preempted,
            e.CallFinished: self._finished,
            e.CallAborted: self._aborted,
            e.ToolStarted: self._tool_changed,
            e.ToolReturned: self._tool_changed,
            e.UploadStarted: self._upload_started,
            e.UploadTaken: self._upload_ended,
            e.UploadCancelled: self._upload_ended,
            e.UploadRefused: self._upload_refused,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Rank idle caches, save what ended, prefetch what comes next or make room for what waits."""
        tell(view.news, self._handlers, view)
        self._rank_anew(view)
        admission = first_come(view, ())
        forget, offload = self._saves(view)
        cancel: tuple[AgentId, ...] = ()
        upload: tuple[Move, ...] = ()
        rival = admission.rival
        if rival is None:
            upload = self._prefetches(admission.room_blocks, view)
        elif self._held_blocks:
            cancel = self._cancelled(rival.need_blocks - (view.free_blocks - admission.fit_blocks), view)
        evict = self._evicted(admission, view)
        return Plan(evict=evict, offload=offload, upload=upload, cancel=cancel, forget=forget)

    # -- steps to execution

    def steps_to_execution(self, name: AgentId) -> float:
        """Of an agent at the time of the last plan; infinite if it is not expected to call again."""
        return self._steps.get(name, 0)

    def _rank_anew(self, view: View) -> None:
        """Find the steps again of agents that changed, and of those that wait for others where these changed."""
        to_rank: dict[AgentId, None] = {}
        for name in self._changed:
            agent = view.agents.get(name)
            if agent is None:
                continue  # its application has ended
            workflow = self._workflows[agent.app]
            idle = agent.status is Status.IDLE
            if idle and self._returns.calls_again(agent.last):
                workflow.idle[name] = None
            else:
                workflow.idle.pop(name, None)
            to_rank[name] = None
            if workflow.live.put(name, None if idle else agent.last):
                to_rank.update(workflow.idle)
        self._changed.clear()
        for name in to_rank:
            agent = view.agents[name]
            self._rank(agent, self._found_steps(agent, self._workflows[agent.app].live))

    def _rank(self, agent: AgentView, steps: float) -> None:
        name = agent.id
        if not steps:
            self._drop(name)
            return
        self._steps[name] = steps
        self._furthest.put(name, (-steps, agent.since_s, agent.number))
        if steps <= self._prefetch_steps:
            self._nearest.put(name, (steps, agent.since_s, agent.number))
        else:
            self._nearest.remove(name)

    def _drop(self, name: AgentId) -> None:
        self._steps.pop(name, None)
        self._furthest.remove(name)
        self._nearest.remove(name)

    def _found_steps(self, agent: AgentView, live: LiveCalls) -> float:
        if agent.status is Status.WAITING or agent.status is Status.RUNNING:
            return 0
        last = agent.last
        if not self._returns.calls_again(last):
            return inf
        if agent.status is Status.STALLED:
            return 1
        slowest_branch = live.slowest_branch(last.hints.join_group)
        if slowest_branch:
            return max(1, slowest_branch - (last.hints.remaining_depth - 1))
        return max(1, live.slowest)

    # -- evict

    def _evicted(self, admission: Admission, view: View) -> tuple[AgentId, ...]:
        """Idle agents, the furthest first: as many as may have to give up blocks until the next plan."""
        rival = admission.rival
        need_blocks = admission.fit_blocks + view.growth_blocks + (0 if rival is None else rival.need_blocks)
        evict = []
        for name in self._furthest:
            if need_blocks <= 0:
                break
            blocks = view.agents[name].context_blocks
            if blocks:
                evict.append(name)
                need_blocks -= blocks
        return tuple(evict)

    # -- save

    def _saves(self, view: View) -> tuple[tuple[AgentId, ...], tuple[Move, ...]]:
        """Copies to give up, and contexts to save, of agents whose calls have ended."""
        if not self._ended:
            return (), ()
        room = view.host_free_blocks
        forget: dict[AgentId, None] = {}
        moves = []
        for name in self._ended:
            agent = view.agents.get(name)
            steps = self._steps.get(name)
            if agent is None or steps is None:
                continue  # its application ended, or it goes on already
            if steps == inf:
                if agent.host_blocks:
                    forget[name] = None
                continue
            new = agent.context_blocks - agent.host_blocks
            if new > room:
                forget.update(self._given_up(new - room, name, forget, view))
            if new > 0:
                room -= new
                moves.append(Move(name, agent.context_blocks))
        self._ended.clear()
        return tuple(forget), tuple(moves)

    def _given_up(self, blocks: int, name: AgentId, chosen: Mapping[AgentId, None], view: View) -> dict[AgentId, None]:
        """Copies to give up for so many blocks: of agents that are no nearer than this one, the furthest first."""
        given_up: dict[AgentId, None] = {}
        for other in self._furthest:
            if blocks <= 0 or self._steps[other] < self._steps[name]:
                break
            held = view.agents[other].host_blocks
            if held and other != name and other not in chosen:
                given_up[other] = None
                blocks -= held
        return given_up

    # -- prefetch

    def _prefetches(self, room_blocks: int, view: View) -> tuple[Move, ...]:
        """Copies to bring back into room that nobody needs: the nearest first, then the longest idle."""
        moves = []
        for name in self._nearest:
            if room_blocks <= 0:
                break
            agent = view.agents[name]
            blocks = agent.host_blocks
            if (
                0 < blocks <= room_blocks
                and not agent.offloading
                and name not in self._held_blocks
                and self._retry_blocks.get(name, 0) <= self._handed_out_blocks
            ):
                room_blocks -= blocks
                moves.append(Move(name, blocks))
        return tuple(moves)

    def _cancelled(self, missing_blocks: int, view: View) -> tuple[AgentId, ...]:
        """Prefetches to give up for the first call that waits, the furthest first; none if they do not help it."""
        held = [name for name in self._held_blocks if name in view.agents]
        cancel = []
        for name in sorted(held, key=lambda name: (-self.steps_to_execution(name), view.agents[name].number)):
            if missing_blocks <= 0:
                break
            if not self.steps_to_execution(name):
                continue  # its call waits and takes them
            cancel.append(name)
            missing_blocks -= self._held_blocks[name]
        return () if missing_blocks > 0 else tuple(cancel)

    # -- facts

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        before = self._last.get(request.agent)
        if before is None:
            self._workflows.setdefault(request.app, Workflow()).agents.append(request.agent)
        elif self._returns.learn(before):
            self._changed.update(dict.fromkeys(self._last))  # once an agent type
        self._last[request.agent] = request
        self._changed[request.agent] = None
        self._caller[request.id] = request.agent
        self._retry_blocks.pop(request.agent, None)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        agent = self._caller[fact.call]
        self._touch(agent)
        request = self._last[agent]
        tokens = request.prompt_tokens + request.max_output_tokens - fact.gpu_hit_tokens
        self._handed_out_blocks += max(0, tokens) // view.block_tokens

    def _preempted(self, fact: e.CallPreempted, view: View) -> None:
        self._touch(self._caller[fact.call])

    def _finished(self, fact: e.CallFinished, view: View) -> None:
        agent = self._caller.pop(fact.call)
        self._ended.append(agent)
        self._touch(agent)

    def _aborted(self, fact: e.CallAborted, view: View) -> None:
        self._touch(self._caller.pop(fact.call))

    def _tool_changed(self, fact: e.ToolStarted | e.ToolReturned, view: View) -> None:
        self._touch(fact.agent)

    def _touch(self, agent: AgentId) -> None:
        self._changed[agent] = None

    def _upload_started(self, fact: e.UploadStarted, view: View) -> None:
        self._held_blocks[fact.agent] = self._held_blocks.get(fact.agent, 0) + fact.blocks

    def _upload_ended(self, fact: e.UploadTaken | e.UploadCancelled, view: View) -> None:
        self._held_blocks.pop(fact.agent, None)

    def _upload_refused(self, fact: e.UploadRefused, view: View) -> None:
        self._retry_blocks[fact.agent] = self._handed_out_blocks + RETRY_SHARE * view.gpu_blocks

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        workflow = self._workflows.pop(fact.app, None)
        for name in () if workflow is None else workflow.agents:
            del self._last[name]
            self._drop(name)
            self._held_blocks.pop(name, None)
            self._retry_blocks.pop(name, None)
