"""Continuum's times to live and its order, by hand. Blocks have 16 tokens; a token takes 1 ms to prefill."""

from math import log
from statistics import correlation

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import Story

from tokencake.policies.field.continuum import LATEST_GAPS, Continuum, SeenGaps, Turns, best_keep_s
from tokencake.policies.parts.ranked_queue import RankedQueue
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.errors import PolicyError
from tokencake.traces.events import ToolHint

SEARCH, FETCH = (ToolHint("search", None),), (ToolHint("fetch", None),)
REUSABLE = Hints(reusable=True)


def stalls(
    story: Story, call: str, blocks: int = 50, tools: tuple[ToolHint, ...] = SEARCH, hints: Hints = REUSABLE
) -> None:
    """The next call of the application's one agent ran and started its tools; its context has so many blocks."""
    agent = call.split("/")[0] + "/main"
    story.runs(call, prompt_tokens=16 * blocks, max_output_tokens=1, agent=agent, tools=tools, hints=hints)
    story.tool_starts(call)


def returns(story: Story, call: str, blocks: int = 51) -> None:
    story.arrives(call, prompt_tokens=16 * blocks, agent=call.split("/")[0] + "/main")


# -- how long


@pytest.mark.parametrize(
    ("gaps_s", "benefit_s", "keep_s"),
    [
        ([1.0, 2.0, 10.0], 6.0, 2.0),  # 1/3 * 6 - 1 = 1, 2/3 * 6 - 2 = 2, and 10 is more than could be won
        ([1.0, 2.0, 10.0], 30.0, 10.0),  # 9, 18, 20
        ([1.0, 2.0, 10.0], 1.0, 0.0),  # 1/3 - 1 is a loss
        ([2.0, 2.0, 2.0, 3.0], 4.0, 2.0),  # 3/4 * 4 - 2 = 1, 4 - 3 = 1: the shorter
        ([], 5.0, 0.0),
    ],
)
def test_the_best_time_weighs_the_share_of_gaps_against_their_length(gaps_s, benefit_s, keep_s):
    assert best_keep_s(gaps_s, benefit_s) == keep_s


@given(st.lists(st.integers(0, 20), min_size=1), st.integers(0, 30))
def test_no_other_time_is_better(gaps: list[int], benefit: int) -> None:
    def won(keep: float) -> float:
        return sum(gap <= keep for gap in gaps) / len(gaps) * benefit - keep

    keep = best_keep_s(sorted(float(gap) for gap in gaps), float(benefit))
    assert won(keep) >= max(won(other) for other in [0, *gaps]) - 1e-9


def test_eta_is_one_if_all_agents_have_the_same_number_of_turns():
    turns = Turns()
    assert turns.eta == 1.0
    turns.learn(3)
    turns.learn(3)
    assert turns.eta == pytest.approx(1.0)


def test_eta_is_the_negative_correlation_of_turns_done_and_turns_left():
    turns = Turns()
    turns.learn(2)
    turns.learn(4)
    done, left = (1, 2, 1, 2, 3, 4), (1, 0, 3, 2, 1, 0)
    assert turns.eta == pytest.approx(-correlation(done, left))
    turns.learn(100)  # nearly all turns are its own
    assert 0 < turns.eta < 1


def test_eta_is_never_negative():
    turns = Turns()
    for _ in range(50):
        turns.learn(1)
    turns.learn(2)
    turns.learn(2)
    turns.learn(300)
    assert 0 <= turns.eta <= 1


def test_at_first_gaps_are_taken_to_be_exponential():
    story = Story()
    stalls(story, "a/1", blocks=462)
    stalls(story, "b/1", blocks=50)
    plan = Continuum().plan(story.view())
    # B = R: 462 * 16 tokens take 7.392 s, ln 7.392 = 2.0004; 50 * 16 take 0.8 s, which is not worth a keep
    assert set(plan.pin) == {"a/main"}
    assert plan.wake_at_s == pytest.approx(log(7.392))


def test_what_evicted_returns_waited_is_won_too():
    story = Story()
    stalls(story, "a/1")  # R = 0.8 s: not kept
    story.passes(1.0)
    returns(story, "a/2")
    story.passes(10.0)
    story.starts("a/2")  # T = 10 s
    stalls(story, "b/1")
    plan = Continuum().plan(story.view())
    assert set(plan.pin) == {"b/main"}
    assert plan.wake_at_s == pytest.approx(11.0 + log(10 + 0.8))


def test_a_tool_that_was_seen_often_has_its_own_distribution():
    story = Story()
    for index in range(101):
        stalls(story, f"f{index}/1", tools=FETCH)
        stalls(story, f"s{index}/1", tools=SEARCH)
        story.passes(1.0)
        returns(story, f"f{index}/2")
        story.starts(f"f{index}/2")  # at once: T = 0
        story.passes(2.0)
        returns(story, f"s{index}/2")
        story.starts(f"s{index}/2")
    rule = Continuum()
    rule.plan(story.view())

    def keep_s(call: str, tools: tuple[ToolHint, ...]) -> float:
        stalls(story, call, blocks=200, tools=tools)  # B = R = 3.2 s
        wake_at_s = rule.plan(story.view()).wake_at_s
        assert wake_at_s is not None
        story.happens(e.AppFinished(story.now_s, call.split("/")[0]))
        return wake_at_s - story.now_s

    assert keep_s("x/1", FETCH) == pytest.approx(1.0)
    assert keep_s("y/1", SEARCH) == pytest.approx(3.0)  # 3.2 - 3 is still more than nothing
    assert keep_s("z/1", (ToolHint("ask", None),)) == pytest.approx(1.0)  # of all: 1/2 * 3.2 - 1 = 0.6, 3.2 - 3 = 0.2


def test_only_the_latest_gaps_count():
    gaps = SeenGaps()
    for gap_s in [5.0] * LATEST_GAPS + [1.0, 2.0]:
        gaps.learn(gap_s)
    assert gaps.count == LATEST_GAPS + 2
    assert gaps.sorted_s == [1.0, 2.0, *[5.0] * (LATEST_GAPS - 2)]


def test_the_released_rule_keeps_for_two_seconds_unless_tools_take_longer_on_average():
    rule, story = Continuum(rule="released"), Story()
    stalls(story, "a/1")
    plan = rule.plan(story.view())
    assert (set(plan.pin), plan.wake_at_s) == ({"a/main"}, 2.0)
    story.passes(4.0)
    returns(story, "a/2")
    stalls(story, "b/1", tools=SEARCH)  # mean 4 s
    stalls(story, "c/1", tools=FETCH)
    plan = rule.plan(story.view())
    assert (set(plan.pin), plan.wake_at_s) == ({"c/main"}, 6.0)


def test_what_no_later_call_extends_is_not_kept():
    story = Story()
    stalls(story, "a/1", blocks=462, hints=Hints())
    assert Continuum(rule="released").plan(story.view()).pin == {}


# -- order


def test_preempted_calls_are_first_then_kept_ones_then_the_order_of_programs():
    rule, story = Continuum(rule="released"), Story(gpu_blocks=1000)
    stalls(story, "a/1")
    story.passes(1.0)
    story.arrives("b/1")
    stalls(story, "c/1")
    story.arrives("d/1")
    story.starts("d/1")
    rule.plan(story.view())
    story.passes(1.5)  # a is kept until 2, c until 3; now it is 2.5
    story.arrives("e/1")
    returns(story, "a/2")
    returns(story, "c/2")
    story.happens(e.CallPreempted(story.now_s, "d/1", 3))
    assert rule.plan(story.view()).admit == ("d/1", "c/2", "a/2", "b/1", "e/1")


def test_a_cache_is_kept_until_the_call_that_came_in_time_starts():
    rule, story = Continuum(rule="released"), Story(gpu_blocks=1000)
    stalls(story, "a/1")
    rule.plan(story.view())
    story.passes(2.0)  # the last moment
    returns(story, "a/2")
    story.passes(60.0)
    assert set(rule.plan(story.view()).pin) == {"a/main"}
    story.starts("a/2")
    assert rule.plan(story.view()).pin == {}


# -- pressure


def crowded() -> tuple[Continuum, Story]:
    """a, b and c came one after another, and their caches of 50 blocks are kept; 10 blocks are free."""
    rule, story = Continuum(rule="released"), Story(gpu_blocks=200, free_blocks=10)
    for app in "abc":
        stalls(story, f"{app}/1")
        story.passes(0.1)
    assert set(rule.plan(story.view()).pin) == {"a/main", "b/main", "c/main"}
    return rule, story


def test_the_latest_program_is_given_up_first_if_nothing_runs():
    rule, story = crowded()
    story.arrives("d/1", prompt_tokens=16 * 70)  # 60 blocks are missing: c's 50, and b's
    assert set(rule.plan(story.view()).pin) == {"a/main"}


def test_while_something_runs_the_programs_before_ones_own_are_kept():
    rule, story = crowded()
    story.arrives("b/x", agent="b/other")
    story.starts("b/x")
    story.arrives("b/y", prompt_tokens=16 * 100, agent="b/third")
    assert set(rule.plan(story.view()).pin) == {"a/main", "b/main"}


def test_what_fits_asks_nobody_to_give_up():
    rule, story = crowded()
    story.arrives("d/1", prompt_tokens=160)
    assert set(rule.plan(story.view()).pin) == {"a/main", "b/main", "c/main"}


def test_a_call_whose_cache_is_given_up_loses_its_place():
    rule, story = crowded()
    returns(story, "c/2", blocks=60)
    returns(story, "b/2", blocks=61)
    story.cached("c/2", gpu_blocks=50)
    story.cached("b/2", gpu_blocks=50)
    plan = rule.plan(story.view())
    # b needs 11 blocks and has 10; c is the latest. It waits behind nobody here, but no longer as one that is kept.
    assert plan.admit == ("b/2", "c/2")
    assert set(plan.pin) == {"a/main", "b/main"}
    story.arrives("a/x", agent="a/other")
    assert rule.plan(story.view()).admit == ("b/2", "a/x", "c/2")


def test_who_is_gone_is_not_kept():
    rule, story = crowded()
    story.happens(e.AppFinished(story.now_s, "a"))
    returns(story, "b/2")
    story.happens(e.CallAborted(story.now_s, "b/2"))
    plan = rule.plan(story.view())
    assert set(plan.pin) == {"c/main"}
    assert plan.admit == ()


# -- the queue


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 3))))
def test_a_queue_is_sorted_by_key_whatever_comes_and_goes(changes):
    queue, keys = RankedQueue(), dict[str, tuple[float, ...]]()
    for call, rank in changes:
        if rank is None:
            queue.remove(call)
            keys.pop(call, None)
        else:
            keys[call] = (float(rank), float("fedcba".index(call)))
            queue.put(call, keys[call])
        assert queue.names() == tuple(sorted(keys, key=lambda name: keys[name]))
        assert list(queue) == list(queue.names())


def test_an_unknown_rule_is_an_error_in_one_line():
    with pytest.raises(PolicyError, match=r"^continuum: option rule: expected paper or released, got 'both'$"):
        Continuum(rule="both")  # type: ignore[arg-type]
