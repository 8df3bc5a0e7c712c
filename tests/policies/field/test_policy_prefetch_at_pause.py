"""Prefetch at pause: write-through, then back to the GPU as soon as there is room. A block copies in a millisecond."""

from dataclasses import replace

from crowded_runs import count, crowded, facts_of
from views import Story

from tokencake.policies.field.prefetch_at_pause import PrefetchAtPause
from tokencake.policies.interface import Move, Plan, View
from tokencake.policies.registry import load_policy
from tokencake.traces import events as e
from tokencake.traces.events import ToolHint

SEARCH = (ToolHint("search", 4.0),)


def a_pause(free_blocks: int) -> tuple[Story, PrefetchAtPause]:
    """An agent left 50 blocks; they were saved when its call ended, and its tool runs."""
    story, policy = Story(gpu_blocks=100, free_blocks=free_blocks), PrefetchAtPause()
    story.runs("a/1", agent="a/main", prompt_tokens=785, tools=SEARCH)
    story.tool_starts("a/1")
    assert policy.plan(story.view()).offload == (Move("a/main", 50),)
    story.happens(e.OffloadStarted(0.0, "a/main", 50, 50))
    story.passes(0.05)
    story.happens(e.OffloadFinished(story.now_s, "a/main", 50, 50))
    return story, policy


def test_the_upload_begins_as_soon_as_the_copy_is_there():
    """Not just before the tool returns, at 4 s."""
    story, policy = a_pause(free_blocks=50)
    plan = policy.plan(story.view())
    assert plan.upload == (Move("a/main", 50),)
    assert plan.forget == ()


def test_what_ended_without_a_tool_is_saved_too():
    story, policy = Story(), PrefetchAtPause()
    story.runs("a/1", agent="a/main", prompt_tokens=785)
    assert policy.plan(story.view()).offload == (Move("a/main", 50),)


def test_calls_start_as_vllm_starts_them():
    story, policy = a_pause(free_blocks=50)
    story.arrives("b/1")
    assert policy.plan(story.view()).admit is None


def test_only_room_that_no_call_waits_for_and_no_running_one_will_take_is_used():
    """60 are free; 10 go to b/1, 15 to what runs: 35 are left, of 50 that are wanted."""
    story, policy = a_pause(free_blocks=60)
    story.growth_blocks = 15
    story.arrives("b/1")
    assert policy.plan(story.view()).upload == (Move("a/main", 35),)


def test_a_part_that_is_smaller_than_a_fifth_waits_for_more():
    story, policy = a_pause(free_blocks=9)
    assert policy.plan(story.view()).upload == ()
    story.free_blocks = 10
    story.arrives("b/1", prompt_tokens=16)  # takes a block
    assert policy.plan(story.view()).upload == ()
    story.starts("b/1")
    story.finishes("b/1")
    policy.plan(story.view())
    story.arrives("c/1", prompt_tokens=16)
    story.free_blocks = 11
    assert policy.plan(story.view()).upload == (Move("a/main", 10),)


def uploaded() -> tuple[Story, PrefetchAtPause]:
    story, policy = a_pause(free_blocks=50)
    policy.plan(story.view())
    story.happens(e.UploadStarted(story.now_s, "a/main", 50))
    story.free_blocks = 0
    return story, policy


def test_it_is_given_up_when_the_first_waiting_call_would_fit_into_its_room():
    story, policy = uploaded()
    story.arrives("b/1", prompt_tokens=800)  # 50 blocks
    plan = policy.plan(story.view())
    assert (plan.cancel, plan.upload) == (("a/main",), ())


def test_it_stays_where_that_would_not_help():
    story, policy = uploaded()
    story.arrives("b/1", prompt_tokens=801)  # 51 blocks
    assert policy.plan(story.view()).cancel == ()


def test_the_host_copy_is_given_up_when_the_tool_returns():
    story, policy = uploaded()
    story.tool_returns("a/1")
    assert policy.plan(story.view()).forget == ("a/main",)


def test_it_is_tokencakes_temporal_half_with_these_rules_and_write_through():
    """So a comparison with `tokencake:upload=pause` shows what the spatial half adds."""
    apps = crowded()[0]
    spec = "tokencake-time:save=all,upload=pause,rules=published"

    class WrittenThrough:
        def __init__(self) -> None:
            self._policy = load_policy(spec)

        @property
        def listens_to(self) -> frozenset[type]:
            return self._policy.listens_to

        def plan(self, view: View) -> Plan:
            return replace(self._policy.plan(view), write_through="prompts")

    assert facts_of(PrefetchAtPause, apps) == facts_of(WrittenThrough, apps)


def test_agents_find_their_contexts_on_the_gpu_when_they_come_back():
    facts = facts_of(PrefetchAtPause, crowded()[0])
    assert count(facts, e.UploadTaken) > 0
