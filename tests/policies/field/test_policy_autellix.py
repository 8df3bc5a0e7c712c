"""Autellix by hand: programs that were served little go first. Queues end at 1, 3 and 7 s; the fourth is open."""

import pytest
from views import Story

from tokencake.policies.field.autellix import Autellix
from tokencake.traces import events as e
from tokencake.traces.errors import PolicyError


def policy(**options: object) -> Autellix:
    return Autellix(**{"queues": 4, "first_quantum_s": 1.0, "growth": 2.0, "beta": 1000.0, **options})  # type: ignore[arg-type]


def serve(story: Story, call: str, seconds: float) -> None:
    """A call arrives, runs for so long, and ends."""
    story.arrives(call)
    story.starts(call)
    story.passes(seconds)
    story.finishes(call)


def test_the_program_that_was_served_less_goes_first():
    story = Story()
    serve(story, "a/1", 4.0)  # a has 4 s: the third queue, from 3 to 7 s
    serve(story, "b/1", 2.0)  # b has 2 s: the second, from 1 to 3 s
    story.arrives("a/2")
    story.arrives("b/2")
    story.arrives("c/1")  # c has nothing
    assert policy().plan(story.view()).admit == ("c/1", "b/2", "a/2")


def test_inside_a_queue_the_first_to_arrive_goes_first():
    story = Story()
    serve(story, "a/1", 6.5)  # both in the third queue, though a has more
    serve(story, "b/1", 3.5)
    story.arrives("a/2")
    story.passes(1.0)
    story.arrives("b/2")
    assert policy().plan(story.view()).admit == ("a/2", "b/2")


def branched() -> Story:
    """a's two branches ran side by side for 2 s; b's two calls one after the other, for 1 s each and half a second."""
    story = Story()
    story.arrives("a/left")
    story.arrives("a/right")
    story.starts("a/left")
    story.starts("a/right")
    story.passes(2.0)
    story.finishes("a/left")
    story.finishes("a/right")
    serve(story, "b/1", 1.0)
    serve(story, "b/2", 1.5)
    story.arrives("a/join")
    story.arrives("b/3")
    return story


def test_plas_adds_up_all_calls_and_atlas_follows_the_longest_path():
    # in sum a has 4 s (third queue), b 2.5 s (second)
    assert policy(rule="plas").plan(branched().view()).admit == ("b/3", "a/join")
    # by path a has 2 s, b 1 + 1.5 = 2.5 s: both in the second queue, and a came first
    assert policy(rule="atlas").plan(branched().view()).admit == ("a/join", "b/3")


def test_a_call_sinks_when_it_has_used_up_its_quantum():
    story = Story()
    rule = policy()
    story.arrives("a/1")
    story.starts("a/1")
    story.passes(1.5)
    story.happens(e.CallPreempted(story.now_s, "a/1", 3))
    story.arrives("b/1")
    # a ran 1.5 s of its first 1 s: it is in the second queue now
    assert rule.plan(story.view()).admit == ("b/1", "a/1")


def test_a_program_that_waited_long_for_little_rises():
    story = Story()
    rule = policy(beta=3.0)
    serve(story, "a/1", 2.0)
    story.arrives("a/2")
    story.arrives("b/1")
    assert rule.plan(story.view()).admit == ("b/1", "a/2")
    story.passes(5.0)
    story.arrives("c/1")
    assert rule.plan(story.view()).admit == ("b/1", "c/1", "a/2")  # 5 s of waiting are less than 3 x 2 s
    story.passes(1.5)
    story.arrives("d/1")
    # 6.5 s are more; a's call came first of those in the first queue (b's came at the same time, ids decide)
    assert rule.plan(story.view()).admit == ("a/2", "b/1", "c/1", "d/1")


def test_the_call_of_the_lowest_queue_gives_way_first():
    story = Story(free_blocks=4)
    rule = policy()
    story.arrives("a/1")
    story.starts("a/1")
    story.passes(2.0)  # a's running call has sunk to the second queue
    for call in ("b/1", "c/1"):
        story.arrives(call)
        story.starts(call)
    story.growth_blocks = 3
    assert rule.plan(story.view()).preempt == ()  # there is room for all that they may grow by
    story.growth_blocks = 5
    story.happens(e.FirstToken(story.now_s, "b/1"))
    assert rule.plan(story.view()).preempt == ("a/1", "c/1", "b/1")  # of equals, who came last


def test_a_call_that_was_given_up_is_forgotten_wherever_it_was():
    story = Story()
    rule = policy()
    for call in ("a/1", "a/2", "b/1"):
        story.arrives(call)
    story.starts("a/1")
    assert rule.plan(story.view()).admit == ("a/2", "b/1")
    story.happens(e.CallAborted(1.0, "a/1"))
    story.happens(e.CallAborted(1.0, "a/2"))
    story.happens(e.AppFinished(1.0, "a"))
    assert rule.plan(story.view()).admit == ("b/1",)


@pytest.mark.parametrize("option", [{"queues": 0}, {"first_quantum_s": 0.0}, {"growth": -1.0}, {"beta": float("nan")}])
def test_a_bad_option_is_named(option):
    (name,) = option
    with pytest.raises(PolicyError, match=rf"^autellix: option {name}: expected .*, got"):
        Autellix(**option)
