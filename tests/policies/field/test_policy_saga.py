"""SAGA's time to live, by hand. Blocks have 16 tokens; a context of 50 blocks lies in a cache of 100."""

from math import exp, log

import pytest
from views import Story

from tokencake.policies.field.saga import Saga
from tokencake.policies.interface import NATIVE
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.errors import PolicyError
from tokencake.traces.events import ToolHint

SEARCH = (ToolHint("search", 4.0),)
FETCH = (ToolHint("fetch", None),)
REUSABLE = Hints(reusable=True)


def stalls(story: Story, call: str, agent: str, tools: tuple[ToolHint, ...] = SEARCH, hints: Hints = REUSABLE) -> None:
    story.runs(call, prompt_tokens=793, max_output_tokens=16, agent=agent, tools=tools, hints=hints)
    story.tool_starts(call)


def test_before_the_first_gap_the_declared_time_is_the_median():
    story = Story()
    stalls(story, "a/1", "a/main")
    stalls(story, "b/1", "b/main", tools=FETCH)
    pin = Saga().plan(story.view()).pin
    # exp(ln 4 + 1.645 * 0.5) = 4 * 2.2764; nothing is declared for the other: 1 s * 2.2764
    assert pin["a/main"] == pytest.approx(9.1055, abs=1e-3)
    assert pin["b/main"] == pytest.approx(2.2764, abs=1e-3)


def test_gaps_move_the_mean_and_the_spread_of_their_logarithms():
    rule, story = Saga(), Story()
    for call, gap_s in (("a/1", exp(1)), ("a/2", exp(2))):
        stalls(story, call, "a/main")
        story.passes(gap_s)
    stalls(story, "a/3", "a/main")
    # mu: 1, then 1 + 0.2 * (2 - 1) = 1.2; sigma²: 0.25, then 0.8 * (0.25 + 0.2 * 1²) = 0.36; exp(1.2 + 1.645 * 0.6)
    assert rule.plan(story.view()).pin == {"a/main": pytest.approx(story.now_s + 8.9086, abs=1e-3)}


@pytest.mark.parametrize(("free_blocks", "share"), [(30, 1.0), (20, 0.75), (10, 0.5), (0, 0.5)])
def test_where_memory_is_short_it_keeps_for_less(free_blocks, share):
    story = Story(free_blocks=free_blocks)  # of 100: 0.7 used and less is no pressure, 0.9 and more is all of it
    stalls(story, "a/1", "a/main")
    assert Saga().plan(story.view()).pin == {"a/main": pytest.approx(share * 4 * exp(1.645 * 0.5))}


def test_nothing_is_kept_for_more_than_five_minutes():
    story = Story()
    stalls(story, "a/1", "a/main", tools=(ToolHint("build", 1000.0),))
    assert Saga().plan(story.view()).pin == {"a/main": 300.0}
    assert Saga(most_s=60.0).plan(story.view()).pin == {}  # the news was told once


def test_tools_side_by_side_are_one():
    rule, story = Saga(), Story()
    stalls(story, "a/1", "a/main", tools=FETCH + SEARCH)
    story.passes(2.0)
    stalls(story, "a/2", "a/main", tools=SEARCH + FETCH)
    assert rule.plan(story.view()).pin == {"a/main": pytest.approx(2.0 + exp(log(2) + 1.645 * 0.5))}


def test_a_keep_ends_with_its_time_or_when_the_next_call_starts():
    rule, story = Saga(), Story()
    stalls(story, "a/1", "a/main")
    stalls(story, "b/1", "b/main")
    assert set(rule.plan(story.view()).pin) == {"a/main", "b/main"}
    story.passes(1.0)
    story.arrives("a/2", agent="a/main")
    assert set(rule.plan(story.view()).pin) == {"a/main", "b/main"}
    story.starts("a/2")
    assert set(rule.plan(story.view()).pin) == {"b/main"}
    story.passes(9.0)
    assert rule.plan(story.view()) is NATIVE


def test_what_no_later_call_extends_is_not_kept():
    story = Story()
    stalls(story, "a/1", "a/main", hints=Hints())
    assert Saga().plan(story.view()) is NATIVE


def test_who_is_gone_is_not_kept():
    rule, story = Saga(), Story()
    stalls(story, "a/1", "a/main")
    stalls(story, "b/1", "b/main")
    rule.plan(story.view())
    story.happens(e.AppFinished(story.now_s, "a"))
    story.arrives("b/2", agent="b/main")
    story.happens(e.CallAborted(story.now_s, "b/2"))
    assert rule.plan(story.view()) is NATIVE


@pytest.mark.parametrize(
    ("options", "said"),
    [({"weight_share": 0.0}, "weight_share"), ({"weight_share": 1.1}, "weight_share"), ({"most_s": -1.0}, "most_s")],
)
def test_an_option_out_of_its_range_is_an_error_in_one_line(options, said):
    with pytest.raises(PolicyError, match=rf"^saga: option {said}: expected .*, got \S+$"):
        Saga(**options)
