"""vLLM's counters beside the facts: they are compared, and a difference is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tokencake.live.client.counters import Counters, EngineCounters, FactCounters, disagreements
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS


def request(call: str, prompt_tokens: int) -> e.Request:
    return e.Request(f"a/{call}", "a", "a/g", "t", prompt_tokens, 9, (), NO_HINTS)


def counted(*facts: Any) -> Counters:
    counters = FactCounters()
    for fact in facts:
        counters.add(fact)
    return counters.counted


def a_call(name: str, prompt_tokens: int, gpu: int, host: int) -> list[Any]:
    """From its arrival to its first token."""
    return [
        e.CallArrived(0.0, request(name, prompt_tokens)),
        e.CallAdmitted(0.0, f"a/{name}", gpu, host, 0),
        e.FirstToken(1.0, f"a/{name}"),
    ]


def test_prompts_are_counted_when_their_first_token_comes() -> None:
    facts = [*a_call("c", 100, 32, 16), e.CallFinished(2.0, "a/c", 7, 3)]
    assert counted(*facts[:2]) == Counters()
    assert counted(*facts) == Counters(100, 32, 16, 7, 0)


def test_a_preempted_call_is_counted_as_it_was_first_admitted() -> None:
    preempted = e.CallPreempted(1.5, "a/c", 3)
    resumed = e.CallAdmitted(1.6, "a/c", 96, 0, 103)
    again = e.FirstToken(1.7, "a/c")
    facts = [*a_call("c", 100, 32, 16), preempted, resumed, again, e.CallFinished(2.0, "a/c", 7, 3)]
    assert counted(*facts) == Counters(100, 32, 16, 7, 1)


def test_what_an_aborted_call_had_is_counted_if_it_came_to_a_token() -> None:
    waiting = [e.CallArrived(0.0, request("d", 50)), e.CallAborted(1.0, "a/d")]
    assert counted(*waiting) == Counters()
    assert counted(*a_call("c", 100, 32, 16), e.CallAborted(2.0, "a/c")) == Counters(100, 32, 16, 0, 0)


def test_vllms_statistics_are_added_up() -> None:
    counters = EngineCounters()
    prompts = SimpleNamespace(total=100, local_cache_hit=32, external_kv_transfer=16)
    of_step = SimpleNamespace(prompt_token_stats=prompts, num_generation_tokens=3, num_preempted_reqs=1)
    counters.record(scheduler_stats=None, iteration_stats=of_step, mm_cache_stats=None)
    counters.record(scheduler_stats=None, iteration_stats=of_step, mm_cache_stats=None)
    counters.record(scheduler_stats=None, iteration_stats=None)
    assert counters.counted == Counters(200, 64, 32, 6, 2)
    counters.reset()
    assert counters.counted == Counters()


def test_what_differs_is_named() -> None:
    assert disagreements(Counters(1, 2, 3, 4, 5), Counters(1, 2, 3, 4, 5)) == []
    assert disagreements(Counters(1_000, 2, 3, 4, 5), Counters(1, 2, 3, 4, 6)) == [
        "prompt_tokens: 1,000 by vLLM, 1 by the facts",
        "preemptions: 5 by vLLM, 6 by the facts",
    ]
