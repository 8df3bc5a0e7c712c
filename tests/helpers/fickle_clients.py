"""Clients that do as they like: what a policy may be told in vLLM, and never is in a simulation."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

from views import Story

from tokencake.policies.interface import Plan, Policy, Status
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.events import Fact, ToolHint

APPS = ("a", "ab", "c")
AGENTS = ("main", "sub", "other")
TOOLS = (ToolHint("search", 2.0), ToolHint("ask", None))
BUSY = (Status.WAITING, Status.RUNNING)
T = TypeVar("T")


class FickleClients:
    """A made-up engine, the same for the same seed and the same policy.

    Calls come, end or are given up; tools return or do not; applications end while their tools run, and come again.
    Copies that a plan asks for are made or refused, and end when their agents may be gone.
    """

    def __init__(self, seed: int, policy: Policy) -> None:
        self._rng = random.Random(seed)
        self._policy = policy
        self._story = Story(gpu_blocks=60, free_blocks=30, host_blocks=80)
        self._view = self._story.view()
        self._calls = 0
        self._ended: set[str] = set()  # applications
        self._copying: list[Fact] = []  # how the copies under way will end
        self.plans = [policy.plan(self._view)]

    def happen(self, times: int) -> None:
        """So many things happen; after some of them the policy is asked."""
        things = (
            self._arrives, self._arrives, self._starts, self._starts, self._finishes, self._finishes, self._is_aborted,
            self._returns, self._is_preempted, self._is_loaded, self._copy_ends, self._copy_ends, self._app_ends,
        )  # fmt: skip
        for _ in range(times):
            self._rng.choice(things)()
            if self._rng.random() < 0.3:
                self._time_passes()
            if self._rng.random() < 0.6:
                plan = self._policy.plan(self._story.view())
                self.plans.append(plan)
                self._obey(plan)

    @property
    def _now_s(self) -> float:
        return self._story.now_s

    def _one_of(self, things: Iterable[T]) -> T | None:
        listed = list(things)
        return self._rng.choice(listed) if listed else None

    def _time_passes(self) -> None:
        story, rng = self._story, self._rng
        story.passes(rng.choice((0.01, 0.5, 5.0, 100.0)), steps=rng.randint(1, 10))
        story.free_blocks = rng.randint(0, 60)
        story.growth_blocks = rng.randint(0, 10)
        story.host_free_blocks = rng.randint(0, 80)

    # -- calls

    def _arrives(self) -> None:
        """A call, of an agent whose tool may be running still; it may even have another call."""
        rng, story = self._rng, self._story
        app = rng.choice(APPS)
        name = f"{app}/{rng.choice(AGENTS)}"
        agent = self._view.agents.get(name)
        if agent is not None and agent.status in BUSY and rng.random() < 0.8:
            return
        if app in self._ended:
            self._ended.remove(app)
            story.happens(e.AppStarted(self._now_s, app))
        self._calls += 1
        hints = Hints(reusable=rng.random() < 0.7, remaining_depth=rng.randint(1, 4), importance=rng.randint(0, 12))
        if hints.importance < 5:
            hints = hints._replace(join_group="branches")
        story.arrives(
            f"{app}/{self._calls}",
            rng.randint(1, 400),
            rng.randint(1, 60),
            name,
            rng.choice(("main", "sub")),
            TOOLS[: rng.randint(0, 2)],
            hints,
        )
        gpu_blocks = rng.randint(0, 10)
        story.cached(f"{app}/{self._calls}", gpu_blocks, rng.randint(0, gpu_blocks), rng.randint(0, 5))

    def _starts(self) -> None:
        call = self._one_of(self._view.waiting.values())
        if call is None:
            return
        agent = self._view.agents[call.request.agent]
        resumed_tokens = call.request.prompt_tokens + call.generated_tokens if call.preemptions else 0
        self._story.happens(e.CallAdmitted(self._now_s, call.request.id, 0, 0, resumed_tokens))
        if agent.uploading or agent.uploaded_blocks:
            self._story.happens(e.UploadTaken(self._now_s, agent.id, agent.uploaded_blocks, 0.0, 0.0))
        self._story.happens(e.FirstToken(self._now_s, call.request.id))

    def _finishes(self) -> None:
        name = self._one_of(self._view.running)
        if name is None:
            return
        request = self._view.running[name].request
        self._story.finishes(name)
        others = (*self._view.waiting.values(), *self._view.running.values())
        if any(call.request.agent == request.agent for call in others):
            return  # an agent with another call under way does not stall
        if request.tools and self._rng.random() < 0.9:
            self._story.tool_starts(name)

    def _is_aborted(self) -> None:
        name = self._one_of((*self._view.waiting, *self._view.running))
        if name is not None:
            self._story.happens(e.CallAborted(self._now_s, name))

    def _is_preempted(self) -> None:
        name = self._one_of(self._view.running)
        if name is not None:
            self._story.happens(e.CallPreempted(self._now_s, name, self._rng.randint(0, 20)))

    def _is_loaded(self) -> None:
        call = self._one_of(call for call in self._view.waiting.values() if not call.loading)
        if call is not None:
            self._story.happens(e.LoadStarted(self._now_s, call.request.id, 1, 0))
            if self._rng.random() < 0.8:
                self._story.happens(e.LoadFinished(self._now_s, call.request.id, 1))

    def _returns(self) -> None:
        agent = self._one_of(self._view.stalled.values())
        if agent is not None:
            self._story.tool_returns(agent.last.id)

    def _app_ends(self) -> None:
        """Not while its calls wait or run: a client that leaves gives these up first."""
        busy = {call.request.app for call in (*self._view.waiting.values(), *self._view.running.values())}
        agent = self._one_of(agent for agent in self._view.agents.values() if agent.app not in busy)
        if agent is not None:
            self._ended.add(agent.app)
            self._story.happens(e.AppFinished(self._now_s, agent.app))

    # -- copies

    def _copy_ends(self) -> None:
        fact = self._one_of(self._copying)
        if fact is not None:
            self._copying.remove(fact)
            self._story.happens(fact)

    def _obey(self, plan: Plan) -> None:
        story, rng, agents = self._story, self._rng, self._view.agents
        for name in plan.forget:
            if name in agents and agents[name].host_blocks:
                story.happens(e.HostDropped(self._now_s, name, 1))
        for name in plan.cancel:
            story.happens(e.UploadCancelled(self._now_s, name, 1, 0.0))
        for move in plan.offload:
            if move.agent not in agents or agents[move.agent].offloading or rng.random() < 0.3:
                story.happens(e.OffloadRefused(self._now_s, move.agent))
                continue
            story.happens(e.OffloadStarted(self._now_s, move.agent, move.blocks, move.blocks))
            self._copying.append(e.OffloadFinished(self._now_s, move.agent, move.blocks, rng.randint(0, move.blocks)))
        for move in plan.upload:
            if move.agent not in agents or agents[move.agent].status in BUSY or rng.random() < 0.3:
                story.happens(e.UploadRefused(self._now_s, move.agent))
                continue
            story.happens(e.UploadStarted(self._now_s, move.agent, move.blocks))
            self._copying.append(e.UploadFinished(self._now_s, move.agent, move.blocks))
