"""Applications with fewer tokens share what they shared."""

from __future__ import annotations

import pytest
from tokens import assert_well_formed, context_of, prompt_of

from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.generate.workloads import code_writer, deep_research
from tokencake.traces.variants.shrink import shrunk

APPLICATIONS = [*code_writer(2, spread=0.3, seed=1), *deep_research(2)]


@pytest.mark.parametrize("factor", [1, 7, 100])
def test_every_prompt_keeps_one_of_so_many_of_its_tokens(factor):
    for application, small in zip(APPLICATIONS, shrunk(APPLICATIONS, factor), strict=True):
        assert_well_formed(small)
        for call in application.calls:
            left = [(source, at // factor) for source, at in context_of(application, call.id) if at % factor == 0]
            assert context_of(small, call.id) == left


def test_all_but_tokens_stays():
    for application, small in zip(APPLICATIONS, shrunk(APPLICATIONS, 10), strict=True):
        assert small.arrival_s == application.arrival_s
        for call, less in zip(application.calls, small.calls, strict=True):
            assert (less.id, less.agent, less.after, less.tools) == (call.id, call.agent, call.after, call.tools)


def test_a_prompt_of_nothing_is_a_token_of_its_own():
    call = Call("a/x", "a", "a/x", "x", Prompt((Segment("/shared", 1, 5),), tokens=5), 3, 5)
    (small,) = shrunk([Application("a", 0.0, (call,))], 10)

    assert prompt_of(small, "a/x") == [("a/x.rest", 0)]
    assert (small.calls[0].output_tokens, small.calls[0].max_output_tokens) == (1, 1)
