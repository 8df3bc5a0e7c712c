"""The ledger folds facts into a view."""

from __future__ import annotations

from tokencake.policies.costs import LinearCosts
from tokencake.policies.interface import Hits, Status
from tokencake.policies.ledger import Ledger
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, CallId
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
