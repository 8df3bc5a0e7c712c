"""InferCept's wastes, by hand: S = 10 tokens, an iteration of x tokens takes x + 10 ms, a block copies in a ms."""

from typing import Any

import pytest
from crowded_runs import count, crowded, facts_of
from views import Story

from tokencake.policies.field.infercept import InferCept, RunningBatch, StepTime
from tokencake.policies.interface import Move
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.errors import PolicyError
from tokencake.traces.events import ToolHint

REUSABLE = Hints(reusable=True)
# f(10) * 9 * (1 + 2 + 3) + f(9) * 3 * 32 + f(1 + 5) * 32 + f(5) * 32 = 1.08 + 1.824 + 0.512 + 0.48, see below
WASTE_OF_32 = 3.896


def rule(**options: Any) -> InferCept:
    return InferCept(**{"saturation_tokens": 10, "token_ms": 1.0, "step_ms": 10.0, **options})


def one_runs(**world: Any) -> Story:
    """A call of 32 tokens runs."""
    story = Story(**world)
    story.arrives("r/1", prompt_tokens=32)
    story.starts("r/1")
    return story


def stalls(story: Story, call: str, blocks: int = 2, tool_s: float | None = None, hints: Hints = REUSABLE) -> None:
    """The next call of the application's one agent ran and started its tool; its context has so many blocks."""
    agent = call.split("/")[0] + "/main"
    tools = (ToolHint("search", tool_s),)
    story.runs(call, prompt_tokens=16 * blocks, max_output_tokens=1, agent=agent, tools=tools, hints=hints)
    story.tool_starts(call)


def test_recomputation_in_chunks_holds_what_is_there_and_delays_what_runs():
    # one of 10 tokens is the running call's: chunks of 9; 32 tokens are 3 of them and a last one of 5
    batch = RunningBatch(calls=1, context_tokens=32, saturation_tokens=10, step_s=0.010)
    assert batch.discard_waste(32, 0.001) == pytest.approx(WASTE_OF_32)
    # one chunk, and nothing runs: f(5) * 5
    assert RunningBatch(0, 0, 10, 0.010).discard_waste(5, 0.001) == pytest.approx(0.015 * 5)
    # no room beside the running calls: one token an iteration
    assert RunningBatch(10, 0, 10, 0.0).discard_waste(3, 0.001) == pytest.approx(0.01 * (1 + 2) + 0.011 * 3)


def test_what_has_just_stalled_is_preserved():
    story = one_runs()
    stalls(story, "a/1")
    plan = rule().plan(story.view())
    assert set(plan.pin) == {"a/main"}
    assert not plan.offload
    assert plan.wake_at_s == pytest.approx(0.004)  # when it has lasted as long as two copies of two blocks


def test_it_is_swapped_once_the_gap_is_longer_than_the_copies():
    infercept, story = rule(), one_runs()
    stalls(story, "a/1")
    infercept.plan(story.view())
    story.passes(0.004)
    plan = infercept.plan(story.view())
    assert plan.offload == (Move("a/main", 2, keep=False),)
    assert not plan.pin
    assert plan.wake_at_s is None


def test_without_a_host_it_is_discarded_once_preserving_has_wasted_more():
    infercept, story = rule(), one_runs(host_blocks=0)
    stalls(story, "a/1")
    assert infercept.plan(story.view()).wake_at_s == pytest.approx(WASTE_OF_32 / 32)  # 0.12175 s
    story.passes(0.121)
    plan = infercept.plan(story.view())
    assert (set(plan.pin), plan.evict) == ({"a/main"}, ())
    story.passes(0.001)
    plan = infercept.plan(story.view())
    assert (set(plan.pin), plan.evict) == (set(), ("a/main",))
    assert infercept.plan(story.view()).evict == ()  # it is done once


def test_the_largest_waste_is_swapped_first_and_what_it_takes_is_owed():
    infercept, story = rule(), one_runs()
    stalls(story, "a/1", blocks=20)
    stalls(story, "b/1", blocks=30)
    infercept.plan(story.view())
    story.passes(0.06)
    # b, 480 tokens, wastes more; its copy takes 30 ms, and an iteration, f(1) = 11 ms, is over before
    plan = infercept.plan(story.view())
    assert plan.offload == (Move("b/main", 30, keep=False),)
    assert set(plan.pin) == {"a/main"}
    assert plan.wake_at_s == pytest.approx(0.09)
    story.passes(0.018)
    assert infercept.plan(story.view()).offload == ()  # 12 ms are left
    story.passes(0.002)
    assert infercept.plan(story.view()).offload == (Move("a/main", 20, keep=False),)


def test_a_declared_gap_decides_at_once():
    infercept, story = rule(gap="declared"), one_runs()
    stalls(story, "a/1", tool_s=5.0)
    stalls(story, "b/1", tool_s=0.001)
    plan = infercept.plan(story.view())
    assert plan.offload == (Move("a/main", 2, keep=False),)
    assert set(plan.pin) == {"b/main"}


def test_a_gap_that_outlasts_its_declaration_is_as_long_as_it_lasts():
    infercept, story = rule(gap="declared"), one_runs(host_blocks=0)
    stalls(story, "a/1", tool_s=0.001)
    assert set(infercept.plan(story.view()).pin) == {"a/main"}
    story.passes(0.2)
    assert infercept.plan(story.view()).evict == ("a/main",)


def test_the_heuristic_goes_by_the_gap_alone():
    infercept, story = rule(rule="heuristic", gap="declared"), one_runs()
    for app, tool_s in (("a", 3.9), ("b", 4.0), ("c", 6.9), ("d", 7.0)):
        stalls(story, f"{app}/1", tool_s=tool_s)
    plan = infercept.plan(story.view())
    assert set(plan.pin) == {"a/main"}
    assert {move.agent for move in plan.offload} == {"b/main", "c/main"}
    assert plan.evict == ("d/main",)
    assert plan.wake_at_s == pytest.approx(4.0)


def test_a_swap_that_is_refused_is_none():
    infercept, story = rule(), one_runs()
    stalls(story, "a/1")
    story.passes(0.01)
    assert infercept.plan(story.view()).offload
    story.happens(e.OffloadRefused(story.now_s, "a/main"))
    plan = infercept.plan(story.view())
    assert set(plan.pin) == {"a/main"}
    assert not plan.offload
    story.passes(0.2)
    assert infercept.plan(story.view()).evict == ("a/main",)


def test_what_returns_while_it_is_preserved_stays_so_until_its_call_starts():
    infercept, story = rule(), one_runs()
    stalls(story, "a/1")
    infercept.plan(story.view())
    story.arrives("a/2", agent="a/main")
    story.passes(1.0)
    plan = infercept.plan(story.view())
    assert set(plan.pin) == {"a/main"}
    assert not plan.offload
    story.starts("a/2")
    assert not infercept.plan(story.view()).pin


def test_a_tool_that_is_back_does_not_end_the_interception_the_next_call_does():
    infercept, story = rule(), one_runs()
    stalls(story, "a/1")
    infercept.plan(story.view())
    story.tool_returns("a/1")
    story.passes(0.01)
    assert infercept.plan(story.view()).offload == (Move("a/main", 2, keep=False),)


def test_the_host_copy_is_given_up_when_the_call_has_started():
    infercept, story = rule(), one_runs()
    stalls(story, "a/1")
    story.passes(0.01)
    infercept.plan(story.view())
    story.happens(e.OffloadFinished(story.now_s, "a/main", 2, 2))
    story.arrives("a/2", agent="a/main")
    assert infercept.plan(story.view()).forget == ()
    story.happens(e.LoadStarted(story.now_s, "a/2", 2, 0))
    story.starts("a/2")
    assert infercept.plan(story.view()).forget == ("a/main",)
    assert infercept.plan(story.view()).forget == ()


def test_calls_that_hold_memory_are_first_then_the_agents_in_the_order_of_their_arrival():
    infercept, story = rule(), one_runs(host_blocks=0)
    stalls(story, "a/1")
    story.passes(1.0)  # a is discarded
    infercept.plan(story.view())
    story.arrives("b/1", agent="b/main")
    story.passes(1.0)
    stalls(story, "c/1")  # c is preserved
    infercept.plan(story.view())
    story.arrives("a/2", agent="a/main")
    story.arrives("c/2", agent="c/main")
    story.arrives("d/1", agent="d/main")
    assert infercept.plan(story.view()).admit == ("c/2", "a/2", "b/1", "d/1")
    story.happens(e.LoadStarted(story.now_s, "b/1", 2, 0))
    assert infercept.plan(story.view()).admit == ("b/1", "c/2", "a/2", "d/1")


def test_what_no_later_call_extends_is_left_alone():
    story = one_runs()
    stalls(story, "a/1", hints=Hints())
    plan = rule().plan(story.view())
    assert not plan.moves


def test_who_is_gone_is_not_kept():
    infercept, story = rule(), one_runs()
    stalls(story, "a/1")
    stalls(story, "b/1")
    infercept.plan(story.view())
    story.happens(e.AppFinished(story.now_s, "a"))
    story.arrives("b/2", agent="b/main")
    story.happens(e.CallAborted(story.now_s, "b/2"))
    story.passes(1.0)
    plan = infercept.plan(story.view())
    assert not plan.moves
    assert plan.admit == ()


def test_a_steps_fixed_time_is_the_shortest_mean_that_was_seen():
    steps, story = StepTime(), Story()
    story.passes(0.1, steps=20)
    steps.look(story.view())
    assert steps.least_s is None  # too few
    story.passes(0.22, steps=12)
    steps.look(story.view())
    assert steps.least_s == pytest.approx(0.32 / 32)
    story.passes(10.0, steps=40)  # idle, or prompts
    steps.look(story.view())
    assert steps.least_s == pytest.approx(0.01)


def test_the_cost_of_a_token_is_the_machines():
    story = one_runs(host_blocks=0)  # which prefills a token in 1 ms
    stalls(story, "a/1")
    assert rule(token_ms=None).plan(story.view()).wake_at_s == pytest.approx(WASTE_OF_32 / 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "least"}, "rule"),
        ({"gap": "guessed"}, "gap"),
        ({"saturation_tokens": 0}, "saturation_tokens"),
        ({"token_ms": -1.0}, "token_ms"),
        ({"step_ms": float("nan")}, "step_ms"),
    ],
)
def test_an_option_out_of_its_range_is_an_error_in_one_line(options, said):
    with pytest.raises(PolicyError, match=rf"^infercept: option {said}: expected .*, got \S+$"):
        InferCept(**options)


def test_what_is_swapped_is_loaded():
    facts = facts_of(InferCept, crowded()[0])
    assert count(facts, e.OffloadFinished) > 0
    assert count(facts, e.LoadFinished) > 0
