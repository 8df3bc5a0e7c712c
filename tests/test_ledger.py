"""The ledger folds facts into a view; a recorded run therefore gives the same plans again, with no engine at all."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial

import pytest
from adversary import Adversary, hard_workload
from runs import MakePolicy, Record, play

from tokencake.policies.controller import Controller
from tokencake.policies.costs import LinearCosts
from tokencake.policies.interface import Hits, Status
from tokencake.policies.ledger import Ledger
from tokencake.policies.tokencake import tokencake
from tokencake.sim.presets import PUBLISHED
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, CallId
from tokencake.traces.events import Request
from tokencake.traces.generate import code_writer

COSTS = LinearCosts(0.0, 0.001, 0.0001, 0.0)


class Answers:
    """What the engine answered when the run was recorded, in the order of the questions."""

    def __init__(self) -> None:
        self.recorded: deque[e.Asked | e.AskedShared] = deque()

    def hits(self, call: CallId) -> Hits:
        answer = self.recorded.popleft()
        assert isinstance(answer, e.Asked)
        assert answer.call == call
        return Hits(answer.gpu_blocks, answer.idle_blocks, answer.host_blocks)

    def shared_blocks(self, call: CallId) -> int:
        answer = self.recorded.popleft()
        assert isinstance(answer, e.AskedShared)
        assert answer.call == call
        return answer.blocks


def replay(records: list[Record], make: MakePolicy, costs: LinearCosts) -> list[e.Planned]:
    """The plans of a new policy that is told what was recorded."""
    plans: list[e.Planned] = []
    answers = Answers()

    def keep(record: Record) -> None:
        if isinstance(record, e.Planned):
            plans.append(record)

    controller = Controller(make(), costs, answers, (), keep)
    polled: e.Polled | None = None
    for record in records:
        if isinstance(record, e.Polled):
            polled = record
        elif isinstance(record, e.Asked | e.AskedShared):
            answers.recorded.append(record)
        elif isinstance(record, e.Planned):
            assert polled is not None
            controller.poll(polled)
            assert not answers.recorded, "it asked less than when it was recorded"
        else:
            controller.hear(record)
    return plans


@pytest.mark.parametrize("seed", range(30))
def test_recorded_facts_give_the_same_plans(seed: int) -> None:
    applications, machine = hard_workload(seed)
    for make in (tokencake, partial(tokencake, gate=False, upload="pause"), partial(Adversary, seed)):
        records = play(applications, make, machine)
        plans = [record for record in records if isinstance(record, e.Planned)]
        assert plans
        assert replay(records, make, machine.beliefs()) == plans


def test_a_recorded_code_writer_gives_the_same_plans() -> None:
    applications = tuple(code_writer(apps=4, qps=2.0, spread=0.2))
    machine = replace(PUBLISHED, gpu_blocks=1500)
    records = play(applications, tokencake, machine)
    plans = [record for record in records if isinstance(record, e.Planned)]
    assert any("offload" in record.plan for record in plans)
    assert replay(records, tokencake, machine.beliefs()) == plans


# -- what a view says after some facts


def a_request(name: str, agent: str) -> Request:
    return Request(name, "a", agent, "agent", 100, 20, (), NO_HINTS)


def a_ledger(*facts: e.Fact) -> Ledger:
    ledger = Ledger(COSTS, Answers())
    for fact in (e.RunStarted(0.0, 16, 100, 50, 1), e.AppStarted(0.0, "a"), *facts):
        ledger.fold(fact)
    return ledger


ARRIVED = (e.CallArrived(1.0, a_request("a/1", "a/x")), e.CallArrived(2.0, a_request("a/2", "a/y")))
ADMITTED = (e.CallAdmitted(3.0, "a/1", 0, 0, 0), e.CallAdmitted(3.0, "a/2", 0, 0, 0))


def test_an_arrival_is_a_waiting_call_of_a_waiting_agent() -> None:
    ledger = a_ledger(*ARRIVED)
    assert list(ledger.waiting) == ["a/1", "a/2"]
    assert list(ledger.agents) == ["a/x", "a/y"]
    assert ledger.agents["a/x"].status is Status.WAITING
    assert (ledger.block_tokens, ledger.gpu_blocks, ledger.host_blocks) == (16, 100, 50)


def test_a_preempted_call_waits_before_all_others() -> None:
    later = e.CallArrived(4.0, a_request("a/3", "a/z"))
    ledger = a_ledger(*ARRIVED, *ADMITTED, later, e.CallPreempted(5.0, "a/2", 7), e.CallPreempted(6.0, "a/1", 9))
    assert list(ledger.waiting) == ["a/1", "a/2", "a/3"]
    assert not ledger.running
    again = ledger.waiting["a/2"]
    assert (again.waiting_since_s, again.arrived_at_s, again.admitted_at_s) == (5.0, 2.0, None)
    assert (again.preemptions, again.generated_tokens) == (1, 7)
    assert ledger.agents["a/y"].status is Status.WAITING


def test_an_agent_is_stalled_from_the_start_of_its_tool_to_its_return() -> None:
    finished = e.CallFinished(4.0, "a/1", 20, 7)
    ledger = a_ledger(*ARRIVED, *ADMITTED, finished)
    assert ledger.agents["a/x"].status is Status.IDLE
    assert ledger.agents["a/x"].context_blocks == 7
    ledger.fold(e.ToolStarted(4.5, "a/1", "a/x"))
    assert list(ledger.stalled) == ["a/x"]
    assert (ledger.agents["a/x"].status, ledger.agents["a/x"].since_s) == (Status.STALLED, 4.5)
    ledger.fold(e.ToolReturned(6.0, "a/1", "a/x"))
    assert not ledger.stalled
    assert (ledger.agents["a/x"].status, ledger.agents["a/x"].since_s) == (Status.IDLE, 6.0)


def test_copies_show_at_their_agent() -> None:
    ledger = a_ledger(*ARRIVED, *ADMITTED, e.CallFinished(4.0, "a/1", 20, 7), e.OffloadStarted(5.0, "a/x", 6, 6))
    agent = ledger.agents["a/x"]
    assert (agent.offloading, agent.host_blocks) == (True, 0)
    ledger.fold(e.OffloadFinished(6.0, "a/x", 6, 6))
    assert (agent.offloading, agent.host_blocks) == (False, 6)
    ledger.fold(e.UploadStarted(7.0, "a/x", 4))
    assert (agent.uploading, agent.uploaded_blocks) == (True, 0)
    ledger.fold(e.UploadFinished(8.0, "a/x", 4))
    assert (agent.uploading, agent.uploaded_blocks) == (False, 4)
    ledger.fold(e.UploadTaken(9.0, "a/x", 4, 0.5, 0.0))
    assert (agent.uploading, agent.uploaded_blocks) == (False, 0)
    ledger.fold(e.HostDropped(9.0, "a/x", 6))
    assert agent.host_blocks == 0


def test_an_application_takes_its_agents_along() -> None:
    ends = (e.CallFinished(4.0, "a/1", 20, 7), e.CallFinished(4.0, "a/2", 20, 7), e.ToolStarted(4.0, "a/1", "a/x"))
    ledger = a_ledger(*ARRIVED, *ADMITTED, *ends, e.AppFinished(5.0, "a"), e.OffloadFinished(6.0, "a/x", 6, 6))
    assert not ledger.agents
    assert not ledger.stalled
