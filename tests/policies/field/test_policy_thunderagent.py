"""ThunderAgent by hand: 1,600 tokens of GPU memory, weighed every 5 s, a hundred tokens for each program."""

import pytest
from fickle_clients import FickleClients
from views import Story

from tokencake.policies.field.thunderagent import Stage, ThunderAgent
from tokencake.policies.interface import Plan, View
from tokencake.traces import events as e
from tokencake.traces.errors import PolicyError
from tokencake.traces.events import ToolHint

TOOL = (ToolHint("search", 2.0),)


def runs(story: Story, call: str, prompt_tokens: int) -> None:
    """It starts and goes on; what it does not share with others is in use."""
    story.arrives(call, prompt_tokens=prompt_tokens, max_output_tokens=16, agent=f"{call[0]}/main", tools=TOOL)
    story.starts(call)
    story.free_blocks -= prompt_tokens // 16
    story.growth_blocks += 1


def acts(story: Story, call: str, prompt_tokens: int) -> None:
    """It ended, and its tool runs."""
    runs(story, call, prompt_tokens)
    ends(story, call, prompt_tokens)


def ends(story: Story, call: str, prompt_tokens: int) -> None:
    story.finishes(call)
    story.tool_starts(call)
    story.free_blocks += prompt_tokens // 16
    story.growth_blocks -= 1


def asks(story: Story, call: str, prompt_tokens: int = 160) -> None:
    """A call that waits."""
    story.arrives(call, prompt_tokens=prompt_tokens, agent=f"{call[0]}/main", tools=TOOL)


def test_what_fits_is_left_to_the_engine():
    story = Story()
    rule = ThunderAgent()
    acts(story, "a/1", 800)
    asks(story, "b/1", 480)
    # 816 + 100 of a, 480 + 100 of b: 1,496 of 1,600
    assert rule.plan(story.view()) == Plan(wake_at_s=5.0)


def test_a_new_program_that_does_not_fit_is_held_back():
    story = Story()
    rule = ThunderAgent()
    acts(story, "a/1", 800)
    asks(story, "b/1", 592)  # 916 + 692 = 1,608
    assert rule.plan(story.view()).admit == ()
    story = Story()
    acts(story, "a/1", 800)
    asks(story, "b/1", 576)  # 916 + 676 = 1,592
    assert ThunderAgent().plan(story.view()).admit is None


def test_acting_programs_weigh_what_the_option_says():
    story = Story()
    acts(story, "a/1", 800)
    asks(story, "b/1", 592)  # 0.5 x 816 + 100 + 692 = 1,200
    assert ThunderAgent(acting_weight=0.5).plan(story.view()).admit is None


def grown(rule: ThunderAgent) -> Story:
    """a, b and c act and d reasons, and they have become too large: 416, 316, 216 and 400, and 400: 1,748 tokens."""
    story = Story()
    for call, tokens in (("a/1", 400), ("b/1", 304), ("c/1", 208)):
        acts(story, call, tokens)
    runs(story, "d/1", 144)
    assert rule.plan(story.view()) == Plan(wake_at_s=5.0)  # 516 + 420 + 324 + 244 = 1,504
    ends(story, "d/1", 144)
    story.passes(1.0)
    runs(story, "d/2", 400)
    assert rule.plan(story.view()).admit is None  # nobody is stopped between two weighings
    return story


def test_above_capacity_the_smallest_acting_program_is_paused():
    rule = ThunderAgent()
    story = grown(rule)
    story.passes(4.0)
    # 516 + 420 + 324 + 500 = 1,760: 160 too many. c's 324 are enough.
    assert rule.plan(story.view()).wake_at_s == 10.0
    for call in ("a/2", "b/2", "c/2"):
        asks(story, call)
    assert rule.plan(story.view()).admit == ("a/2", "b/2")


def test_a_paused_program_is_resumed_when_there_is_room():
    rule = ThunderAgent()
    story = grown(rule)
    story.passes(4.0)
    rule.plan(story.view())
    asks(story, "c/2", 224)
    story.happens(e.AppFinished(story.now_s, "b"))
    assert rule.plan(story.view()).admit == ()  # not before the next weighing
    story.passes(5.0)
    # 516 + 500 = 1,016, and c's 324
    assert rule.plan(story.view()) == Plan(wake_at_s=15.0)


def test_reasoning_programs_are_marked_and_paused_when_their_calls_end():
    rule = ThunderAgent()
    story = Story()
    for call in ("a/1", "b/1"):
        acts(story, call, 320)
        assert rule.plan(story.view()).admit is None
    runs(story, "a/2", 800)
    runs(story, "b/2", 720)
    story.passes(5.0)
    rule.plan(story.view())  # 900 + 820 = 1,720: nobody acts, so the smaller one, b, is marked
    ends(story, "b/2", 720)
    asks(story, "b/3", 752)
    ends(story, "a/2", 800)
    asks(story, "a/3", 832)
    assert rule.plan(story.view()).admit == ("a/3",)


def test_those_that_reasoned_come_back_before_new_ones_and_these_before_acting_ones():
    rule = ThunderAgent()
    story = Story()
    for call in ("a/1", "b/1"):
        acts(story, call, 128)
    runs(story, "x/1", 320)
    assert rule.plan(story.view()).admit is None
    runs(story, "x/2", 1520)
    story.passes(5.0)
    rule.plan(story.view())  # x alone takes 1,620: a and b are paused, and x is marked
    asks(story, "n/1", 96)  # new, and smaller than all others
    asks(story, "b/2", 304)
    assert rule.plan(story.view()).admit == ()
    ends(story, "x/2", 1520)
    story.happens(e.AppFinished(story.now_s, "x"))
    runs(story, "y/1", 896)
    assert rule.plan(story.view()).admit == ("b/2",)  # everybody was paused: the first in order goes on
    story.passes(5.0)
    # b's 404 leave 1,196: y, which has started, takes 996 of them and n, which is new, 196; a acts and needs 244
    rule.plan(story.view())
    asks(story, "a/2", 144)
    assert rule.plan(story.view()).admit == ("n/1", "b/2")


def test_what_running_calls_share_counts_once():
    story = Story()
    for call in ("a/1", "b/1"):
        runs(story, call, 800)  # 51 blocks each with the budget
    story.free_blocks += 25  # 25 of b's are a's: 1,800 tokens less 400 fit
    story.passes(5.0)
    rule = ThunderAgent()
    rule.plan(story.view())
    story.passes(5.0)
    rule.plan(story.view())
    ends(story, "a/1", 800)
    asks(story, "a/2", 816)
    assert rule.plan(story.view()).admit is None


def test_a_program_that_is_over_takes_nothing_and_comes_back_if_it_was_not():
    story = Story()
    rule = ThunderAgent()
    story.runs("a/1", prompt_tokens=1200, agent="a/main")
    asks(story, "b/1", 800)
    assert rule.plan(story.view()).admit is None
    story.arrives("a/2", prompt_tokens=1300, agent="a/main")
    assert rule.plan(story.view()).admit is None  # it started once: it is not held back before it is paused
    for app, call in (("a", "a/2"), ("b", "b/1")):
        story.happens(e.CallAborted(0.0, call))
        story.happens(e.AppFinished(0.0, app))
    assert rule.plan(story.view()) == Plan()


@pytest.mark.parametrize("option", [{"period_s": 0.0}, {"acting_weight": -0.1}])
def test_a_bad_option_is_named(option):
    (name,) = option
    with pytest.raises(PolicyError, match=rf"^thunderagent: option {name}: expected .*, got"):
        ThunderAgent(**option)


# -- what is kept up to date is what a look at all programs would say


class LooksAtAll:
    """ThunderAgent, and beside it the sums over its programs made anew at each plan."""

    def __init__(self) -> None:
        self.rule = ThunderAgent()
        self.listens_to = self.rule.listens_to

    def plan(self, view: View) -> Plan:
        plan = self.rule.plan(view)
        rule = self.rule
        counted = [program for name, program in rule._of_agent.items() if name not in rule._over]
        paused = [program for program in counted if program.stage is Stage.PAUSED]
        going_on = [program for program in counted if program.stage is not Stage.PAUSED]
        assert rule._programs.paused() == sorted(paused, key=lambda program: program.resumption)
        assert rule._programs.queued == any(program.reasoning for program in paused)
        assert rule._programs.tokens(1.0) == sum(rule._cost(program) for program in going_on)
        free = [
            name
            for name, call in view.waiting.items()
            if rule._caller[name].stage is not Stage.PAUSED or call.preemptions or call.loading
        ]
        assert plan.admit == (None if len(free) == len(view.waiting) else tuple(free))
        return plan


@pytest.mark.parametrize("seed", range(10))
def test_sums_are_kept_up_to_date_whatever_clients_do(seed: int):
    FickleClients(seed, LooksAtAll()).happen(300)
