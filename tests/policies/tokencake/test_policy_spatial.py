"""The spatial half: who starts, in which order, and who gives way. Blocks of 16 tokens."""

from dataclasses import replace
from typing import Any

import pytest
from views import Story

from tokencake.policies.interface import View
from tokencake.policies.parts import dispatch
from tokencake.policies.tokencake.options import PRESETS, Options
from tokencake.policies.tokencake.policy import Tokencake, tokencake
from tokencake.policies.tokencake.published.spatial import PublishedSpace
from tokencake.traces import events as e
from tokencake.traces.apps import Hints


def space(**options: Any) -> Tokencake:
    return tokencake(**{"rules": "published", "time": False, "reserve": False, **options})


def test_the_more_important_call_starts_first():
    story = Story()
    story.arrives("a/plain")
    story.arrives("a/important", hints=Hints(importance=5))
    assert space().plan(story.view()).admit == ("a/important", "a/plain")


def test_without_order_calls_start_as_they_came():
    story = Story()
    story.arrives("a/plain")
    story.passes(1.0)
    story.arrives("a/important", hints=Hints(importance=5))
    assert space(order=False).plan(story.view()).admit == ("a/plain", "a/important")


def test_a_long_wait_outweighs_importance():
    story = Story()
    story.arrives("a/patient")
    story.passes(30.0)
    story.arrives("a/important", hints=Hints(importance=3))
    assert space().plan(story.view()).admit == ("a/patient", "a/important")


def test_a_branch_counts_as_much_as_the_most_urgent_of_its_join_group():
    story = Story()
    story.arrives("a/slow", hints=Hints(join_group="merge"))
    story.arrives("a/urgent", hints=Hints(join_group="merge", importance=9))
    story.arrives("b/middle", hints=Hints(importance=5))
    assert space().plan(story.view()).admit == ("a/urgent", "a/slow", "b/middle")


def test_a_call_needs_room_for_its_whole_output_budget():
    story = Story(free_blocks=15)
    story.arrives("a/talkative", prompt_tokens=160, max_output_tokens=96)  # 10 blocks, and 6 to come
    story.arrives("a/running")
    story.starts("a/running")
    policy = space()
    assert policy.plan(story.view()).admit == ()
    story.free_blocks = 16
    assert policy.plan(story.view()).admit == ("a/talkative",)


def test_without_commitment_the_prompt_is_enough():
    story = Story(free_blocks=15)
    story.arrives("a/running")
    story.starts("a/running")
    story.arrives("a/talkative", prompt_tokens=160, max_output_tokens=96)
    assert space(commit=False).plan(story.view()).admit == ("a/talkative",)


def test_what_running_calls_will_yet_take_is_not_free():
    story = Story(free_blocks=30)
    story.growth_blocks = 20
    story.arrives("a/running")
    story.starts("a/running")
    story.arrives("a/call", prompt_tokens=160, max_output_tokens=16)  # 11 blocks
    policy = space()
    assert policy.plan(story.view()).admit == ()
    story.growth_blocks = 19
    assert policy.plan(story.view()).admit == ("a/call",)


def test_cached_blocks_that_somebody_holds_are_free_of_charge_and_idle_ones_are_not():
    story = Story(free_blocks=5)
    story.arrives("a/running")
    story.starts("a/running")
    story.arrives("a/held", prompt_tokens=160)
    story.arrives("b/idle", prompt_tokens=160)
    story.cached("a/held", gpu_blocks=9)
    story.cached("b/idle", gpu_blocks=9, idle_blocks=9)
    assert space().plan(story.view()).admit == ("a/held",)


def test_a_call_that_does_not_fit_is_passed_over_or_blocks_those_behind_it():
    def told() -> Story:
        story = Story(free_blocks=20)
        story.arrives("a/running")
        story.starts("a/running")
        story.arrives("a/large", prompt_tokens=1600, hints=Hints(importance=9))
        story.arrives("a/small", prompt_tokens=32)
        return story

    passing, blocking = space().plan(told().view()), space(skip=False).plan(told().view())
    assert (passing.admit, passing.skip) == (("a/small",), True)
    assert (blocking.admit, blocking.skip) == ((), False)


def test_when_room_is_short_a_call_that_shares_a_running_prefix_goes_first():
    story = Story(free_blocks=20)  # of 100: less than a quarter
    story.arrives("a/running")
    story.starts("a/running")
    story.arrives("a/better", prompt_tokens=160, hints=Hints(importance=3))
    story.arrives("a/sharing", prompt_tokens=160)
    story.cached("a/sharing", gpu_blocks=9)
    assert space().plan(story.view()).admit == ("a/sharing", "a/better")


@pytest.mark.parametrize("change", [{"prefix_affinity": False}, {"affinity_points": 100}, {"affinity_free_share": 0.1}])
def test_otherwise_the_score_decides(change):
    story = Story(free_blocks=20)
    story.arrives("a/running")
    story.starts("a/running")
    story.arrives("a/better", prompt_tokens=160, hints=Hints(importance=3))
    story.arrives("a/sharing", prompt_tokens=160)
    story.cached("a/sharing", gpu_blocks=9)
    assert space(**change).plan(story.view()).admit == ("a/better", "a/sharing")


def test_a_call_being_loaded_stays_named_until_it_starts():
    story, policy = Story(free_blocks=20), space()
    story.arrives("a/call")
    assert policy.plan(story.view()).admit == ("a/call",)
    story.happens(e.LoadStarted(0.0, "a/call", 5, 0))
    assert policy.plan(story.view()).admit == ("a/call",)
    story.happens(e.LoadFinished(0.1, "a/call", 5))
    assert policy.plan(story.view()).admit == ("a/call",)
    story.starts("a/call")
    assert policy.plan(story.view()).admit == ()


def test_if_nothing_runs_and_no_budget_fits_somebody_starts_all_the_same():
    story = Story(gpu_blocks=20)
    story.arrives("a/huge", prompt_tokens=160, max_output_tokens=1600)
    story.arrives("a/also", prompt_tokens=160, max_output_tokens=1600)
    assert space().plan(story.view()).admit == ("a/huge",)  # of equal scores and arrivals the first that came


def test_a_call_that_cannot_fit_is_not_asked_about_again():
    story, policy = Story(free_blocks=20), space()
    story.arrives("a/running")
    story.starts("a/running")
    for n in range(30):
        story.arrives(f"b/{n:02}", prompt_tokens=1600)
    policy.plan(story.view())
    assert len(story.asked) == 30
    story.passes(1.0, 10)
    policy.plan(story.view())
    assert len(story.asked) == 30


def test_a_sibling_is_asked_about_again_when_its_prefix_has_come():
    story, policy = Story(free_blocks=20), space()
    story.arrives("a/first", prompt_tokens=160)
    story.arrives("a/second", prompt_tokens=160)
    assert policy.plan(story.view()).admit == ("a/first",)
    story.starts("a/first")
    story.free_blocks, story.growth_blocks = 10, 1
    story.cached("a/second", gpu_blocks=9)
    assert policy.plan(story.view()).admit == ("a/second",)


def test_while_nobody_is_held_back_only_what_may_hold_somebody_back_is_news():
    story, policy = Story(free_blocks=20), space()
    story.arrives("a/small")
    policy.plan(story.view())
    assert e.CallArrived in policy.listens_to
    assert e.CallFinished not in policy.listens_to
    story.arrives("a/large", prompt_tokens=1600)
    policy.plan(story.view())
    assert e.CallFinished in policy.listens_to


def importance_when_told(story: Story, after_steps: int) -> float:
    """What its type makes of a call that started at once, 100 steps later; the policy hears of it in between."""
    spatial = PublishedSpace(PRESETS["published"])
    story.arrives("a/call", hints=Hints(importance=0))
    tell(spatial, story.view())
    story.starts("a/call")
    story.passes(0.0, after_steps)
    tell(spatial, story.view())
    story.passes(0.0, 100 - after_steps)
    view = story.view()
    tell(spatial, view)
    return spatial.importance(view.running["a/call"].request)


def tell(spatial: PublishedSpace, view: View) -> None:
    dispatch.tell(view.news, dispatch.merged(spatial.listeners), view)
    spatial.begin(view)


def test_a_call_that_starts_at_once_was_not_deferred_however_late_the_policy_hears_of_it():
    assert importance_when_told(Story(), after_steps=1) == importance_when_told(Story(), after_steps=100)


def reserved(story: Story, **options: Any) -> Tokencake:
    """Forty blocks reserved for the planner type, which has one important call running on nothing."""
    policy = tokencake(rules="published", time=False, reserve_min_share=0.4, reserve_max_share=0.4, **options)
    story.arrives("p/plan", agent_type="planner", prompt_tokens=16, hints=Hints(importance=9))
    story.starts("p/plan")
    story.arrives("p/more", agent_type="planner", prompt_tokens=16_000, hints=Hints(importance=9))
    policy.plan(story.view())
    return policy


def test_a_reserve_whose_owner_waits_is_closed_to_the_less_urgent():
    story = Story(free_blocks=50)
    policy = reserved(story, lend=False)
    story.arrives("w/work", agent_type="worker", prompt_tokens=240)  # 16 blocks; 10 are left of the shared part
    assert policy.plan(story.view()).admit == ()


def test_idle_reserves_are_lent_after_the_ordered_pass():
    story = Story(free_blocks=50)
    policy = reserved(story)
    story.arrives("w/work", agent_type="worker", prompt_tokens=240)
    assert policy.plan(story.view()).admit == ("w/work",)


def test_a_much_more_urgent_call_may_borrow_what_its_owner_waits_for():
    story = Story(free_blocks=50)
    policy = reserved(story, lend=False)
    story.arrives("w/work", agent_type="worker", prompt_tokens=240, hints=Hints(importance=15))
    assert policy.plan(story.view()).admit == ("w/work",)


def preempting(**options: Any) -> tuple[str, ...]:
    story, policy = Story(free_blocks=0), space(**options)
    story.growth_blocks = 4
    story.arrives("a/urgent", prompt_tokens=160, max_output_tokens=100, hints=Hints(importance=50))
    story.arrives("a/small", prompt_tokens=32, max_output_tokens=100)
    story.arrives("a/near-end", prompt_tokens=160, max_output_tokens=10)
    story.arrives("a/middle", prompt_tokens=160, max_output_tokens=100)
    for call in ("urgent", "small", "near-end", "middle"):
        story.starts(f"a/{call}")
        story.happens(e.FirstToken(0.0, f"a/{call}"))
    policy.plan(story.view())
    story.passes(1.0, steps=9)
    return policy.plan(story.view()).preempt


def test_victims_free_enough_alone_are_not_near_their_end_and_not_urgent():
    assert preempting() == ("a/middle", "a/near-end", "a/small", "a/urgent")


def test_victims_are_only_named_if_running_calls_cannot_all_grow():
    assert preempting(preempt=False) == ()
    story = Story()
    story.arrives("a/call")
    story.starts("a/call")
    assert space().plan(story.view()).preempt == ()


def test_a_preempted_call_waits_until_something_finished_or_there_is_more_room():
    story, policy = Story(free_blocks=20), space()
    story.arrives("a/victim")
    story.arrives("a/other")
    for call in ("a/victim", "a/other"):
        story.starts(call)
    policy.plan(story.view())
    story.happens(e.CallPreempted(1.0, "a/victim", 3))
    assert policy.plan(story.view()).admit == ()
    story.free_blocks = 21
    assert policy.plan(story.view()).admit == ("a/victim",)
    story.free_blocks = 20
    assert policy.plan(story.view()).admit == ()
    story.finishes("a/other")
    assert policy.plan(story.view()).admit == ("a/victim",)


def test_a_call_may_end_after_its_preemption():
    story, policy = Story(), space()
    story.arrives("a/call")
    story.starts("a/call")
    story.happens(e.CallPreempted(1.0, "a/call", 15))
    policy.plan(story.view())
    story.finishes("a/call")
    assert policy.plan(story.view()).admit == ()


def test_space_alone_copies_nothing_and_time_alone_leaves_the_order_to_the_engine():
    story = Story()
    story.arrives("a/call")
    view = story.view()
    plan = tokencake(time=False).plan(view)
    assert (plan.offload, plan.upload, plan.forget, plan.wake_at_s) == ((), (), (), None)
    assert tokencake(space=False).plan(view).admit is None


def test_a_preset_is_what_it_is_unless_an_option_says_otherwise():
    assert tokencake().options == Tokencake().options == Options()
    assert tokencake(rules="published").options == PRESETS["published"]
    assert tokencake(rules="published", lend=False).options == replace(PRESETS["published"], lend=False)
    assert tokencake(rules="published", skip=False).options.skip is False
