"""What our policy promises. The fixture `simulate` comes with Tokencake; paths are told from pytest's rootdir."""

import pytest

from tokencake import assert_not_worse, facts

TRACE, MINE = "traces/code-writer.jsonl", "policies/mine.py:OldestFirst"
BUSY = {"machine": "h100-llama-3.1-8b", "settings": {"gpu_blocks": 2000}}


def test_it_is_not_worse_than_vllm_where_memory_is_short(simulate):
    mine, vllm = simulate(TRACE, MINE, **BUSY), simulate(TRACE, "vllm", **BUSY)
    assert_not_worse(mine, than=vllm, metric="app_latency_s.mean")
    assert_not_worse(mine, than=vllm, metric="prefill_tokens.computed")


def test_it_saves_contexts_during_long_tools_alone(simulate):
    assert simulate(TRACE, MINE, **BUSY).happened(facts.OffloadStarted)
    assert not simulate(TRACE, f"{MINE}:least_s=1000", **BUSY).happened(facts.OffloadStarted)


@pytest.mark.tokencake_slow
def test_it_is_not_worse_than_vllm_on_other_days(simulate):
    varied = BUSY | {"repeats": 10, "vary": "arrivals,tools"}
    assert_not_worse(simulate(TRACE, MINE, **varied), than=simulate(TRACE, "vllm", **varied), tolerance=0.02)
