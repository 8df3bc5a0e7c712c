"""The temporal half: what is saved at a stall, and how long it is held. A block copies in a millisecond each way."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import Story

from tokencake.policies.costs import LinearCosts
from tokencake.policies.interface import Move, Plan
from tokencake.policies.tokencake.options import Options
from tokencake.policies.tokencake.policy import Tokencake, tokencake
from tokencake.policies.tokencake.published.saves import longest_save
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.events import ToolHint

SAVEABLE = Hints(reusable=True)
SEARCH = (ToolHint("search", 4.0),)


def a_stall(tools: tuple[ToolHint, ...] = SEARCH, hints: Hints = SAVEABLE, waiting: bool = True, **world: int) -> Story:
    """Agent a's tool has just started; its context is 50 full blocks. Another call waits and fits."""
    story = Story(**{"gpu_blocks": 100, "free_blocks": 30, **world})
    story.runs("a/call", prompt_tokens=793, max_output_tokens=16, agent="a/main", tools=tools, hints=hints)
    if waiting:
        story.arrives("b/call", prompt_tokens=320)
    story.tool_starts("a/call")
    return story


def time_half(**options: Any) -> Tokencake:
    return tokencake(**{"rules": "published", "space": False, "upload": "demand", **options})


def saves(policy: Tokencake, story: Story) -> tuple[Move, ...]:
    """What is saved in the step after the one that hears of the tool."""
    policy.plan(story.view())
    story.passes(0.03, steps=1)
    return policy.plan(story.view()).offload


WHOLE = (Move("a/main", 50),)


def test_a_long_tool_has_the_whole_context_saved():
    assert saves(time_half(), a_stall()) == WHOLE
    assert saves(tokencake(rules="published", upload="demand"), a_stall()) == WHOLE


def test_a_stall_is_looked_at_in_the_step_after_the_one_that_hears_of_it():
    story, policy = a_stall(), time_half()
    plan = policy.plan(story.view())
    assert (plan.offload, plan.wake_at_s) == ((), story.now_s), "whatever happens until then"
    assert policy.plan(story.view()).offload == (), "it is still the same step"
    story.passes(0.03, steps=1)
    plan = policy.plan(story.view())
    assert (plan.offload, plan.wake_at_s) == (WHOLE, None)


def test_nobody_asks_to_be_woken_for_a_stall_while_nothing_waits():
    story, policy = a_stall(waiting=False), time_half()
    assert policy.plan(story.view()).wake_at_s is None
    story.passes(0.03, steps=1)
    story.arrives("b/call", prompt_tokens=320)
    assert policy.plan(story.view()).offload == WHOLE


def test_without_notice_a_stall_is_looked_at_when_its_tool_starts():
    assert time_half(notice_steps=0).plan(a_stall().view()).offload == WHOLE


def test_a_call_that_fits_behind_one_that_does_not_is_reason_enough_to_save():
    story = a_stall(waiting=False)
    story.arrives("b/call", prompt_tokens=960)  # 60 blocks where 30 are free
    story.arrives("c/call", prompt_tokens=320)
    assert saves(time_half(), story) == WHOLE


def test_the_gate_asks_nothing_about_what_the_spatial_half_holds_back():
    story = a_stall()
    story.arrives("c/call")
    story.starts("c/call")
    story.growth_blocks = 25  # promised: the waiting call is held back, and would fit into what is free all the same
    policy = tokencake(rules="published", upload="demand")
    assert saves(policy, story) == WHOLE
    assert policy.plan(story.view()).admit == ()


def test_a_step_in_which_nothing_fits_is_no_refusal():
    story, policy = a_stall(free_blocks=10), time_half()
    assert saves(policy, story) == ()
    story.free_blocks = 30
    story.passes(0.03, steps=1)
    assert policy.plan(story.view()).offload == WHOLE


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(a_stall(waiting=False), id="nothing waits"),
        pytest.param(a_stall(free_blocks=10), id="nothing that waits fits"),
        pytest.param(a_stall(host_blocks=0), id="the host has no room"),
        pytest.param(a_stall(hints=Hints()), id="no later call extends it"),
        pytest.param(a_stall(tools=(ToolHint("file", 0.1),)), id="the tool is back before two copies are done"),
        pytest.param(
            a_stall(tools=(ToolHint("run", 0.4),), hints=Hints(reusable=True, importance=8)), id="important, short"
        ),
        pytest.param(
            a_stall(hints=Hints(reusable=True, importance=8, near_completion=True)), id="important, near its end"
        ),
        pytest.param(a_stall(gpu_blocks=1000, free_blocks=900), id="the GPU is empty"),
    ],
)
def test_a_stall_is_refused_when(story):
    assert saves(time_half(), story) == ()


def test_a_short_tool_of_an_unimportant_call_is_worth_a_save():
    assert saves(time_half(), a_stall(tools=(ToolHint("run", 0.4),))) == WHOLE


def test_with_the_spatial_half_its_type_makes_every_call_important():
    story = a_stall(tools=(ToolHint("run", 0.4),))
    story.arrives("c/call", hints=Hints(importance=12))
    assert saves(tokencake(rules="published", upload="demand"), story) == ()


def test_in_an_emergency_even_a_call_near_its_end_is_saved():
    important = Hints(reusable=True, importance=9, near_completion=True)
    story = a_stall(tools=(ToolHint("evaluate", 20.0),), hints=important, gpu_blocks=1000, free_blocks=30)
    assert saves(time_half(), story) == WHOLE


def test_without_the_gate_every_stall_that_may_be_saved_is():
    assert saves(time_half(gate=False), a_stall(free_blocks=10, tools=())) == WHOLE
    assert saves(time_half(gate=False), a_stall(hints=Hints())) == ()


def test_a_stall_is_saved_once():
    story, policy = a_stall(), time_half()
    assert saves(policy, story)
    story.passes(0.5, steps=8)
    assert policy.plan(story.view()).offload == ()


def test_a_refused_stall_is_weighed_again_every_eight_steps():
    story, policy = a_stall(host_blocks=0), time_half()
    assert saves(policy, story) == ()
    story.host_free_blocks = 1000
    saved = []
    for step in range(1, 10):
        story.passes(0.03, steps=1)
        if policy.plan(story.view()).offload:
            saved.append(step)
    assert saved == [8]


def test_only_what_fits_on_the_host_is_saved():
    assert saves(time_half(gate=False), a_stall(host_blocks=20)) == (Move("a/main", 20),)


def test_a_copy_is_held_while_the_tool_runs_and_given_up_when_it_returns():
    story, policy = a_stall(), time_half()
    policy.plan(story.view())
    story.happens(e.OffloadFinished(0.1, "a/main", 50, 50))
    story.passes(4.0, steps=100)
    assert policy.plan(story.view()).forget == ()
    story.tool_returns("a/call")
    assert policy.plan(story.view()).forget == ("a/main",)
    assert policy.plan(story.view()).forget == ()


def test_a_copy_is_held_no_longer_than_four_predictions_and_at_least_a_minute():
    story, policy = a_stall(tools=(ToolHint("ask", 20.0),)), time_half()
    policy.plan(story.view())
    story.happens(e.OffloadFinished(0.0, "a/main", 50, 50))
    story.passes(79.0)
    assert policy.plan(story.view()).forget == ()
    story.passes(1.0)
    assert policy.plan(story.view()).forget == ("a/main",)


def test_a_plan_that_wants_nothing_is_the_native_one():
    assert time_half().plan(Story().view()) == Plan()


def test_the_next_save_counts_on_what_the_host_has():
    # Down 10 ms and up 50 ms: t = 0.06 s; the window must hold t and 2 t beside it.
    costs = LinearCosts(0.0, 0.001, 0.0, 0.0)
    assert longest_save(50, 40, 0.1801, costs, Options()) == 50
    assert longest_save(50, 0, 0.1801, costs, Options()) == 30  # 30 down and 30 up


@given(st.integers(1, 2000), st.integers(0, 2000), st.floats(0, 20))
def test_a_save_is_the_longest_that_comes_back_in_time(most, has, remaining_s):
    costs, rules = LinearCosts(0.0005, 0.0001, 0.0, 0.0), Options()

    def in_time(blocks):
        t = costs.offload_s(blocks - has) + costs.upload_s(blocks)
        return remaining_s - t >= max(0.05, 2 * t)

    blocks = longest_save(most, has, remaining_s, costs, rules)
    longer = [n for n in range(has + 1, most + 1) if in_time(n)]
    assert blocks == (max(longer) if longer else 0)
    assert all(in_time(a) or not in_time(b) for a, b in pairwise(range(has + 1, most + 1)))
