"""A policy that looks at what it is told: nothing may happen that cannot, of anything that it has not heard of."""

from __future__ import annotations

from collections import Counter

from tokencake.policies.interface import EVERYTHING, Plan, Policy, View
from tokencake.traces import events as e
from tokencake.traces.events import Fact


class Witness:
    """Plans as another policy does, and checks the facts of one run in their order."""

    listens_to = EVERYTHING

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._apps: set[str] = set()
        self._calls: dict[str, tuple[str, str, bool]] = {}  # by call: application, agent, whether it runs
        self._stalled: set[str] = set()
        self._copies: Counter[str] = Counter()  # under way, by kind and whom they are of
        self.facts = 0

    def plan(self, view: View) -> Plan:
        for fact in view.news:
            self.facts += 1
            self._look(fact)
        assert set(view.waiting) | set(view.running) == set(self._calls)
        return self._policy.plan(view)

    def _look(self, fact: Fact) -> None:
        match fact:
            case e.AppStarted():
                assert fact.app not in self._apps
                self._apps.add(fact.app)
            case e.AppFinished():
                assert fact.app not in {app for app, _, _ in self._calls.values()}
                self._apps.remove(fact.app)
                self._stalled -= {agent for agent in self._stalled if agent.startswith(f"{fact.app}/")}
            case e.CallArrived():
                request = fact.request
                assert request.id not in self._calls
                assert request.app in self._apps
                assert request.agent not in self._stalled
                self._calls[request.id] = (request.app, request.agent, False)
            case e.CallAdmitted():
                self._runs(fact.call, before=False)
            case e.CallPreempted():
                self._runs(fact.call, before=True)
            case e.FirstToken():
                assert fact.call in self._calls
            case e.CallFinished() | e.CallAborted():
                del self._calls[fact.call]
            case e.ToolStarted():
                assert fact.agent not in self._stalled
                assert fact.agent not in {agent for _, agent, _ in self._calls.values()}
                self._stalled.add(fact.agent)
            case e.ToolReturned():
                self._stalled.remove(fact.agent)
            case e.OffloadStarted():
                self._copies[f"offload {fact.agent}"] += 1
            case e.OffloadFinished():
                self._ended(f"offload {fact.agent}")
            case e.UploadStarted():
                self._copies[f"upload {fact.agent}"] += 1
            case e.UploadFinished() | e.UploadReleased():
                self._ended(f"upload {fact.agent}")
            case e.LoadStarted():
                assert fact.call in self._calls
                self._copies[f"load {fact.call}"] += 1
            case e.LoadFinished():
                assert fact.call in self._calls
                self._ended(f"load {fact.call}")
            case _:
                pass

    def _runs(self, call: str, before: bool) -> None:
        app, agent, running = self._calls[call]
        assert running is before
        self._calls[call] = (app, agent, not before)

    def _ended(self, copy: str) -> None:
        assert self._copies[copy] > 0, f"{copy} ended, which this run has not begun"
        self._copies[copy] -= 1
