"""Which parts the options put together, and what a half that is switched off leaves to the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from views import Story

from tokencake.policies.interface import NATIVE
from tokencake.policies.parts.tool_times import ToolTimeEstimates
from tokencake.policies.tokencake.first_come import FirstCome, FirstComeBesideUploads
from tokencake.policies.tokencake.halves import NOTHING, Needs
from tokencake.policies.tokencake.known_agents import KnownAgents
from tokencake.policies.tokencake.options import PRESETS, Options
from tokencake.policies.tokencake.policy import halves
from tokencake.policies.tokencake.published.spatial import PublishedSpace
from tokencake.policies.tokencake.seniority import Seniority
from tokencake.policies.tokencake.time_half import NoCopies, StalledContexts
from tokencake.traces import events as e
from tokencake.traces.errors import PolicyError

PUBLISHED = PRESETS["published"]


@pytest.mark.parametrize(
    ("options", "space", "time"),
    [
        (Options(), Seniority, StalledContexts),
        (PUBLISHED, PublishedSpace, StalledContexts),
        (Options(time=False), Seniority, NoCopies),
        (replace(PUBLISHED, time=False), PublishedSpace, NoCopies),
        (Options(space=False), FirstCome, StalledContexts),
        (Options(space=False, upload="pause"), FirstComeBesideUploads, StalledContexts),
        (replace(PUBLISHED, space=False), FirstComeBesideUploads, StalledContexts),
    ],
)
def test_the_options_name_the_halves(options, space, time):
    made = halves(options, ToolTimeEstimates(), KnownAgents())
    assert tuple(map(type, made)) == (space, time)


def test_both_halves_cannot_be_off():
    with pytest.raises(PolicyError, match="expected at least one half"):
        halves(Options(space=False, time=False), ToolTimeEstimates(), KnownAgents())


@pytest.mark.parametrize(
    ("options", "facts"),
    [(Options(), {e.CallFinished}), (PUBLISHED, {e.ToolStarted}), (Options(time=False), set())],
)
def test_contexts_are_saved_when_calls_end_or_when_tools_start(options, facts):
    _, time = halves(options, ToolTimeEstimates(), KnownAgents())
    assert time.saves_after == facts


def test_a_half_that_is_off_wants_nothing():
    view = Story(free_blocks=7).view()
    space, _ = halves(Options(space=False), ToolTimeEstimates(), KnownAgents())
    _, time = halves(Options(time=False), ToolTimeEstimates(), KnownAgents())
    admission = space.admission(view, time.begin(view))
    assert (admission.admit, admission.room_blocks, admission.preempt) == (NATIVE.admit, 7, NATIVE.preempt)
    assert (time.saves(view), time.uploads(view, admission), time.forgotten()) == ((), NOTHING, ())
    assert (time.pins(view, admission), time.wake_at_s(view), time.holds) == (NATIVE.pin, None, False)


def test_vllms_order_is_looked_through_only_for_uploads_that_need_to_know_its_room():
    story = Story(free_blocks=30)
    story.arrives("a/1", prompt_tokens=160)  # ten blocks
    space, _ = halves(Options(space=False, upload="pause"), ToolTimeEstimates(), KnownAgents())
    view = story.view()
    assert space.admission(view, Needs()).room_blocks == 30
    assert story.asked == []
    assert space.admission(view, Needs(held_blocks=5)).room_blocks == 20
    assert story.asked == ["a/1"]
