"""What is lost while agents are away, and what is kept for it. A token takes a millisecond to compute."""

import pytest
from views import Story

from tokencake.policies.interface import View
from tokencake.policies.tokencake.known_agents import KnownAgents
from tokencake.policies.tokencake.miss_share import MissShare
from tokencake.policies.tokencake.policy import Tokencake, tokencake
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.events import ToolHint

REUSABLE = Hints(reusable=True)
SEARCH = (ToolHint("search", 4.0),)


# -- losses


def told(miss_share: MissShare, story: Story) -> View:
    """It is told what happened since."""
    view = story.view()
    for fact in view.news:
        if type(fact) in miss_share.handlers:
            miss_share.handlers[type(fact)](fact, view)
    return view


def comes_back(
    story: Story,
    miss_share: MissShare,
    gpu_tokens: int = 0,
    host_tokens: int = 0,
    prompt_tokens: int = 1000,
    app: str = "a",
) -> None:
    """An agent that left 800 tokens calls again, and finds so much of them."""
    told(miss_share, story)
    story.arrives(f"{app}/2", agent=f"{app}/main", prompt_tokens=prompt_tokens, hints=REUSABLE)
    told(miss_share, story)
    story.happens(e.CallAdmitted(story.now_s, f"{app}/2", gpu_tokens, host_tokens, 0))
    told(miss_share, story)


def left(hints: Hints = REUSABLE, app: str = "a", story: Story | None = None) -> Story:
    """An agent's call ended and left 50 full blocks."""
    story = Story() if story is None else story
    story.runs(f"{app}/1", agent=f"{app}/main", prompt_tokens=785, max_output_tokens=16, hints=hints)
    return story


@pytest.mark.parametrize(
    ("gpu_tokens", "host_tokens", "share"),
    [
        (0, 0, 1 / 32),
        (800, 0, 0.0),
        (0, 800, 0.0),
        (200, 400, 0.25 / 32),
        (992, 0, 0.0),  # more than its own context, from others: nothing is lost
    ],
)
def test_a_return_counts_for_one_in_32(gpu_tokens, host_tokens, share):
    miss_share = MissShare(KnownAgents())
    comes_back(left(), miss_share, gpu_tokens, host_tokens)
    assert miss_share.share == pytest.approx(share)


def test_what_was_lost_once_fades_with_returns_that_lose_nothing():
    miss_share, story = MissShare(KnownAgents()), left()
    comes_back(story, miss_share)
    for app in ("b", "c"):
        comes_back(left(app=app, story=story), miss_share, gpu_tokens=800, app=app)
    assert miss_share.share == pytest.approx(1 / 32 * (31 / 32) ** 2)


def test_no_return_is_one_that_the_last_call_did_not_announce():
    miss_share = MissShare(KnownAgents())
    comes_back(left(Hints()), miss_share)
    assert miss_share.share == 0.0


@pytest.mark.parametrize(("prompt_tokens", "share"), [(799, 0.0), (800, 1 / 32)])
def test_a_prompt_that_is_shorter_than_the_context_does_not_continue_it(prompt_tokens, share):
    miss_share = MissShare(KnownAgents())
    comes_back(left(), miss_share, prompt_tokens=prompt_tokens)
    assert miss_share.share == pytest.approx(share)


def test_what_was_kept_shows_nothing():
    miss_share, story = MissShare(KnownAgents()), left()
    told(miss_share, story)
    miss_share.pinned = frozenset({"a/main"})
    comes_back(story, miss_share)
    assert miss_share.share == 0.0


def test_a_first_call_is_no_return_and_neither_is_one_that_was_given_up():
    miss_share, story = MissShare(KnownAgents()), left()
    assert miss_share.share == 0.0
    story.arrives("a/2", agent="a/main", prompt_tokens=1000, hints=REUSABLE)
    story.happens(e.CallAborted(0.0, "a/2"))
    told(miss_share, story)
    assert miss_share.share == 0.0


def test_a_call_counts_once_though_it_is_preempted():
    miss_share, story = MissShare(KnownAgents()), left()
    comes_back(story, miss_share)
    story.happens(e.CallPreempted(0.0, "a/2", 5))
    story.happens(e.CallAdmitted(0.0, "a/2", 0, 0, 5))
    told(miss_share, story)
    assert miss_share.share == pytest.approx(1 / 32)


def test_a_client_that_leaves_and_comes_again_under_the_same_name_is_new():
    miss_share, story = MissShare(KnownAgents()), left()
    told(miss_share, story)
    story.happens(e.AppFinished(0.0, "a"))
    story.happens(e.AppStarted(1.0, "a"))
    comes_back(story, miss_share)
    assert miss_share.share == 0.0


# -- keeps


def keeping(keep_weight: float = 32.0) -> Tokencake:
    """With a lost share of 1/32, this weight keeps for just as long as computing takes."""
    return tokencake(keep_weight=keep_weight)


def one_lost(story: Story, policy: Tokencake) -> None:
    """An agent came back and found nothing: the lost share is 1/32. Then it left for good."""
    left(app="lost", story=story)
    policy.plan(story.view())
    story.arrives("lost/2", agent="lost/main", prompt_tokens=1000)
    policy.plan(story.view())
    story.starts("lost/2")
    story.finishes("lost/2")
    story.happens(e.AppFinished(story.now_s, "lost"))


def stalls(story: Story, app: str) -> None:
    """An agent that left 50 blocks runs a tool."""
    story.runs(f"{app}/1", agent=f"{app}/main", prompt_tokens=785, tools=SEARCH, hints=REUSABLE)
    story.tool_starts(f"{app}/1")


def test_a_context_is_kept_for_as_long_as_its_loss_is_expected_to_cost():
    """32 * 1/32 * 800 tokens * 1 ms = 0.8 s."""
    story, policy = Story(), keeping()
    one_lost(story, policy)
    story.passes(10.0)
    stalls(story, "a")
    plan = policy.plan(story.view())
    assert plan.pin == {"a/main": pytest.approx(10.8)}
    assert plan.wake_at_s == pytest.approx(10.8)
    story.passes(0.8)
    plan = policy.plan(story.view())
    assert (plan.pin, plan.wake_at_s) == ({}, None)


def test_twice_the_weight_keeps_twice_as_long_and_none_keeps_nothing():
    for weight, pin in ((64.0, {"a/main": pytest.approx(1.6)}), (0.0, {})):
        story, policy = Story(), keeping(weight)
        one_lost(story, policy)
        stalls(story, "a")
        assert policy.plan(story.view()).pin == pin


def test_where_nothing_gets_lost_nothing_is_kept():
    story, policy = Story(), keeping()
    stalls(story, "a")
    assert policy.plan(story.view()).pin == {}


def test_pins_are_repeated_and_the_first_to_end_wakes():
    story, policy = Story(), keeping()
    one_lost(story, policy)
    stalls(story, "a")
    policy.plan(story.view())
    story.passes(0.5)
    stalls(story, "b")
    plan = policy.plan(story.view())
    assert plan.pin == {"a/main": pytest.approx(0.8), "b/main": pytest.approx(1.3)}
    assert plan.wake_at_s == pytest.approx(0.8)


def test_a_tool_that_returns_ends_it():
    story, policy = Story(), keeping()
    one_lost(story, policy)
    stalls(story, "a")
    assert policy.plan(story.view()).pin
    story.tool_returns("a/1")
    assert policy.plan(story.view()).pin == {}


def test_who_is_gone_is_not_kept():
    story, policy = Story(), keeping()
    one_lost(story, policy)
    stalls(story, "a")
    assert policy.plan(story.view()).pin
    story.happens(e.AppFinished(0.1, "a"))
    assert policy.plan(story.view()).pin == {}


def test_a_kept_context_teaches_nothing_when_its_agent_comes_back():
    """Whatever the second finds, the lost share stays: the third is kept for as long."""
    story, policy = Story(), keeping()
    one_lost(story, policy)
    stalls(story, "a")
    policy.plan(story.view())
    story.arrives("a/2", agent="a/main", prompt_tokens=1000)
    policy.plan(story.view())
    story.starts("a/2", gpu_hit_tokens=800)
    stalls(story, "b")
    assert policy.plan(story.view()).pin == {"b/main": pytest.approx(0.8)}


# -- who is given up


def kept_and_blocked(prompt_blocks: int, app: str, free_blocks: int = 10) -> tuple[Story, Tokencake]:
    """a, b and c started one after another and are kept with 50 blocks each; x runs, and a call of `app` comes."""
    story, policy = Story(gpu_blocks=200, free_blocks=200), keeping()
    one_lost(story, policy)
    for kept in ("a", "b", "c"):
        stalls(story, kept)
    story.arrives("x/1")
    story.starts("x/1")
    assert set(policy.plan(story.view()).pin) == {"a/main", "b/main", "c/main"}
    story.free_blocks = free_blocks
    story.arrives(f"{app}/new", prompt_tokens=16 * prompt_blocks)
    return story, policy


@pytest.mark.parametrize(
    ("app", "prompt_blocks", "kept"),
    [
        ("a", 10, "abc"),  # it fits
        ("a", 11, "ab"),  # a block is missing: the youngest goes
        ("a", 60, "ab"),  # 50 are missing
        ("a", 61, "a"),
        ("a", 190, "a"),  # its own application's are not given up, even if that is not enough
        ("b", 190, "ab"),  # nor older ones'
        ("d", 190, "abc"),
    ],
)
def test_for_a_call_that_comes_next_younger_applications_are_given_up(app, prompt_blocks, kept):
    story, policy = kept_and_blocked(prompt_blocks, app)
    assert set(policy.plan(story.view()).pin) == {f"{name}/main" for name in kept}


def test_what_was_given_up_is_kept_again_if_its_tool_has_not_run_for_long():
    story, policy = kept_and_blocked(11, "a")
    assert set(policy.plan(story.view()).pin) == {"a/main", "b/main"}
    story.free_blocks = 11
    assert set(policy.plan(story.view()).pin) == {"a/main", "b/main", "c/main"}
