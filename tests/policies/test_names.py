"""Names tell one from another and decide nothing: the same workload under other names comes to the same, fact for fact.

Where two are equal to a policy, the one that arrived first is first. And a name may come again: a client that gives a
call up and sends it anew at the same instant leads no policy astray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain

import pytest
from adversary import hard_workload
from differential.workloads import Workload
from digests import OPTIONS
from hard_runs import HONEST, smallest
from renamed import Names, Others, at_random, backwards
from runs import Record, play
from views import Story

from tokencake.policies.registry import ROWS, load_policy
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Hints
from tokencake.traces.events import ToolHint
from tokencake.traces.format.derive import derive_hints
from tokencake.traces.generate.workloads import code_writer, deep_research

SPECS = (*ROWS, *OPTIONS)
every = pytest.mark.parametrize("spec", SPECS)


def at_once(applications: Sequence[Application]) -> tuple[Application, ...]:
    """All of them arrive at the same instant: nothing but ties."""
    return tuple(application._replace(arrival_s=0.0) for application in applications)


@cache
def crowd() -> tuple[Workload, ...]:
    """Many that are equal, and arrive together; and a few of anything, in the smallest cache and in others."""
    machine = replace(PUBLISHED, gpu_blocks=1500, host_gib=2.0)
    alike = Workload(at_once([*code_writer(apps=3)]), machine)
    others = Workload(at_once([*deep_research(apps=3)]), machine)
    small = [hard_workload(seed) if seed % 2 else smallest(seed) for seed in range(12)]
    return (alike, others, *(Workload(at_once(one.applications), one.machine) for one in small), hard_workload(1))


def played(spec: str, workload: Workload) -> list[Record]:
    return play(workload.applications, partial(load_policy, spec, applications=workload.applications), workload.machine)


def assert_the_same(spec: str, workload: Workload, others: Others) -> None:
    names = Names(workload.applications, others)
    renamed = Workload(names.of_all(workload.applications), workload.machine)
    expected = [names.record(record) for record in played(spec, workload)]
    for at, (record, other) in enumerate(zip(expected, played(spec, renamed), strict=True)):
        assert without_checksum(record) == without_checksum(other), f"record {at}"


def without_checksum(record: Record) -> Record:
    """The checksum of what was asked is one of names. Answers and their order remain, where they change."""
    return record._replace(questions=None) if isinstance(record, e.Planned) else record


@every
def test_names_that_sort_the_other_way_round_change_nothing(spec: str) -> None:
    for workload in crowd():
        assert_the_same(spec, workload, backwards)


@pytest.mark.slow
@every
@pytest.mark.parametrize("seed", range(2))
def test_any_names_change_nothing(spec: str, seed: int) -> None:
    for workload in (*crowd(), *(hard_workload(100 * seed + n) for n in range(10))):
        assert_the_same(spec, workload, at_random(seed))


def test_what_is_derived_from_a_dag_does_not_depend_on_names() -> None:
    for workload in (*crowd(), *(hard_workload(seed) for seed in range(50))):
        names = Names(workload.applications, backwards)
        for application in workload.applications:
            (renamed,) = names.of_all([application])
            derived, others = derive_hints(application.calls), derive_hints(renamed.calls)
            groups = {one.join_group: other.join_group for one, other in zip(derived, others, strict=True)}
            assert len(set(groups.values())) == len(groups)
            assert [one._replace(join_group=groups[one.join_group]) for one in derived] == others


# -- a name that comes again


@pytest.mark.parametrize("spec", HONEST)
def test_a_call_that_is_given_up_and_sent_again_at_the_same_instant(spec: str) -> None:
    """Waiting, running, preempted or ended, with its application or without it: there is a plan each time.

    Nothing passes in between but the steps, so whatever is remembered by time and name is remembered twice.
    """
    hints = Hints(join_group=None, reusable=True, remaining_depth=2)
    for asks in range(1, 4):  # how often the policy is asked: what it hears at once differs
        story, policy = Story(gpu_blocks=60, free_blocks=20), load_policy(spec)
        policy.plan(story.view())
        ends = (story.happens, story.finishes)
        for turn, state in enumerate(chain.from_iterable((("waits", "runs", "preempted", "loads"),) * 4)):
            story.arrives("a/call", 160, 16, "a/agent", "worker", (ToolHint("search", 2.0),), hints)
            story.arrives(f"b/{turn}", 160, 16, "b/agent" if turn % 2 else f"b/{turn}", "worker", (), hints)
            if state in ("runs", "preempted"):
                story.starts("a/call")
            if state == "preempted":
                story.happens(e.CallPreempted(story.now_s, "a/call", 3))
            if state == "loads":
                story.happens(e.LoadStarted(story.now_s, "a/call", 1, 0))
            if turn % asks == 0:
                story.growth_blocks = 30 * (turn % 3)
                policy.plan(story.view())
            if state == "runs" and turn % 8 > 3:
                ends[1]("a/call")
                story.tool_starts("a/call")
            else:
                ends[0](e.CallAborted(story.now_s, "a/call"))
            if turn % 3 == 0:
                story.happens(e.AppFinished(story.now_s, "a"))
                story.happens(e.AppStarted(story.now_s, "a"))
            if turn % asks == 0:
                policy.plan(story.view())
        story.passes(1000.0, steps=1000)
        plan = policy.plan(story.view())
        assert plan.admit is None or set(plan.admit) <= set(story.view().waiting)
