"""Token ids share a prefix exactly where the trace says so, and are the same in every run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tokens as spelled
from hypothesis import given
from hypothesis import strategies as st
from trace_files import calls, dags, one_call

from tokencake.live.client.tokens import Tokens
from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.generate.workloads import code_writer

VOCABULARY = 1 << 31  # so large that two ids are hardly ever equal by chance
SAID = 1 << 33  # answers in these tests are numbered from here on: no prompt's own tokens are so large


def answer(application: Application, call: Call) -> list[int]:
    """An answer that no other call gives."""
    first = SAID + (hash_of(application.id) * 1000 + application.calls.index(call)) * 10_000
    return list(range(first, first + call.output_tokens))


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % 10_007


def realised(*applications: Application) -> dict[str, list[int]]:
    """The prompt of every call, when the calls are played in the order of the trace."""
    tokens = Tokens(VOCABULARY)
    prompts = {}
    for application in applications:
        tokens.begin(application)
        for call in application.calls:
            prompts[call.id] = tokens.prompt(call)
            tokens.answered(call.id, answer(application, call))
    for application in applications:
        tokens.end(application)
    return prompts


def common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@given(dags("a0"), dags("a1"))
def test_two_prompts_share_what_their_segments_share(one: Application, other: Application) -> None:
    prompts = realised(one, other)
    written = {
        call.id: spelled.prompt_of(application, call.id) for application in (one, other) for call in application.calls
    }
    for call, ids in prompts.items():
        assert len(ids) == len(written[call])
        for before, others in prompts.items():
            assert common(ids, others) == spelled.common_prefix(written[call], written[before])


@given(dags())
def test_an_answer_is_what_the_model_said(application: Application) -> None:
    prompts = realised(application)
    for call in application.calls:
        extended = call.prompt.extends
        if extended is not None:
            before = next(other for other in application.calls if other.id == extended)
            whole = prompts[extended] + answer(application, before)
            assert prompts[call.id][: call.prompt.keep_tokens] == whole[: call.prompt.keep_tokens]
        own = {token for token in prompts[call.id] if token >= SAID}
        said = {token for other in application.calls for token in answer(application, other)}
        assert own <= said


def test_ids_lie_in_the_vocabulary_and_do_not_change_from_run_to_run() -> None:
    call = Call("a/c", "a", "a/g", "t", Prompt((Segment("a/x", 3, 5), Segment("/y", 0, 3)), tokens=8), 1, 1)
    application = Application("a", 0.0, (call,))
    tokens = Tokens(4096)
    tokens.begin(application)
    assert tokens.prompt(call) == [1293, 3411, 2606, 2175, 4046, 2676, 1859, 2785]
    assert all(0 <= token < 4096 for token in tokens.prompt(call))


@pytest.mark.slow
def test_a_conversation_of_a_thousand_calls_is_no_recursion() -> None:
    chain: list[Call] = []
    for index in range(1_000):
        extends = chain[-1].id if chain else None
        keep = chain[-1].prompt.tokens + 1 if chain else 0
        prompt = Prompt((Segment(f"a/x{index}", 0, 2),), extends, keep, keep + 2)
        chain.append(Call(f"a/{index}", "a", "a/g", "t", prompt, 1, 1, after=(extends,) if extends else ()))
    application = Application("a", 0.0, tuple(chain))
    prompts = realised(application)
    assert [len(prompts[call.id]) for call in chain] == [call.prompt.tokens for call in chain]


def test_a_long_prompt_takes_milliseconds() -> None:
    prompt = Prompt((Segment("a/x", 0, 100_000),), tokens=100_000)
    application = Application("a", 0.0, (Call("a/c", "a", "a/g", "t", prompt, 1, 1),))
    tokens = Tokens(VOCABULARY)
    tokens.begin(application)
    began = time.perf_counter()
    assert len(set(tokens.prompt(application.calls[0]))) > 99_900
    assert time.perf_counter() - began < 1.0  # 10 ms where nothing else runs


def test_nothing_is_kept_of_an_application_that_ended() -> None:
    tokens = Tokens(VOCABULARY)
    for application in code_writer(apps=3, qps=1.0, arrivals="even", seed=0):
        tokens.begin(application)
        for call in application.calls:
            assert len(tokens.prompt(call)) == call.prompt.tokens
            tokens.answered(call.id, answer(application, call))
        tokens.end(application)
    assert tokens.held == 0


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_first_blocks_of_two_sources_differ(one: int, other: int) -> None:
    names = (f"a/{one}", f"a/{other}x")
    made = [
        Call(f"a/c{i}", "a", "a/g", "t", Prompt((Segment(name, 0, 16),), tokens=16), 1, 1)
        for i, name in enumerate(names)
    ]
    tokens = Tokens(4096)
    tokens.begin(Application("a", 0.0, tuple(made)))
    assert tokens.prompt(made[0]) != tokens.prompt(made[1])


def test_shared_content_is_shared_by_applications(tmp_path: Path) -> None:
    (one,) = calls(tmp_path, one_call(prompt=[["/rules", 64], ["task", 8]])).values()
    tokens = Tokens(VOCABULARY)
    other = Call("b/c", "b", "b/g", "t", Prompt((Segment("/rules", 0, 64), Segment("b/task", 0, 8)), tokens=72), 1, 1)
    tokens.begin(Application("a0", 0.0, (one,)))
    tokens.begin(Application("b", 0.0, (other,)))
    assert common(tokens.prompt(one), tokens.prompt(other)) == 64
