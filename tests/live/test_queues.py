"""On vLLM 0.26 a loaded call waits in one queue with those that were passed over, and vLLM asks its head first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import RequestStatus

from tokencake.live.queues import Queues
from tokencake.policies.interface import NATIVE


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
