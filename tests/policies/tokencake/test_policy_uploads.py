"""Uploads ahead of need: when they start, how they gather room, and for whom they give way."""

from typing import Any

from views import Story

from tokencake.policies.interface import Move
from tokencake.policies.tokencake.policy import Tokencake, tokencake
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.events import ToolHint

SAVEABLE = Hints(reusable=True)


def saved(free_blocks: int = 60, **options: Any) -> tuple[Story, Tokencake]:
    """Agent a's tool started at 0 and takes ten seconds; the host has its 50 blocks; a copy takes half a second."""
    story = Story(free_blocks=free_blocks, copy_block_s=0.01)
    policy = tokencake(**{"rules": "published", "gate": False, "lead_s": 0.5, "gather_s": 4.0, **options})
    tools = (ToolHint("search", 10.0),)
    story.runs("a/call", prompt_tokens=793, max_output_tokens=16, agent="a/main", tools=tools, hints=SAVEABLE)
    story.tool_starts("a/call")
    policy.plan(story.view())
    story.passes(0.0, steps=1)
    policy.plan(story.view())
    story.happens(e.OffloadFinished(0.0, "a/main", 50, 50))
    return story, policy


def test_an_upload_gathers_its_blocks_step_by_step_and_is_complete_in_time():
    story, policy = saved()
    plan = policy.plan(story.view())
    assert (plan.upload, plan.wake_at_s) == ((), 5.0)  # 10 s, less 0.5 s copy, 0.5 s lead and 4 s to gather
    moves = []
    while plan.wake_at_s is not None:
        story.now_s = plan.wake_at_s
        plan = policy.plan(story.view())
        moves.append((story.now_s, *plan.upload))
    assert moves == [
        (5.0, Move("a/main", 10)),
        (6.0, Move("a/main", 20)),
        (7.0, Move("a/main", 30)),
        (8.0, Move("a/main", 40)),
        (9.0, Move("a/main", 50)),
    ]


def test_on_demand_nothing_is_brought_back_ahead():
    story, policy = saved(upload="demand")
    story.now_s = 9.5
    plan = policy.plan(story.view())
    assert (plan.upload, plan.wake_at_s) == ((), None)


def test_at_a_pause_it_starts_as_soon_as_there_is_room():
    story, policy = saved(upload="pause", free_blocks=0)
    assert policy.plan(story.view()).upload == ()
    story.free_blocks = 60
    assert policy.plan(story.view()).upload == (Move("a/main", 50),)


def test_room_goes_by_score():
    for importance, upload, admit in ((2, 19, ("b/call",)), (1, 50, ())):
        story, policy = saved()
        story.now_s = 9.0
        story.arrives("c/call", prompt_tokens=16)
        story.starts("c/call")
        # a ran nine seconds: 159 + 9 (5 · 1.75 + 5) = 282.75. b is new, nine seconds after the first application:
        # 59 + 6 · 9 = 113, and 100 for each point of importance. It needs 41 of the 60 blocks.
        story.arrives("b/call", prompt_tokens=640, hints=Hints(importance=importance))
        plan = policy.plan(story.view())
        assert (plan.upload, plan.admit) == ((Move("a/main", upload),), admit)


def test_an_upload_is_cancelled_when_a_more_urgent_call_fits_into_its_room():
    story, policy = saved()
    story.now_s = 9.0
    story.arrives("c/call", prompt_tokens=16)
    story.starts("c/call")
    assert policy.plan(story.view()).upload == (Move("a/main", 50),)
    story.free_blocks = 10
    story.arrives("b/unimportant", prompt_tokens=640, hints=Hints(importance=0))
    assert policy.plan(story.view()).cancel == ()
    story.arrives("b/too-large", prompt_tokens=1600, hints=Hints(importance=20))
    assert policy.plan(story.view()).cancel == ()
    story.starts("b/too-large")
    story.arrives("b/urgent", prompt_tokens=640, hints=Hints(importance=9))
    assert policy.plan(story.view()).cancel == ("a/main",)


def test_an_upload_that_was_refused_is_not_asked_for_again_in_this_stall():
    story, policy = saved()
    story.now_s = 9.0
    assert policy.plan(story.view()).upload
    story.happens(e.UploadRefused(9.0, "a/main"))
    story.now_s = 9.5
    assert policy.plan(story.view()).upload == ()


def test_with_a_first_come_queue_uploads_take_what_the_queue_leaves():
    story, policy = saved(space=False)
    story.now_s = 9.0
    story.growth_blocks = 5
    story.arrives("b/call", prompt_tokens=320)
    assert policy.plan(story.view()).upload == (Move("a/main", 35),)


def test_nothing_is_brought_back_in_a_step_that_saves():
    story, policy = saved()
    story.now_s = 4.0
    story.runs("b/call", prompt_tokens=160, agent="b/main", hints=SAVEABLE)
    story.tool_starts("b/call")
    story.now_s = 8.0
    policy.plan(story.view())
    story.passes(1.0, steps=1)
    plan = policy.plan(story.view())
    assert (plan.offload, plan.upload) == ((Move("b/main", 10),), ())
    assert policy.plan(story.view()).upload == (Move("a/main", 50),)
