"""Up to vLLM 0.30 a loaded call waits in one queue with those that were passed over, and vLLM asks its head first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import RequestStatus

from tokencake.live.engine.queues import Queues
from tokencake.policies.interface import NATIVE, Plan


def waiting(name: str, computed_tokens: int = 0) -> SimpleNamespace:
    return SimpleNamespace(request_id=name, num_computed_tokens=computed_tokens, status=RequestStatus.WAITING)


def test_requests_that_hold_blocks_go_first() -> None:
    """Else the head, which does not fit, would wait for ever for the room that the loaded one behind it holds."""
    passed_over = FCFSRequestQueue(
        [waiting("large"), waiting("loaded", 64), waiting("small"), waiting("loaded too", 32)]
    )
    scheduler = SimpleNamespace(waiting=FCFSRequestQueue([waiting("new")]), skipped_waiting=passed_over)
    queues = Queues(scheduler, SimpleNamespace(), FCFSRequestQueue)
    assert queues.lay(NATIVE) is None
    assert [request.request_id for request in scheduler.skipped_waiting] == ["loaded", "loaded too", "large", "small"]
    assert [request.request_id for request in scheduler.waiting] == ["new"]


def test_an_order_leaves_who_was_passed_over_where_it_waits() -> None:
    """A call that a policy starts leaves the queue that it was in. The others stay, loaded calls behind each other."""
    large, loading, loaded, small, new = calls = [
        waiting("large"), waiting("loading"), waiting("loaded", 64), waiting("small"), waiting("new"),
    ]  # fmt: skip
    scheduler = SimpleNamespace(
        waiting=FCFSRequestQueue([small, new]), skipped_waiting=FCFSRequestQueue([loaded, large, loading])
    )
    known = {request.request_id: request for request in calls}
    queues = Queues(scheduler, SimpleNamespace(knows_all=True, request_of=known.get), FCFSRequestQueue)
    laid = queues.lay(Plan(admit=("small", "large", "loading")))
    assert [request.request_id for request in scheduler.waiting] == ["small", "large", "loading"]
    small.status = RequestStatus.RUNNING
    loading.status = RequestStatus.WAITING_FOR_REMOTE_KVS
    scheduler.waiting = FCFSRequestQueue([large])
    scheduler.skipped_waiting = FCFSRequestQueue([loading])
    assert laid is not None
    queues.restore(laid)
    assert [request.request_id for request in scheduler.skipped_waiting] == ["loaded", "large", "loading"]
    assert [request.request_id for request in scheduler.waiting] == ["new"]
    assert queues.lay(NATIVE) is None
    assert [request.request_id for request in scheduler.skipped_waiting] == ["loaded", "loading", "large"]
