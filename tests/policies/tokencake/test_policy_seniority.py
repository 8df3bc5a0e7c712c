"""Seniority by hand: place = size * (1 + rank) ** 1.5, the smallest first.

Blocks have 16 tokens. A call's prompt takes 10 blocks unless told otherwise, and its declared answer one more. The
first call of an agent type is as large as is usual: its size is 1.
"""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import Story

from tokencake.policies.interface import View
from tokencake.policies.parts.admission import Admission, Claim, Rival
from tokencake.policies.tokencake.halves import Needs
from tokencake.policies.tokencake.known_agents import KnownAgents
from tokencake.policies.tokencake.miss_share import MissShare
from tokencake.policies.tokencake.options import Options
from tokencake.policies.tokencake.policy import tokencake
from tokencake.policies.tokencake.seniority import Blocked, Seniority
from tokencake.policies.tokencake.seniority_queue import SeniorityQueue, WaitingCall
from tokencake.traces import events as e
from tokencake.traces.apps import Hints


def order(story: Story, **options: Any) -> tuple[str, ...] | None:
    """Who starts, for a policy that is told the whole story now."""
    return tokencake(time=False, **options).plan(story.view()).admit


class Half:
    """The spatial half alone, which is told what happens in a story."""

    def __init__(self, story: Story) -> None:
        self.story = story
        agents = KnownAgents()
        self.seniority = Seniority(Options(), MissShare(agents), agents)

    def view(self) -> View:
        view = self.story.view()
        for fact in view.news:
            if type(fact) in self.seniority.handlers:
                self.seniority.handlers[type(fact)](fact, view)
        self.seniority.begin(view)
        return view


# -- the place


def test_no_plan_names_more_calls_than_an_engine_runs_at_once():
    story = Story(gpu_blocks=100_000)
    for number in range(1030):
        story.arrives(f"app{number}/1")
    assert order(story) == tuple(f"app{number}/1" for number in range(1024))


@pytest.mark.parametrize(
    ("large_blocks", "admit"),
    [
        (56, ("a/1", "b/1", "a/large", "c/1")),  # 56 / 11 = 5.09: before 3 ** 1.5 = 5.20
        (58, ("a/1", "b/1", "c/1", "a/large")),  # 58 / 11 = 5.27
    ],
)
def test_a_large_call_waits_for_small_ones_of_younger_applications(large_blocks, admit):
    story = Story()
    for app in ("a", "b", "c"):
        story.arrives(f"{app}/1")  # size 1; ranks 0, 1 and 2
    story.arrives("a/large", prompt_tokens=16 * (large_blocks - 1))
    assert order(story) == admit


def test_size_is_relative_to_what_is_usual_for_the_agent_type():
    story = Story(gpu_blocks=1000)
    story.arrives("a/editor", prompt_tokens=1600, agent_type="editor")  # the first of its type: size 1
    story.arrives("a/worker")  # size 1, too: by name
    story.arrives("b/editor", prompt_tokens=784, agent_type="editor")  # 50 of 101 blocks: 0.50 * 2 ** 1.5 = 1.40
    assert order(story) == ("a/editor", "a/worker", "b/editor")


def test_what_is_usual_follows_the_newest_call_by_a_tenth():
    """11 blocks, then 31: 13 are usual. So 26 are a size of 2, and an agent's next call is like its last."""
    story = Story()
    story.arrives("a/1")
    story.arrives("a/2", prompt_tokens=30 * 16)
    story.arrives("b/3", prompt_tokens=25 * 16)
    half = Half(story)
    view = half.view()
    assert half.seniority.agent_score(view.waiting["b/3"].request) == pytest.approx(-2 * 2**1.5)


def test_who_started_first_is_first_of_equals_and_rank_counts_live_applications():
    story = Story()
    policy = tokencake(time=False)
    for app in ("c", "b", "a"):
        story.arrives(f"{app}/1")
    assert policy.plan(story.view()).admit == ("c/1", "b/1", "a/1")
    story.happens(e.CallAborted(0.0, "c/1"))
    story.happens(e.AppFinished(0.0, "c"))
    story.arrives("b/larger", prompt_tokens=29 * 16)  # 30 / 11 = 2.73; with ranks of 1 and 2 it would be 7.7 to 5.2
    assert policy.plan(story.view()).admit == ("b/1", "b/larger", "a/1")


def test_of_equal_places_the_call_that_came_first_goes_first():
    story = Story()
    for name in ("z", "a", "m"):
        story.arrives(f"a/{name}")
    assert order(story) == ("a/z", "a/a", "a/m")


# -- siblings of running calls


def two_applications() -> Story:
    """a/1 waits; b/1 runs, and its sibling b/2 waits."""
    story = Story(free_blocks=50)
    story.arrives("a/1")
    story.arrives("b/1")
    story.starts("b/1")
    story.arrives("b/2")
    return story


def test_a_call_of_which_running_calls_hold_half_goes_first():
    story = two_applications()
    story.cached("b/2", gpu_blocks=7, idle_blocks=1)  # 6 are held, and half of 11 are 5.5
    assert order(story) == ("b/2", "a/1")


@pytest.mark.parametrize("idle_blocks", [2, 8])
def test_less_than_half_or_idle_blocks_do_not_count(idle_blocks):
    story = two_applications()
    story.cached("b/2", gpu_blocks=7, idle_blocks=idle_blocks)
    assert order(story) == ("a/1", "b/2")


def test_without_affinity_the_place_alone_counts():
    story = two_applications()
    story.cached("b/2", gpu_blocks=10)
    assert order(story, prefix_affinity=False) == ("a/1", "b/2")


def test_the_cache_is_asked_once_a_call_and_for_those_only_that_may_start():
    story = two_applications()
    story.free_blocks = 5
    story.arrives("c/1")
    order(story)
    assert story.asked == ["b/2", "a/1"]  # a sibling; and the first that does not fit


# -- contexts that get lost


def lost_one(story: Story) -> None:
    """A call came back and found nothing of its context: a share of 1/32 is lost, more than 2 %."""
    story.runs("lost/1", agent="lost/main", hints=Hints(reusable=True))
    story.arrives("lost/2", agent="lost/main", prompt_tokens=192)
    story.starts("lost/2")


def three_waiting(story: Story) -> None:
    story.arrives("a/plain")
    story.arrives("b/host")
    story.arrives("c/gpu")
    story.cached("b/host", gpu_blocks=2, idle_blocks=2, host_blocks=4)  # 6 of 11
    story.cached("c/gpu", gpu_blocks=6, idle_blocks=6, host_blocks=4)


def test_while_contexts_get_lost_what_is_cached_goes_first():
    story = Story()
    lost_one(story)
    three_waiting(story)
    assert order(story) == ("c/gpu", "b/host", "a/plain")


def test_while_nothing_gets_lost_the_place_alone_counts():
    story = Story()
    three_waiting(story)
    assert order(story) == ("a/plain", "b/host", "c/gpu")
    assert story.asked == ["a/plain", "b/host", "c/gpu"]  # in the order in which they are to start


def test_a_lost_share_that_is_allowed_changes_no_order():
    story = Story()
    lost_one(story)
    three_waiting(story)
    assert order(story, lost_share=0.05) == ("a/plain", "b/host", "c/gpu")


def test_what_running_calls_hold_goes_before_what_is_cached():
    story = Story()
    lost_one(story)
    three_waiting(story)
    story.arrives("lost/3")
    story.cached("lost/3", gpu_blocks=6)
    assert order(story) == ("lost/3", "c/gpu", "b/host", "a/plain")


# -- what fits


def one_runs(free_blocks: int) -> Story:
    story = Story(free_blocks=free_blocks)
    story.arrives("x/1")
    story.starts("x/1")
    return story


@pytest.mark.parametrize(
    ("free_blocks", "admit"),
    [(9, ()), (10, ("a/1",)), (34, ("a/1",)), (35, ("a/1", "b/1")), (36, ("a/1", "b/1", "c/1"))],
)
def test_the_first_that_does_not_fit_waits_and_all_behind_it(free_blocks, admit):
    story = one_runs(free_blocks)
    story.arrives("a/1")  # 10 blocks
    story.arrives("b/1", prompt_tokens=400, agent_type="other")  # 25
    story.arrives("c/1", prompt_tokens=16, agent_type="third")  # 1
    assert order(story) == admit


def test_skip_lets_others_pass():
    story = one_runs(free_blocks=9)
    story.arrives("a/1")
    story.arrives("b/1", prompt_tokens=16, agent_type="other")
    assert order(story, skip=True) == ("b/1",)


@pytest.mark.parametrize(("free_blocks", "admit"), [(5, ()), (6, ("a/1",))])
def test_what_is_cached_needs_no_room_unless_it_is_idle(free_blocks, admit):
    story = one_runs(free_blocks)
    story.arrives("a/1")
    story.cached("a/1", gpu_blocks=8, idle_blocks=4)  # 10 - 8 + 4 = 6
    assert order(story) == admit


@pytest.mark.parametrize(("free_blocks", "admit"), [(15, ()), (16, ("a/1",))])
def test_commitment_asks_for_the_whole_budget_in_what_is_promised_to_nobody(free_blocks, admit):
    story = one_runs(free_blocks)
    story.growth_blocks = 5
    story.arrives("a/1")  # 11 blocks
    assert order(story, commit=True) == admit


@pytest.mark.parametrize(("free_blocks", "admit"), [(11, ()), (12, ("a/1",))])
def test_a_preempted_call_needs_room_for_what_it_had_answered(free_blocks, admit):
    story = one_runs(free_blocks)
    story.arrives("a/1")
    story.starts("a/1")
    story.happens(e.CallPreempted(0.0, "a/1", 17))  # 160 + 17 tokens: 12 blocks
    assert order(story) == admit


def test_where_nobody_runs_all_are_named():
    """The engine starts the first that fits: there is nobody whose end could be waited for."""
    story = Story(free_blocks=9)
    story.arrives("a/1")
    story.arrives("b/1", prompt_tokens=16, agent_type="other")
    assert order(story) == ("a/1", "b/1")


def test_loading_calls_are_named_first_and_need_no_room():
    story = one_runs(free_blocks=1)
    story.arrives("a/1", prompt_tokens=16)
    story.arrives("b/1")
    story.happens(e.LoadStarted(0.0, "b/1", 10, 0))
    assert order(story) == ("b/1", "a/1")


# -- claims, rivals, and who is blocked


def two_wait(free_blocks: int) -> tuple[Half, View]:
    """x/1 runs, of rank 0; a/1 (place 2.83) and b/1 (place 5.20) wait, of ten blocks each."""
    story = one_runs(free_blocks)
    story.arrives("a/1")
    story.arrives("b/1")
    half = Half(story)
    return half, half.view()


def test_what_is_left_is_free_and_not_expected_to_be_grown_into():
    half, _ = two_wait(free_blocks=30)
    half.story.growth_blocks = 4
    assert half.seniority.admission(half.view(), Needs()) == Admission(("a/1", "b/1"), 20, 6)


@pytest.mark.parametrize(
    ("score", "granted_blocks", "admit"),
    [
        (-2.0, 15, ("a/1",)),  # before both: 15 of 25, and a/1's ten are left
        (-4.0, 15, ("a/1",)),  # after a/1, before b/1: 15 of the 15 that a/1 leaves
        (-6.0, 5, ("a/1", "b/1")),  # behind both
    ],
)
def test_a_claim_takes_room_where_its_score_stands_in_the_order(score, granted_blocks, admit):
    half, view = two_wait(free_blocks=25)
    claim = Claim(score, blocks=15)
    assert half.seniority.admission(view, Needs([claim])).admit == admit
    assert claim.granted_blocks == granted_blocks


def test_of_two_claims_the_higher_one_is_served_first():
    half, view = two_wait(free_blocks=12)
    high, low = Claim(-1.0, blocks=8), Claim(-2.0, blocks=8)
    assert half.seniority.admission(view, Needs([high, low])) == Admission((), 0, 0)
    assert (high.granted_blocks, low.granted_blocks) == (8, 4)


def test_the_rival_of_uploads_is_the_first_call_that_did_not_fit():
    half, view = two_wait(free_blocks=12)
    admission = half.seniority.admission(view, Needs(held_blocks=20))
    assert admission == Admission(("a/1",), 10, 2, Rival(-(3**1.5), 10))
    assert half.seniority.blocked(admission) == Blocked("b", 10 - 2)


def test_without_any_room_nobody_is_looked_at_but_the_rival():
    half, view = two_wait(free_blocks=0)
    assert half.seniority.admission(view, Needs()) == Admission((), 0, 0)
    assert half.story.asked == []
    assert half.seniority.admission(view, Needs(held_blocks=20)).rival == Rival(-(2**1.5), 10)
    assert half.story.asked == ["a/1"]


def test_where_all_fit_nobody_is_a_rival_or_blocked():
    half, view = two_wait(free_blocks=20)
    admission = half.seniority.admission(view, Needs(held_blocks=20))
    assert admission.rival is None
    assert half.seniority.blocked(admission) is None


def test_whoever_was_admitted_last_gives_way():
    half, view = two_wait(free_blocks=20)
    assert half.seniority.admission(view, Needs()).preempt == ()


# -- who is gone


def test_calls_that_were_given_up_are_not_named_and_their_applications_have_no_rank():
    story = one_runs(free_blocks=30)
    story.arrives("a/1")
    story.arrives("b/1")
    half = Half(story)
    half.view()
    assert [half.seniority.rank(app) for app in ("x", "a", "b")] == [0, 1, 2]
    for fact in (e.CallAborted(1.0, "a/1"), e.AppFinished(1.0, "a")):
        story.happens(fact)
    view = half.view()
    assert half.seniority.admission(view, Needs()).admit == ("b/1",)
    assert [half.seniority.rank(app) for app in ("x", "a", "b")] == [0, 0, 1]  # nobody asks for a's


# -- the queue, however it came about


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.25, 0.5, 1.0, 1.5, 40.0])), max_size=40),
    st.lists(st.tuples(st.integers(0, 39), st.sampled_from(["starts", "is preempted", "loads"])), max_size=60),
    st.sets(st.integers(0, 5)),
    st.sampled_from([0.0, 1.0, 1.5]),
)
def test_the_queue_is_in_the_order_that_sorting_all_of_it_would_give(
    calls: list[tuple[int, float]], events: list[tuple[int, str]], over: set[int], age_power: float
):
    """Applications 0 to 5; a call of one of them and its size; what becomes of calls; then some applications end."""
    queue = SeniorityQueue(age_power)
    for n in range(6):
        queue.app_started(str(n))
    known = [(str(app), WaitingCall(size, n, f"c{n}")) for n, (app, size) in enumerate(calls)]
    for app, call in known:
        queue.put(app, call)
    waiting, running = set(range(len(known))), set[int]()
    for n, event in events:
        if n < len(known) and event == "is preempted" and n in running:
            running.remove(n)
            waiting.add(n)
            queue.runs_no_more(known[n][0])
            queue.put(*known[n])
        elif n < len(known) and event != "is preempted" and n not in running:
            waiting.discard(n)
            queue.remove(*known[n])  # of one that loads, nothing the second time
            if event == "starts":
                running.add(n)
                queue.runs(known[n][0])
    for app in [known[n][0] for n in running]:
        over.discard(int(app))  # one of its calls runs
    for n in over:
        queue.app_finished(str(n))
    live = [str(n) for n in range(6) if n not in over]
    left = [(app, call) for n, (app, call) in enumerate(known) if n in waiting and app in live]
    expected = sorted((call.size * (1 + live.index(app)) ** age_power, call.number, call.call) for app, call in left)
    assert [*queue] == [(weight, name) for weight, _, name in expected]
    related = {call.call for app, call in left if app in {known[n][0] for n in running}}
    assert [*queue.related()] == [(weight, name) for weight, _, name in expected if name in related]


@given(st.integers(0, 10_000), st.sampled_from([20, 300, 3000]), st.sampled_from([0.0, 1.5]))
@settings(max_examples=30)
def test_the_queue_is_in_order_however_unlike_the_sizes_of_many_applications(seed: int, apps: int, age_power: float):
    rng = Random(seed)
    queue = SeniorityQueue(age_power)
    live = [str(n) for n in range(apps)]
    for app in live:
        queue.app_started(app)
    waiting: list[tuple[str, WaitingCall]] = []
    running: list[str] = []
    for n in range(400):
        call = WaitingCall(rng.choice([0.001, 0.5, 1.0, 1.0, 2.0, 30.0, 5000.0]), n, f"c{n}")
        waiting.append((rng.choice(live), call))
        queue.put(*waiting[-1])
        if rng.random() < 0.4:
            app, call = waiting.pop(rng.randrange(len(waiting)))
            queue.remove(app, call)
            queue.runs(app)
            running.append(app)
        if running and rng.random() < 0.3:
            queue.runs_no_more(running.pop(rng.randrange(len(running))))
    for app in sorted({*live} - {*running}):
        if rng.random() < 0.3:
            queue.app_finished(app)
            live.remove(app)
    ranks = {app: rank for rank, app in enumerate(live)}
    expected = sorted(
        (call.size * (1 + ranks[app]) ** age_power, call.number, call.call, app)
        for app, call in waiting
        if app in ranks
    )
    assert [*queue] == [(weight, name) for weight, _, name, _ in expected]
    assert [*queue.related()] == [(weight, name) for weight, _, name, app in expected if app in running]


def test_of_an_application_that_runs_only_so_many_calls_are_looked_at():
    """None of them is held by running calls: so they start by weight, and all but the first 128 come unasked."""
    story = Story(gpu_blocks=10_000, free_blocks=9)
    story.arrives("a/0")
    story.starts("a/0")
    for number in range(1, 300):
        story.arrives(f"a/{number}")
    assert order(story) == ()
    assert story.asked == [f"a/{number}" for number in range(1, 129)]


def test_only_so_many_are_looked_at_however_many_wait():
    """While contexts get lost the host may have what a call needs: that is asked for the first 128 alone."""
    story = Story(free_blocks=5)
    agents = KnownAgents()
    miss_share = MissShare(agents)
    miss_share.share = 1.0
    half = Seniority(Options(), miss_share, agents)
    for n in range(1000):
        story.arrives(f"a{n}/c", prompt_tokens=1600)
    view = story.view()
    for fact in view.news:
        if (handle := half.handlers.get(type(fact))) is not None:
            handle(fact, view)
    half.begin(view)
    assert half.admission(view, Needs()).admit == (*view.waiting,), "nothing runs: the engine starts one"
    assert len(story.asked) == len(set(story.asked)) == 128
