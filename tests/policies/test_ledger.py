"""The ledger folds facts into a view."""

from __future__ import annotations

import re

import pytest

from tokencake.policies.costs import LinearCosts
from tokencake.policies.interface import Hits, Status
from tokencake.policies.ledger import Ledger
from tokencake.policies.lifecycle import AGENTS, CALLS, CallStatus
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, CallId
from tokencake.traces.errors import FactError
from tokencake.traces.events import Request

COSTS = LinearCosts(0.0, 0.001, 0.0001, 0.0)


class Silent:
    """A cache that nobody asks."""

    def hits(self, call: CallId) -> Hits:
        raise AssertionError(call)

    def shared_blocks(self, call: CallId) -> int:
        raise AssertionError(call)


# -- what a view says after some facts


def a_request(name: str, agent: str) -> Request:
    return Request(name, "a", agent, "agent", 100, 20, (), NO_HINTS)


def a_ledger(*facts: e.Fact) -> Ledger:
    ledger = Ledger(COSTS, Silent())
    for fact in (e.RunStarted(0.0, 16, 100, 50, 1), e.AppStarted(0.0, "a"), *facts):
        ledger.fold(fact)
    return ledger


ARRIVED = (e.CallArrived(1.0, a_request("a/1", "a/x")), e.CallArrived(2.0, a_request("a/2", "a/y")))
ADMITTED = (e.CallAdmitted(3.0, "a/1", 0, 0, 0), e.CallAdmitted(3.0, "a/2", 0, 0, 0))


def test_an_arrival_is_a_waiting_call_of_a_waiting_agent() -> None:
    ledger = a_ledger(*ARRIVED)
    assert list(ledger.view.waiting) == ["a/1", "a/2"]
    assert list(ledger.view.agents) == ["a/x", "a/y"]
    assert ledger.view.agents["a/x"].status is Status.WAITING
    assert (ledger.view.block_tokens, ledger.view.gpu_blocks, ledger.view.host_blocks) == (16, 100, 50)


def test_gauges_are_those_of_the_latest_question() -> None:
    view = a_ledger(e.Polled(3.0, 7, 90, 10, 40, 8)).view
    assert (view.now_s, view.step, view.free_blocks, view.growth_blocks) == (3.0, 7, 90, 10)
    assert (view.host_free_blocks, view.max_running) == (40, 8)


def test_a_preempted_call_waits_before_all_others() -> None:
    later = e.CallArrived(4.0, a_request("a/3", "a/z"))
    ledger = a_ledger(*ARRIVED, *ADMITTED, later, e.CallPreempted(5.0, "a/2", 7), e.CallPreempted(6.0, "a/1", 9))
    assert list(ledger.view.waiting) == ["a/1", "a/2", "a/3"]
    assert not ledger.view.running
    again = ledger.view.waiting["a/2"]
    assert (again.waiting_since_s, again.arrived_at_s, again.admitted_at_s) == (5.0, 2.0, None)
    assert (again.preemptions, again.generated_tokens) == (1, 7)
    assert ledger.view.agents["a/y"].status is Status.WAITING


def test_an_agent_is_stalled_from_the_start_of_its_tool_to_its_return() -> None:
    finished = e.CallFinished(4.0, "a/1", 20, 7)
    ledger = a_ledger(*ARRIVED, *ADMITTED, finished)
    assert ledger.view.agents["a/x"].status is Status.IDLE
    assert ledger.view.agents["a/x"].context_blocks == 7
    ledger.fold(e.ToolStarted(4.5, "a/1", "a/x"))
    assert list(ledger.view.stalled) == ["a/x"]
    assert (ledger.view.agents["a/x"].status, ledger.view.agents["a/x"].since_s) == (Status.STALLED, 4.5)
    ledger.fold(e.ToolReturned(6.0, "a/1", "a/x"))
    assert not ledger.view.stalled
    assert (ledger.view.agents["a/x"].status, ledger.view.agents["a/x"].since_s) == (Status.IDLE, 6.0)


def test_copies_show_at_their_agent() -> None:
    ledger = a_ledger(*ARRIVED, *ADMITTED, e.CallFinished(4.0, "a/1", 20, 7), e.OffloadStarted(5.0, "a/x", 6, 6))
    agent = ledger.view.agents["a/x"]
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
    assert not ledger.view.agents
    assert not ledger.view.stalled


# -- what may not come


READY = (*ARRIVED, *ADMITTED, e.CallFinished(4.0, "a/1", 20, 7))
STALLED = (*READY, e.ToolStarted(4.5, "a/1", "a/x"))


@pytest.mark.parametrize(
    ("facts", "wrong", "message"),
    [
        ((), e.AppStarted(1.0, "a"), "AppStarted at 1.000000 s: application 'a' is started: expected not there"),
        ((), e.AppFinished(1.0, "b"), "application 'b' is not there: expected started"),
        ((), e.CallArrived(1.0, a_request("b/1", "b/x")._replace(app="b")), "application 'b' is not there"),
        ((), e.CallAdmitted(1.0, "a/1", 0, 0, 0), "call 'a/1' is not there: expected waiting or loading"),
        (ARRIVED, ARRIVED[0], "CallArrived at 1.000000 s: call 'a/1' is waiting: expected not there"),
        (
            ARRIVED,
            e.CallPreempted(3.0, "a/1", 0),
            "CallPreempted at 3.000000 s: call 'a/1' is waiting: expected running",
        ),
        (ARRIVED, e.LoadFinished(3.0, "a/1", 2), "call 'a/1' is waiting: expected loading"),
        (ARRIVED, e.ToolStarted(3.0, "a/1", "a/x"), "agent 'a/x' is waiting: expected idle"),
        ((*ARRIVED, *ADMITTED), ADMITTED[0], "call 'a/1' is running: expected waiting or loading"),
        ((*ARRIVED, *ADMITTED), e.AppFinished(3.0, "a"), "agent 'a/y' is running: expected idle or stalled"),
        (READY, READY[-1], "CallFinished at 4.000000 s: call 'a/1' is not there"),
        (READY, e.ToolReturned(4.5, "a/1", "a/x"), "agent 'a/x' is idle: expected stalled"),
        (STALLED, e.ToolStarted(4.5, "a/1", "a/x"), "agent 'a/x' is stalled: expected idle"),
        (
            (*STALLED, e.ToolReturned(5.0, "a/1", "a/x")),
            e.ToolReturned(6.0, "a/1", "a/x"),
            "ToolReturned at 6.000000 s: agent 'a/x' is idle: expected stalled",
        ),
        ((), e.OffloadStarted(1.0, "a/x", 1, 1), "agent 'a/x' is not there"),
    ],
)
def test_a_fact_that_may_not_come_is_refused_with_what_it_met(
    facts: tuple[e.Fact, ...], wrong: e.Fact, message: str
) -> None:
    with pytest.raises(FactError, match=re.escape(message)):
        a_ledger(*facts).fold(wrong)


def test_every_status_has_a_fact_that_leads_there() -> None:
    assert {after for row in CALLS.values() for after in row.values()} == {None, *CallStatus}
    assert {after for row in AGENTS.values() for after in row.values()} == {None, *Status}
