"""The controller stands between an engine and a policy: it keeps the ledger, asks the policy, and checks its plans.

An engine reports each fact with `hear` when it happens. At the start of a scheduler step it calls `poll` if the
controller is `due`, or if the time has come at which the last plan asked to be woken. The simulator and the live engine
do both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any

from ..traces import events as e
from ..traces.apps import CallId
from ..traces.errors import PolicyFault
from ..traces.events import Fact
from ..traces.questions import Questions
from .boundary import CONSTRUCTOR, PLAN, Turn, listening
from .interface import EVERYTHING, NATIVE, Costs, Hits, Plan, Policy
from .ledger import Ledger
from .plans import PLAN_FIELDS, PlanCheck, plain_plan
from .views import Cache

Sink = Callable[[Any], None]


class Controller:
    """Runs one policy for an engine.

    Each of `sinks` gets all facts, in the order in which they happened. The `journal` also gets the policy's questions
    with their answers, and its plans: enough to replay the run without an engine. `policy_s` is the wall time that the
    policy took; no decision depends on it.
    """

    def __init__(
        self, policy: Policy, costs: Costs, cache: Cache, sinks: Sequence[Sink], journal: Sink | None = None
    ) -> None:
        self._policy = policy
        self._name = type(policy).__name__
        self._cache = cache
        self._ask_listens_to = attrgetter(listening(policy))
        with Turn(self._name, CONSTRUCTOR):
            listens_to = self._ask_listens_to(policy)
        self._listens_to = self._checked(listens_to, 0.0)
        self._journal = journal
        self._questions = Questions()
        self._sinks = tuple(sinks) if journal is None else (*sinks, journal, self._questions.hear)
        self._ledger = Ledger(costs, cache if journal is None else self)
        self._turn = Turn(self._name, PLAN)
        self._plans = PlanCheck(self._name, self._ledger)
        self._news: list[Fact] = []
        self.due = True  # whether the policy is to be asked: at the start it always is
        self._keeps_ledger = bool(listens_to)  # else the policy is asked once, and nobody would read it
        self.policy_s = 0.0

    def hear(self, fact: Fact) -> None:
        """Pass a fact on, and remember it for the policy."""
        for sink in self._sinks:
            sink(fact)
        if not self._keeps_ledger:
            return
        self._ledger.fold(fact)
        self._news.append(fact)
        if type(fact) in self._listens_to:
            self.due = True

    def give_up(self) -> None:
        """The policy will not be asked again: facts are passed on, and that is all."""
        self._keeps_ledger = False
        self.due = False

    def check(self, waiting: Collection[CallId], running: Collection[CallId]) -> None:
        """Raises `CheckError` if what the policy sees is not what these calls of the engine are."""
        if self._keeps_ledger:
            self._ledger.check(waiting, running)

    def poll(self, gauges: e.Polled) -> Plan:
        """Ask the policy for a plan. Raises `PolicyFault` if it raises, or returns anything but a valid plan."""
        began = time.perf_counter()
        self.due = False
        for sink in self._sinks:
            sink(gauges)
        ledger = self._ledger
        ledger.fold(gauges)
        ledger.tell(self._news)
        self._news.clear()
        self._questions.checksum = 0
        turn = self._turn
        turn.at_s = gauges.at_s
        with turn:
            wanted = plain_plan(self._policy.plan(ledger.view))
            listens_to = self._ask_listens_to(self._policy)
        if listens_to is not self._listens_to:
            self._listens_to = self._checked(listens_to, gauges.at_s)
        plan = NATIVE if wanted is NATIVE else self._plans.check(wanted, gauges.at_s)
        if self._journal is not None:
            self._journal(e.Planned(gauges.at_s, as_record(plan), self._questions.checksum))
        self.policy_s += time.perf_counter() - began
        return plan

    # -- the ledger asks the cache through the controller, which writes the answers into the journal

    def hits(self, call: str) -> Hits:
        hits = self._cache.hits(call)
        if self._journal is not None and self._questions.hits(call, hits):
            self._journal(e.Asked(self._ledger.view.now_s, call, *hits))
        return hits

    def shared_blocks(self, call: str) -> int:
        blocks = self._cache.shared_blocks(call)
        if self._journal is not None and self._questions.shared(call, blocks):
            self._journal(e.AskedShared(self._ledger.view.now_s, call, blocks))
        return blocks

    def _checked(self, listens_to: object, at_s: float) -> frozenset[type]:
        if type(listens_to) is not frozenset or not listens_to <= EVERYTHING:
            raise PolicyFault(f"policy {self._name}: at {at_s:.6f} s: listens_to: expected a frozenset of facts")
        return listens_to


def as_record(plan: Plan) -> dict[str, object]:
    """A plan's fields that are not empty, as plain data."""
    values = {name: getattr(plan, name) for name in PLAN_FIELDS}
    values["pin"] = dict(plan.pin)
    record = {name: value for name, value in values.items() if value not in ((), {}, None, False)}
    if plan.admit == ():
        record["admit"] = ()  # it holds every call back, where None lets all of them start
    return record
