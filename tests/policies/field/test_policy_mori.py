"""MORI by hand: who was idle for the larger share of its life goes to the host. Contexts have ten blocks."""

from crowded_runs import count, crowded, facts_of
from views import Story

from tokencake.policies.field.mori import Mori
from tokencake.policies.interface import Move, Plan
from tokencake.traces import events as e
from tokencake.traces.events import ToolHint

TOOL = (ToolHint("search", 2.0),)


def calls(story: Story, call: str, seconds: float, tokens: int = 145) -> None:
    """A call runs for so long; then its tool starts. Its context: the prompt, 16 generated tokens."""
    story.arrives(call, prompt_tokens=tokens, max_output_tokens=16, agent=f"{call[0]}/main", tools=TOOL)
    story.starts(call)
    story.passes(seconds)
    story.finishes(call)
    story.tool_starts(call)


def three_agents(free_blocks: int = 100) -> Story:
    """At 10 s: c has waited for 1 of 2 s, b for 3 of 8 (it called twice), a for 1 + 1 of 10."""
    story = Story(gpu_blocks=100, free_blocks=free_blocks)
    calls(story, "a/1", 2.0)  # 0 to 2 s
    calls(story, "b/1", 1.0)  # 2 to 3 s
    calls(story, "a/2", 3.0)  # 3 to 6 s
    calls(story, "b/2", 2.0)  # 6 to 8 s, after 3 s of waiting
    calls(story, "c/1", 1.0)  # 8 to 9 s
    story.passes(1.0)
    return story


def test_agents_are_sorted_by_the_share_of_their_lives_in_which_they_waited():
    story = three_agents()
    rule = Mori()
    rule.plan(story.view())
    # at 10 s: a waited 1 + 4 of 10 s (0.5), b 3 + 2 of 8 s (0.625), c 1 of 2 s (0.5); c waits for less time than a
    assert list(rule.by_idleness(story.view().now_s)) == ["c/main", "a/main", "b/main"]
    story.passes(90.0)
    # at 100 s: a 95 of 100 s (0.95), b 95 of 98 (0.969), c 91 of 92 (0.989)
    assert list(rule.by_idleness(story.view().now_s)) == ["a/main", "b/main", "c/main"]


def test_what_fits_stays_on_the_gpu():
    story = three_agents()
    plan = Mori().plan(story.view())
    assert tuple(plan.pin) == ("c/main", "a/main", "b/main")
    assert not plan.offload


def test_the_most_idle_behind_the_boundary_go_to_the_host():
    story = three_agents(free_blocks=25)
    plan = Mori().plan(story.view())
    assert tuple(plan.pin) == ("c/main", "a/main")
    assert plan.offload == (Move("b/main", 10, keep=False),)


def test_the_boundary_leaves_what_running_calls_may_grow_by():
    story = three_agents(free_blocks=25)
    story.growth_blocks = 6
    assert tuple(Mori().plan(story.view()).pin) == ("c/main",)


def test_the_boundary_moves_as_far_as_the_first_call_that_waits_needs():
    story = three_agents(free_blocks=40)
    rule = Mori()
    assert len(rule.plan(story.view()).pin) == 3
    story.free_blocks = 10  # 30 are held now
    story.arrives("d/1", prompt_tokens=320)  # 20 blocks
    story.arrives("e/1", prompt_tokens=320)  # it comes later
    plan = rule.plan(story.view())
    # 10 free and 30 held, less 20: there is room for two contexts
    assert tuple(plan.pin) == ("c/main", "a/main")
    assert plan.offload == (Move("b/main", 10, keep=False),)
    story.happens(e.OffloadStarted(story.now_s, "b/main", 10, 10))  # it holds its blocks until it is done
    assert (rule.plan(story.view()).pin, rule.plan(story.view()).offload) == (plan.pin, ())


def test_no_more_idle_context_is_kept_in_what_is_left_before_the_boundary():
    story = Story(free_blocks=15)
    calls(story, "a/1", 9.0, tokens=305)  # 20 blocks
    story.passes(1.0)  # a waited 1 of 10 s
    calls(story, "b/1", 1.0)  # 10 blocks
    story.passes(9.0)
    calls(story, "b/2", 1.0)
    story.passes(9.0)  # a waited 21 of 30 s, b 18 of 20
    plan = Mori().plan(story.view())
    assert not plan.pin
    assert plan.offload == (Move("a/main", 20, keep=False), Move("b/main", 10, keep=False))


def sent_away() -> tuple[Mori, Story]:
    """b's context is on the host, its blocks are free."""
    rule, story = Mori(), three_agents(free_blocks=25)
    rule.plan(story.view())
    story.happens(e.OffloadStarted(story.now_s, "b/main", 10, 10))
    story.happens(e.OffloadFinished(story.now_s, "b/main", 10, 10))
    story.free_blocks = 5
    assert rule.plan(story.view()).upload == ()  # 5 free blocks are too few
    return rule, story


def test_a_context_comes_back_when_there_is_room_and_goes_when_there_is_none():
    rule, story = sent_away()
    story.free_blocks = 12
    assert rule.plan(story.view()).upload == (Move("b/main", 10),)
    story.happens(e.UploadStarted(story.now_s, "b/main", 10))
    story.free_blocks = 2
    plan = rule.plan(story.view())
    assert (plan.upload, plan.cancel) == ((), ())
    story.arrives("d/1", prompt_tokens=160)  # 10 blocks: 8 are missing
    plan = rule.plan(story.view())
    assert plan.cancel == ("b/main",)
    assert tuple(plan.pin) == ("c/main", "a/main")


def test_after_its_next_call_an_agent_is_placed_anew():
    rule, story = sent_away()
    story.free_blocks = 80
    calls(story, "b/3", 5.0)
    assert "b/main" in rule.plan(story.view()).pin


def test_a_full_host_gives_up_copies_of_what_is_on_the_gpu():
    rule, story = sent_away()
    story.free_blocks = 20
    calls(story, "b/3", 20.0)  # now b waited 5 of 28 s: it is the busiest
    story.passes(1.0)
    story.free_blocks = 0
    story.host_free_blocks = 4
    story.arrives("d/1", prompt_tokens=160)
    plan = rule.plan(story.view())
    # 20 blocks are held; d needs 10: b stays, a and then c go, and take the room of b's copy
    assert tuple(plan.pin) == ("b/main",)
    assert {move.agent for move in plan.offload} == {"a/main", "c/main"}
    assert plan.forget == ("b/main",)


def test_agents_that_do_not_come_back_have_no_place():
    story = Story()
    story.runs("a/1", agent="a/main")
    rule = Mori()
    assert rule.plan(story.view()) == Plan()
    story.happens(e.AppFinished(story.now_s, "a"))
    assert rule.plan(story.view()) == Plan()


def test_an_application_that_ends_early_is_forgotten():
    rule, story = sent_away()
    story.arrives("b/3", agent="b/main")
    story.happens(e.CallAborted(story.now_s, "b/3"))
    story.happens(e.AppFinished(story.now_s, "b"))
    assert tuple(rule.plan(story.view()).pin) == ("c/main", "a/main")


def test_what_is_sent_to_the_host_is_loaded():
    facts = facts_of(Mori, crowded()[0])
    assert count(facts, e.OffloadFinished) > 0
    assert count(facts, e.LoadFinished) > 0
