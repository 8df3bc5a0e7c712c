"""What a hit needs of each KV cache group, and which groups are refused."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tokencake.live.engine.control.kv_groups import page_rules
from tokencake.live.engine.memory.page_rules import PageNames, PageRule, Rules, last_boundary, places, spans
from tokencake.traces.errors import EngineError

FULL = PageRule("full", 4)
WINDOW = PageRule("sliding_window", 4, 10)
CHUNK = PageRule("chunked_local", 4, 8)
STATE = PageRule("mamba", 4)


def test_what_a_hit_needs() -> None:
    """Of 28 tokens in 7 blocks of 4: all, the 9 before the next token, the 4 of its chunk, the state behind them."""
    assert [rule.first_page(7) for rule in (FULL, WINDOW, CHUNK, STATE)] == [0, 4, 6, 6]
    assert [rule.first_page(8) for rule in (FULL, WINDOW, CHUNK, STATE)] == [0, 5, 8, 7]
    assert [rule.first_page(1) for rule in (FULL, WINDOW, CHUNK, STATE)] == [0, 0, 0, 0]
    assert [rule.first_page(0) for rule in (FULL, WINDOW, CHUNK, STATE)] == [0, 0, 0, 0]


def test_what_a_call_holds() -> None:
    """Of 30 tokens: 8 pages; those of tokens 21 to 29; those from 24 on; the running state's."""
    assert [rule.held_pages(30) for rule in (FULL, WINDOW, CHUNK, STATE)] == [8, 3, 2, 1]


def test_the_last_boundary_is_the_last_one_whose_pages_are_all_there() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        rules = rng.choices((FULL, WINDOW, CHUNK, STATE, PageRule("sliding_window", 4, 2)), k=rng.randint(1, 4))
        share = rng.choice((0.4, 0.7, 0.95))
        there = {(group, at) for group in range(len(rules)) for at in range(12) if rng.random() < share}
        lowest, upto = sorted((rng.randint(0, 12), rng.randint(0, 12)))
        expected = max(
            (end for end in range(lowest, upto + 1) if there.issuperset(places(list(spans(rules, lowest, end))))),
            default=lowest,
        )
        assert last_boundary(rules, lowest, upto, lambda group, at: (group, at) in there) == expected  # noqa: B023


def test_a_page_is_named_by_its_block_and_its_group() -> None:
    names = PageNames([b"one", b"two"], 3)
    assert (len(names), names[1], names[0:1]) == (2, b"two\0\0\0\3", [b"one\0\0\0\3"])


def spec(kind: str, **fields: object) -> object:
    """As vLLM's of that name."""
    return type(kind, (), {"block_size": 16, **fields})()


def scheduler(*specs: object, speculative: object = None) -> Any:
    groups = [SimpleNamespace(kv_cache_spec=one) for one in specs]
    config = SimpleNamespace(speculative_config=speculative)
    return SimpleNamespace(kv_cache_config=SimpleNamespace(kv_cache_groups=groups), block_size=16, vllm_config=config)


def test_groups_as_vllm_tells_them() -> None:
    told: Rules = page_rules(
        scheduler(
            spec("MambaSpec", mamba_cache_mode="align"),
            spec("SlidingWindowSpec", sliding_window=128),
            spec("ChunkedLocalAttentionSpec", attention_chunk_size=64),
            spec("MLAAttentionSpec"),
        ),
        "0.32.0",
    )
    assert told == (
        PageRule("mamba", 16),
        PageRule("sliding_window", 16, 128),
        PageRule("chunked_local", 16, 64),
        PageRule("full", 16),
    )


@pytest.mark.parametrize(
    ("specs", "version", "problem"),
    [
        ([spec("SlidingWindowSpec")], "0.32.0", r"this model's KV cache is not supported: .*, got SlidingWindowSpec$"),
        ([spec("FullAttentionSpec"), spec("CircularBufferSpec")], "0.32.0", r"got FullAttentionSpec, CircularBufferSp"),
        ([spec("FullAttentionSpec"), spec("FullAttentionSpec")], "0.31.2", r"2 KV cache groups: expected vLLM 0\.32 "),
        ([spec("FullAttentionSpec"), spec("MLAAttentionSpec", block_size=32)], "0.32.0", r"of 32 tokens: expected 16"),
        (
            [spec("FullAttentionSpec"), spec("ChunkedLocalAttentionSpec", attention_chunk_size=40)],
            "0.32.0",
            r"chunks of 40 tokens: expected a multiple of the block size, 16",
        ),
        (
            [spec("FullAttentionSpec"), spec("MambaSpec", mamba_cache_mode="all")],
            "0.32.0",
            r"^Mamba cache mode 'all': expected align",
        ),
    ],
)
def test_other_groups_are_refused(specs: list[object], version: str, problem: str) -> None:
    with pytest.raises(EngineError, match=problem):
        page_rules(scheduler(*specs), version)


def test_speculative_decoding_is_refused_for_several_groups_alone() -> None:
    assert page_rules(scheduler(spec("FullAttentionSpec"), speculative="ngram"), "0.26.0") == (PageRule("full", 16),)
    with pytest.raises(EngineError, match="speculative decoding: expected none, for a model with 2 KV cache groups"):
        page_rules(scheduler(spec("FullAttentionSpec"), spec("FullAttentionSpec"), speculative="ngram"), "0.32.0")
