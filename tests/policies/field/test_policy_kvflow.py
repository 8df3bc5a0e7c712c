"""KVFlow by hand: steps to execution, what goes first, what is saved and what is brought back."""

from math import inf
from typing import Any

import pytest
from crowded_runs import count, crowded, facts_of
from fickle_clients import FickleClients
from views import Story

from tokencake.policies.field.kvflow import KvFlow
from tokencake.policies.interface import AgentView, Move, Plan, Status, View
from tokencake.policies.parts.returns import Returns
from tokencake.traces import events as e
from tokencake.traces.apps import Hints
from tokencake.traces.errors import PolicyError
from tokencake.traces.events import Request, ToolHint

TOOL = (ToolHint("search", 2.0),)
TEN_BLOCKS: dict[str, Any] = {"prompt_tokens": 145, "max_output_tokens": 16}  # a context of 161 tokens: ten full blocks


def hints(remaining: int, group: str | None = None, reusable: bool = True) -> Hints:
    return Hints(remaining_depth=remaining, join_group=group, reusable=reusable)


def steps(rule: KvFlow, story: Story) -> dict[str, float]:
    rule.plan(story.view())
    return {name: rule.steps_to_execution(name) for name in story.view().agents}


def a_join() -> Story:
    """Application a: `lead` (6 calls to the end, itself counted) started `fast` and `slow`, which `lead` joins.

    `fast` made its last call, with 3 calls to the end; `slow` runs one with 5: 5, 4, 3 and then the join with 2.
    Application b's only agent waits for its tool. c's calls are over.
    """
    story = Story(gpu_blocks=100, free_blocks=60)
    story.runs("c/1", agent="c/main", hints=hints(1, reusable=False), **TEN_BLOCKS)
    story.runs("a/1", agent="a/lead", hints=hints(6), **TEN_BLOCKS)
    story.passes(1.0)
    story.runs("a/2", agent="a/fast", hints=hints(3, "join"), **TEN_BLOCKS)
    story.arrives("a/3", agent="a/slow", hints=hints(5, "join"), **TEN_BLOCKS)
    story.starts("a/3")
    story.runs("b/1", agent="b/main", tools=TOOL, **TEN_BLOCKS)
    story.tool_starts("b/1")
    return story


def test_steps_follow_the_hints():
    story = a_join()
    rule = KvFlow()
    rule.plan(story.view())
    assert steps(rule, story) == {
        "c/main": inf,  # nobody goes on with its context
        "a/lead": 5,  # at the latest with the last call of the application: 5, 4, 3, 2, 1
        "a/fast": 3,  # two more calls of `slow`, then the join: 5 - (3 - 1)
        "a/slow": 0,  # it runs
        "b/main": 1,  # its tool runs
    }


def test_an_idle_agent_of_an_application_where_nothing_else_happens_is_next():
    story = Story()
    story.runs("a/1", agent="a/main", hints=hints(4))
    rule = KvFlow()
    rule.plan(story.view())
    assert steps(rule, story) == {"a/main": 1}


def test_an_agent_that_went_on_with_what_it_called_not_reusable_teaches_about_its_type():
    story = Story()
    rule = KvFlow()
    for call in ("a/1", "a/2", "b/1"):
        story.runs(call, agent=f"{call[0]}/main", agent_type="architect", hints=hints(3, reusable=False))
    rule.plan(story.view())
    assert steps(rule, story) == {"a/main": 1, "b/main": 1}


def test_endings_believes_what_a_call_says_before_what_its_type_did():
    story = Story()
    story.arrives("a/tool", agent_type="coder", tools=TOOL)
    story.arrives("a/last", agent_type="coder")
    last, tool = (story.view().waiting[name].request for name in ("a/last", "a/tool"))
    endings = Returns()
    endings.learn(tool)  # that one comes back after a tool says nothing about calls without
    assert endings.calls_again(tool)
    assert not endings.calls_again(last)
    endings.learn(last)
    assert endings.calls_again(last)


def test_the_furthest_go_first_and_only_as_many_as_may_be_needed():
    story = a_join()
    story.growth_blocks = 15
    assert KvFlow().plan(story.view()).evict == ("c/main", "a/lead")  # 20 blocks for the 15 that may be needed
    story = a_join()
    story.growth_blocks = 50
    assert KvFlow().plan(story.view()).evict == ("c/main", "a/lead", "a/fast", "b/main")


def test_nothing_is_evicted_while_nobody_needs_room():
    assert KvFlow().plan(a_join().view()).evict == ()


def test_what_ended_is_written_through_if_its_agent_calls_again():
    plan = KvFlow().plan(a_join().view())
    assert plan.offload == (Move("a/lead", 10), Move("a/fast", 10), Move("b/main", 10))  # not c/main


def saved(story: Story, agent: str, blocks: int = 10) -> None:
    """The host has the agent's context now."""
    story.happens(e.OffloadStarted(story.now_s, agent, blocks, blocks))
    story.happens(e.OffloadFinished(story.now_s, agent, blocks, blocks))


def test_a_full_host_gives_up_the_furthest_copies():
    story = a_join()
    rule = KvFlow()
    for agent in ("a/lead", "a/fast", "b/main"):
        saved(story, agent)
    rule.plan(story.view())
    story.host_free_blocks = 4
    story.runs("d/1", agent="d/main", tools=TOOL, **TEN_BLOCKS)
    story.tool_starts("d/1")
    plan = rule.plan(story.view())
    assert plan.forget == ("a/lead",)  # 5 steps; its 10 blocks are more than the 6 that are missing
    assert plan.offload == (Move("d/main", 10),)


def test_copies_of_the_next_agents_come_back_into_room_that_nobody_needs():
    story = a_join()
    for agent in ("a/lead", "a/fast", "b/main"):
        saved(story, agent)
    assert KvFlow().plan(story.view()).upload == (Move("b/main", 10),)  # 1 step
    assert KvFlow(prefetch_steps=0).plan(story.view()).upload == ()


def test_agents_within_more_steps_come_back_the_nearest_first():
    story = a_join()
    for agent in ("a/lead", "a/fast", "b/main"):
        saved(story, agent)
    assert KvFlow(prefetch_steps=3).plan(story.view()).upload == (Move("b/main", 10), Move("a/fast", 10))


def test_a_prefetch_gives_way_to_a_call_that_would_fit_without_it():
    story = a_join()
    rule = KvFlow()
    saved(story, "b/main")
    assert rule.plan(story.view()).upload == (Move("b/main", 10),)
    story.happens(e.UploadStarted(story.now_s, "b/main", 10))
    story.free_blocks = 20
    story.arrives("d/1", prompt_tokens=400)  # 25 blocks: 5 are missing, the prefetch holds 10
    plan = rule.plan(story.view())
    assert (plan.cancel, plan.upload) == (("b/main",), ())


def test_a_prefetch_stays_where_giving_it_up_would_not_help():
    story = a_join()
    rule = KvFlow()
    saved(story, "b/main")
    rule.plan(story.view())
    story.happens(e.UploadStarted(story.now_s, "b/main", 10))
    story.free_blocks = 20
    story.arrives("d/1", prompt_tokens=640)  # 40 blocks: 20 are missing
    assert rule.plan(story.view()).cancel == ()


def test_a_refused_prefetch_is_asked_for_again_when_an_eighth_of_the_blocks_was_handed_out():
    story = a_join()
    rule = KvFlow()
    saved(story, "b/main")
    rule.plan(story.view())
    story.happens(e.UploadRefused(story.now_s, "b/main"))
    assert rule.plan(story.view()).upload == ()
    story.arrives("d/1", prompt_tokens=176, max_output_tokens=16)  # 12 blocks: not yet an eighth of 100
    story.starts("d/1")
    assert rule.plan(story.view()).upload == ()
    story.arrives("e/1", prompt_tokens=16, max_output_tokens=16)
    story.starts("e/1")
    assert rule.plan(story.view()).upload == (Move("b/main", 10),)


def test_an_application_that_ends_early_is_forgotten():
    story = a_join()
    rule = KvFlow()
    saved(story, "b/main")
    rule.plan(story.view())
    story.happens(e.UploadStarted(story.now_s, "b/main", 10))
    story.happens(e.AppFinished(story.now_s, "b"))
    story.happens(e.CallAborted(story.now_s, "a/3"))
    story.happens(e.AppFinished(story.now_s, "a"))
    rule.plan(story.view())
    assert steps(rule, story) == {"c/main": inf}


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(PolicyError, match=r"^kvflow: option prefetch_steps: expected at least 0, got -1$"):
        KvFlow(prefetch_steps=-1)


def test_what_is_saved_is_loaded():
    facts = facts_of(KvFlow, crowded()[0])
    assert count(facts, e.LoadFinished) > 0


# -- what is known of the steps is what a look at all agents would say


def plain_steps(agent: AgentView, live: list[Request], calls_again: bool) -> float:
    """By all latest calls of its application whose agents are not idle."""
    if agent.status in (Status.WAITING, Status.RUNNING):
        return 0
    if not calls_again:
        return inf
    if agent.status is Status.STALLED:
        return 1
    own = agent.last.hints
    branches = [request.hints for request in live if own.join_group and request.hints.join_group == own.join_group]
    if branches:
        return max(1, max(branch.remaining_depth for branch in branches) - (own.remaining_depth - 1))
    return max([1, *(request.hints.remaining_depth for request in live)])


class LooksAtAll:
    """KVFlow, and beside it the steps of every agent found anew at each plan."""

    def __init__(self) -> None:
        self.rule = KvFlow()
        self.listens_to = self.rule.listens_to

    def plan(self, view: View) -> Plan:
        plan = self.rule.plan(view)
        live: dict[str, list[Request]] = {}
        for agent in view.agents.values():
            if agent.status is not Status.IDLE:
                live.setdefault(agent.app, []).append(agent.last)
        again = self.rule._returns.calls_again
        found = {
            name: plain_steps(agent, live.get(agent.app, []), again(agent.last)) for name, agent in view.agents.items()
        }
        assert {name: self.rule.steps_to_execution(name) for name in view.agents} == found
        away = [view.agents[name] for name, steps in found.items() if steps]
        away.sort(key=lambda agent: (-found[agent.id], agent.since_s, agent.number))
        assert [*self.rule._furthest] == [agent.id for agent in away]
        return plan


@pytest.mark.parametrize("seed", range(10))
def test_steps_are_kept_up_to_date_whatever_clients_do(seed: int):
    FickleClients(seed, LooksAtAll()).happen(300)
