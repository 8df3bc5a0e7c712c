"""The oracle by hand: true gaps, Belady's order on both sides, uploads just in time. A block copies in a ms."""

from math import inf

import pytest
from crowded_runs import crowded, facts_of
from views import Story

from tokencake.policies.field.oracle import Future, Oracle
from tokencake.policies.interface import Move, Plan
from tokencake.policies.registry import is_bound, load_policy
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool
from tokencake.traces.errors import PolicyError
from tokencake.traces.events import request_of


def call(
    name: str,
    agent: str,
    after: tuple[str, ...] = (),
    tool_s: float | None = None,
    pause_s: float = 0.0,
    output: int = 1,
) -> Call:
    """A call of application a with a prompt of ten blocks, all but a token."""
    tools = () if tool_s is None else (Tool("tool", tool_s),)
    prompt = Prompt((Segment(f"a/{name}.prompt", 0, 160 - output),), tokens=160 - output)
    awaited = tuple(f"a/{one}" for one in after)
    return Call(f"a/{name}", "a", f"a/{agent}", "worker", prompt, output, output, awaited, pause_s, tools)


def a_lead_and_its_helper() -> Application:
    """`lead` waits for two calls of `helper`: 50 tokens in a second, a tool of 3 s, 100 tokens in 2 s. So 6 s.

    `other` ran beside them from the start, for 500 tokens: 10 s. The last call waits for it and for a person.
    """
    calls = (
        call("other", "other", output=150),
        call("ask", "lead"),
        call("look", "helper", after=("ask",), tool_s=3.0, output=50),
        call("tell", "helper", after=("look",), output=100),
        call("think", "lead", after=("ask", "tell"), tool_s=7.0),
        call("answer", "lead", after=("think", "other"), pause_s=5.0),
    )
    return Application("a", 0.0, calls)


def runs(story: Story, app: Application, name: str) -> None:
    """The call with this name arrives, starts and ends now."""
    made = next(one for one in app.calls if one.id == f"a/{name}")
    request = request_of(made)
    story.runs(
        request.id,
        agent=request.agent,
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        tools=request.tools,
    )


def uses(app: Application, story: Story) -> dict[str, float]:
    future, view = Future([app]), story.view()
    return future.next_uses_s(view.agents.values(), view)


def test_the_gap_is_the_true_time_of_the_tools_and_the_pause_after_them():
    app = a_lead_and_its_helper()
    future = Future([app])
    gaps = {one.id: future.estimate_s(request_of(one)) for one in app.calls}
    assert gaps == {"a/other": 0, "a/ask": 0, "a/look": 3, "a/tell": 0, "a/think": 7 + 5, "a/answer": 0}


def test_what_is_seen_changes_nothing():
    app = a_lead_and_its_helper()
    future = Future([app])
    look = request_of(app.calls[2])
    future.learn(look, 100.0)
    assert future.estimate_s(look) == 3


def test_an_agent_that_waits_for_another_is_used_when_that_could_be_done():
    app, story = a_lead_and_its_helper(), Story()
    runs(story, app, "other")
    story.passes(2.0)
    runs(story, app, "ask")
    assert uses(app, story) == {"a/other": inf, "a/lead": pytest.approx(2 + 1 + 3 + 2)}
    story.passes(1.0)
    runs(story, app, "look")
    story.tool_starts("a/look")
    assert uses(app, story) == {"a/other": inf, "a/lead": pytest.approx(8), "a/helper": 3 + 3}


def test_what_waits_for_a_late_one_could_be_used_now():
    app, story = a_lead_and_its_helper(), Story()
    runs(story, app, "ask")
    story.passes(60.0)
    assert uses(app, story) == {"a/lead": 60}


def test_an_agent_that_runs_or_waits_for_room_is_in_use():
    app, story = a_lead_and_its_helper(), Story()
    runs(story, app, "ask")
    story.passes(4.0)
    story.arrives("a/look", agent="a/helper")
    assert uses(app, story)["a/helper"] == 4
    story.starts("a/look")
    story.passes(1.0)
    assert uses(app, story)["a/helper"] == 5


def test_what_runs_beside_it_counts_from_the_start_of_the_application():
    """`think` ends at 1 s and its tool at 8 s; but `other` needs 3 s from 0 s on, or 30 s; then a person 5 s."""
    app, story = a_lead_and_its_helper(), Story()
    story.arrives("a/other", agent="a/other")
    story.passes(1.0)
    for name in ("ask", "think"):
        runs(story, app, name)
    story.tool_starts("a/think")
    assert uses(app, story)["a/lead"] == 1 + 7 + 5
    slow = Application("a", 0.0, (call("other", "other", output=150, tool_s=27.0), *app.calls[1:]))
    assert uses(slow, story)["a/lead"] == pytest.approx(3 + 27 + 5)


def test_a_pause_goes_by_after_the_tool_has_returned():
    app, story = a_lead_and_its_helper(), Story()
    for name in ("other", "ask", "think"):
        runs(story, app, name)
    story.tool_starts("a/think")
    story.passes(7.0)
    story.tool_returns("a/think")
    story.passes(2.0)
    assert uses(app, story)["a/lead"] == 7 + 5


def test_a_long_chain_and_many_joins_are_no_trouble():
    """Nothing here goes down the DAG call by call, or path by path: 5 ** 9 paths, and 2,000 calls in a row."""
    chain = [call("first", "lead"), call("0", "helper", after=("first",))]
    chain += [call(f"{n}", "helper", after=(f"{n - 1}",)) for n in range(1, 2000)]
    joins = [call(f"{n}-{k}", f"{n}-{k}", after=_layer(n - 1)) for n in range(9) for k in range(5)]
    last = call("last", "lead", after=("1999", *_layer(8)))
    app, story = Application("a", 0.0, (*chain, *joins, last)), Story()
    runs(story, app, "first")
    assert uses(app, story) == {"a/lead": pytest.approx(2000 * 0.02)}


def _layer(n: int) -> tuple[str, ...]:
    return tuple(f"{n}-{k}" for k in range(5)) if n >= 0 else ("first",)


# -- plans


def three_agents(*tools_s: float) -> tuple[Application, Story]:
    """Three agents with ten blocks each, whose tools take so long and then call again; `done` calls no more."""
    calls = [call("done", "done")]
    for n, tool_s in enumerate(tools_s):
        calls += [call(f"{n}", f"{n}", tool_s=tool_s), call(f"{n}-again", f"{n}", after=(f"{n}",))]
    app, story = Application("a", 0.0, tuple(calls)), Story(free_blocks=100)
    for n in range(len(tools_s)):
        runs(story, app, f"{n}")
        story.tool_starts(f"a/{n}")
    return app, story


def test_the_context_that_is_used_furthest_in_the_future_goes_first():
    app, story = three_agents(5.0, 20.0, 1.0)
    runs(story, app, "done")
    policy = Oracle([app])
    assert policy.plan(story.view()).evict == ("a/done", "a/1", "a/0", "a/2")


def test_whoever_runs_is_not_evicted_and_equal_ones_go_by_name():
    app, story = three_agents(5.0, 5.0, 1.0)
    story.arrives("a/2-again", agent="a/2")
    story.starts("a/2-again")
    assert Oracle([app]).plan(story.view()).evict == ("a/0", "a/1")


def saved(story: Story, agent: str) -> None:
    story.happens(e.OffloadFinished(story.now_s, agent, 9, 9))
    story.host_free_blocks -= 9


def test_a_full_host_gives_up_who_comes_back_after_the_one_that_is_saved():
    """Contexts have nine full blocks (159 tokens). 0 returns at 5 s, 1 at 20 s; who just ended, 2, at 7 s."""
    app, story = three_agents(5.0, 20.0)
    saved(story, "a/0")
    saved(story, "a/1")
    plan = _ends_a_call(story, app, tool_s=7.0)
    assert plan.offload == (Move("b/main", 9),)
    assert plan.forget == ("a/1",)  # its 9 blocks and the 4 that are free are enough


def test_nobody_is_given_up_for_a_context_that_is_used_later():
    app, story = three_agents(5.0, 20.0)
    saved(story, "a/0")
    saved(story, "a/1")
    plan = _ends_a_call(story, app, tool_s=30.0)
    assert plan.forget == ()
    assert plan.offload == (Move("b/main", 9),)  # as much of it as fits: the engine takes four blocks


def _ends_a_call(story: Story, app: Application, tool_s: float) -> Plan:
    """What is planned when an agent of another application has called, while the host has four blocks left."""
    story.host_free_blocks = 4
    prompt = Prompt((Segment("b/prompt", 0, 159),), tokens=159)
    first = Call("b/1", "b", "b/main", "worker", prompt, 1, 1, tools=(Tool("tool", tool_s),))
    second = Call("b/2", "b", "b/main", "worker", prompt, 1, 1, after=("b/1",))
    policy = Oracle([app, Application("b", 0.0, (first, second))])
    policy.plan(story.view())
    story.runs("b/1", agent="b/main", prompt_tokens=159, max_output_tokens=1, tools=request_of(first).tools)
    story.tool_starts("b/1")
    return policy.plan(story.view())


def test_an_upload_begins_when_it_is_complete_just_in_time():
    """The tool takes 5 s, whatever anybody believes; nine blocks come in 9 ms: at 4.991 s."""
    app, story = three_agents(5.0)
    policy = Oracle([app])
    policy.plan(story.view())
    saved(story, "a/0")
    plan = policy.plan(story.view())
    assert plan.upload == ()
    assert plan.wake_at_s == pytest.approx(5 - 0.009)
    story.passes(4.992)
    assert policy.plan(story.view()).upload == (Move("a/0", 9),)


def test_the_order_of_calls_is_tokencakes_or_vllms():
    app, story = three_agents(5.0)
    story.arrives("b/large", prompt_tokens=320)
    story.arrives("b/small", prompt_tokens=16)
    assert Oracle([app]).plan(story.view()).admit == ("b/small", "b/large")
    assert Oracle([app], space=False).plan(story.view()).admit is None


def test_it_cannot_be_run_where_there_is_no_trace():
    assert is_bound("oracle")
    assert is_bound("oracle:space=off")
    assert not is_bound("tokencake")
    said = "policy oracle: sees the future: expected a simulation of a trace, there is none here"
    with pytest.raises(PolicyError, match=f"^{said}$"):
        load_policy("oracle")


def test_what_it_uploads_is_there_when_it_is_needed_and_not_much_earlier():
    apps = crowded()[1]
    taken = [fact for fact in facts_of(lambda: Oracle(apps), apps) if isinstance(fact, e.UploadTaken)]
    assert taken
    assert all(fact.late_s == 0.0 and fact.held_s < 0.1 for fact in taken)
