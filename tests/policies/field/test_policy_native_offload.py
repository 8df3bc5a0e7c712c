"""vLLM's own offloading: what is written through, and who leaves a full host: the least recently used, or ARC's choice.

The paper of ARC counts pages; here contexts are weighed by their blocks.
"""

from dataclasses import replace
from functools import partial

import pytest
from adversary import hard_workload
from crowded_runs import count, crowded, facts_of
from hypothesis import given
from hypothesis import strategies as st
from runs import play
from views import Story

from tokencake.policies.field.native_offload import Arc, NativeOffload
from tokencake.policies.interface import Move, Plan
from tokencake.traces import events as e

HOST_BLOCKS = 30
PROMPTS = Plan(write_through="prompts")


# -- write-through


def ends(story: Story, call: str, blocks: int = 10) -> None:
    """A call ends and leaves so many full blocks."""
    story.runs(call, agent=call.split("/")[0] + "/main", prompt_tokens=16 * blocks, max_output_tokens=16)


def saves(story: Story, agent: str, blocks: int = 10, upto_blocks: int | None = None) -> None:
    """The host has a copy of so many blocks now."""
    story.happens(e.OffloadStarted(story.now_s, agent, blocks, blocks))
    story.happens(e.OffloadFinished(story.now_s, agent, blocks, blocks if upto_blocks is None else upto_blocks))
    story.host_free_blocks -= blocks


@pytest.mark.parametrize("save", ["prompts", "contexts"])
def test_with_lru_the_engine_does_it_all_and_asks_once(save):
    """Write-through lasts until the next plan, and there is none."""
    policy = NativeOffload(save=save)
    assert policy.plan(Story().view()) == Plan(write_through=save)
    assert policy.listens_to == frozenset()


def test_with_arc_every_context_is_held_when_its_call_ends_with_or_without_a_tool():
    story, policy = Story(), NativeOffload("arc")
    ends(story, "a/1")
    ends(story, "b/1", blocks=3)
    story.tool_starts("b/1")
    assert policy.plan(story.view()).offload == (Move("a/main", 10), Move("b/main", 3))
    assert policy.plan(story.view()) == PROMPTS


def test_without_answers_arc_holds_the_prompts():
    story, policy = Story(), NativeOffload("arc", save="prompts")
    story.runs("a/1", agent="a/main", prompt_tokens=159, max_output_tokens=40)
    story.runs("b/1", agent="b/main", prompt_tokens=15, max_output_tokens=40)
    assert policy.plan(story.view()).offload == (Move("a/main", 9),)


def test_a_context_of_less_than_a_block_and_one_that_is_gone_are_not():
    story, policy = Story(), NativeOffload("arc")
    story.runs("a/1", prompt_tokens=8, max_output_tokens=8)  # 15 tokens have KV
    ends(story, "b/1")
    story.happens(e.AppFinished(0.0, "b"))
    assert policy.plan(story.view()) == PROMPTS


def test_two_calls_of_an_agent_between_two_plans_are_one_context():
    story, policy = Story(), NativeOffload("arc")
    ends(story, "a/1")
    ends(story, "a/2", blocks=20)
    assert policy.plan(story.view()).offload == (Move("a/main", 20),)


def test_a_call_that_is_given_up_leaves_nothing():
    story, policy = Story(), NativeOffload("arc")
    story.arrives("a/1", agent="a/main")
    story.arrives("a/2", agent="a/other")
    story.starts("a/2")
    for call in ("a/1", "a/2"):
        story.happens(e.CallAborted(0.0, call))
    assert policy.plan(story.view()) == PROMPTS


# -- ARC, by hand: a host of 30 blocks, contexts of ten


def three_copies() -> Arc:
    arc = Arc()
    for agent in ("a/x", "b/x", "c/x"):
        arc.saved(agent[0], agent, 10, HOST_BLOCKS)
    return arc


def gives_up(arc: Arc, blocks: int, *keep: str) -> tuple[str, ...]:
    return arc.room_for(blocks, set(keep))


def test_what_came_once_goes_first_the_oldest_first():
    arc = three_copies()
    arc.hit("a/x")  # it is frequent now; b and c are recent
    assert gives_up(arc, 10) == ("b/x",)
    assert gives_up(arc, 10) == ("c/x",)
    assert gives_up(arc, 10) == ("a/x",)
    assert gives_up(arc, 10) == ()


def test_as_many_go_as_are_needed_and_no_more():
    assert gives_up(three_copies(), 0) == ()
    assert gives_up(three_copies(), 11) == ("a/x", "b/x")
    assert gives_up(three_copies(), 10, "a/x") == ("b/x",)


def test_a_recent_one_that_is_missed_raises_the_target_of_recent_ones():
    arc = three_copies()
    arc.hit("a/x")
    gives_up(arc, 10)  # b, recent
    arc.saved("b", "b/x", 10, HOST_BLOCKS)  # missed: 0 + 10 * max(1, 0 / 10)
    assert arc.recent_target_blocks == 10
    # recent: c, 10 blocks, which is not more than the target; frequent: a, then b
    assert gives_up(arc, 10) == ("a/x",)
    arc.saved("d", "d/x", 10, HOST_BLOCKS)
    # recent: c and d, 20 blocks
    assert gives_up(arc, 10) == ("c/x",)


def test_a_frequent_one_that_is_missed_lowers_it():
    arc = three_copies()
    arc.hit("a/x")
    gives_up(arc, 10)
    arc.saved("b", "b/x", 10, HOST_BLOCKS)
    gives_up(arc, 10)  # a, frequent
    assert arc.recent_target_blocks == 10
    arc.saved("a", "a/x", 10, HOST_BLOCKS)  # missed: 10 - 10 * max(1, 0 / 10)
    assert arc.recent_target_blocks == 0
    assert gives_up(arc, 10) == ("c/x",)  # recent ones, as many as there are, go first again


def test_the_step_is_larger_for_the_part_of_which_less_was_given_up():
    """Ghosts of 30 frequent blocks and 10 recent ones: a missed recent block counts three times."""
    arc = Arc()
    for agent in ("a/x", "b/x", "c/x"):
        arc.saved(agent[0], agent, 10, 100)
        arc.hit(agent)
    gives_up(arc, 30)
    arc.saved("d", "d/x", 10, 100)
    gives_up(arc, 10)
    arc.saved("d", "d/x", 10, 100)
    assert arc.recent_target_blocks == 30
    arc.saved("a", "a/x", 10, 100)  # 30 - 10 * max(1, 0 / 30)
    assert arc.recent_target_blocks == 20


def test_the_target_is_at_most_the_host():
    arc = Arc()
    for agent in ("a/x", "b/x", "c/x"):
        arc.saved(agent[0], agent, 10, HOST_BLOCKS)
        arc.hit(agent)
    gives_up(arc, 30)
    for _ in range(3):
        arc.saved("d", "d/x", 10, HOST_BLOCKS)
        gives_up(arc, 10)
        arc.saved("d", "d/x", 10, HOST_BLOCKS)
        arc.forget("d")
    assert arc.recent_target_blocks == HOST_BLOCKS


def test_an_application_that_ended_leaves_no_trace():
    arc = three_copies()
    gives_up(arc, 10)
    for app in ("a", "b"):
        arc.forget(app)
    arc.saved("a", "a/x", 10, HOST_BLOCKS)  # another one of that name
    assert arc.recent_target_blocks == 0
    assert gives_up(arc, 20) == ("c/x", "a/x")


@given(st.lists(st.tuples(st.sampled_from("smh"), st.sampled_from("abcde"), st.integers(1, 12))))
def test_the_target_stays_within_the_host_and_nothing_is_given_up_twice(happenings):
    arc, held = Arc(), set[str]()
    for what, name, blocks in happenings:
        agent = f"{name}/x"
        if what == "s":
            arc.saved(agent[0], agent, blocks, HOST_BLOCKS)
            held.add(agent)
        elif what == "h":
            arc.hit(agent)
        else:
            given_up = gives_up(arc, blocks, "a/x")
            assert set(given_up) <= held - {"a/x"}
            held -= set(given_up)
        assert 0 <= arc.recent_target_blocks <= HOST_BLOCKS


# -- ARC in a plan


def test_a_full_host_gives_up_as_much_as_the_new_context_lacks():
    story, policy = Story(host_blocks=HOST_BLOCKS), NativeOffload("arc")
    for app in ("a", "b"):
        ends(story, f"{app}/1")
        policy.plan(story.view())
        saves(story, f"{app}/main")
        assert policy.plan(story.view()) == PROMPTS
    ends(story, "c/1")  # ten blocks are free
    assert policy.plan(story.view()).forget == ()
    saves(story, "c/main")
    ends(story, "a/2", blocks=12)  # it has ten of the twelve; b is older than c, and what is saved stays
    plan = policy.plan(story.view())
    assert (plan.offload, plan.forget) == ((Move("a/main", 12),), ("b/main",))


def test_what_was_loaded_is_frequent():
    story, policy = Story(host_blocks=20), NativeOffload("arc")
    for app in ("a", "b"):
        ends(story, f"{app}/1")
        policy.plan(story.view())
        saves(story, f"{app}/main")
        policy.plan(story.view())
    story.arrives("a/2", agent="a/main")
    story.happens(e.LoadStarted(0.0, "a/2", 10, 0))
    ends(story, "c/1")
    assert policy.plan(story.view()).forget == ("b/main",)


def test_a_copy_that_holds_nothing_is_none():
    """All blocks of a context are on their way for another agent: the copy is made at once, and none of it is there."""
    story, policy = Story(host_blocks=10), NativeOffload("arc")
    ends(story, "a/1")
    policy.plan(story.view())
    saves(story, "a/main", blocks=0, upto_blocks=0)
    policy.plan(story.view())
    story.host_free_blocks = 0
    ends(story, "b/1")
    assert policy.plan(story.view()).forget == ()


# -- in an engine


@pytest.mark.parametrize("evict", ["lru", "arc"])
def test_a_host_that_is_too_small_for_all_still_takes_what_is_new(evict):
    apps = crowded()[0]
    facts = facts_of(partial(NativeOffload, evict), apps, host_gib=2)
    saved = [fact for fact in facts if isinstance(fact, e.StoreFinished | e.OffloadFinished)]
    started = next(fact for fact in facts if isinstance(fact, e.RunStarted))
    assert sum(fact.blocks for fact in saved) > 2 * started.host_blocks
    calls = [fact for fact in facts if isinstance(fact, e.CallFinished)]
    late = {fact[1] for fact in saved if fact.at_s > calls[len(calls) // 2].at_s}
    assert len(late) > 10  # it did not fill up once and for all
    assert count(facts, e.LoadFinished) > 0


def test_in_a_large_host_arc_gives_nothing_up_before_its_application_ends():
    facts = facts_of(partial(NativeOffload, "arc"), crowded()[0])
    ended = {fact.app: fact.at_s for fact in facts if isinstance(fact, e.AppFinished)}
    dropped = [fact for fact in facts if isinstance(fact, e.HostDropped)]
    assert len(dropped) > len(ended)
    assert all(fact.at_s == ended[fact.agent.split("/")[0]] for fact in dropped)


@pytest.mark.parametrize("seed", [48, 52])
def test_contexts_that_share_what_is_being_copied(seed):
    applications, machine = hard_workload(seed)
    size = machine.block_tokens
    largest = max(
        -(-(call.prompt_tokens + call.output_tokens - 1) // size) for app in applications for call in app.calls
    )
    records = play(applications, partial(NativeOffload, "arc"), replace(machine, gpu_blocks=largest))
    assert any(isinstance(record, e.OffloadFinished) and record.upto_blocks == 0 for record in records)
    assert count(records, e.AppFinished) == len(applications)
