"""Which calls of an application are ready when others have ended."""

from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_files import applications, dags, one_app, one_call

from tokencake.traces.apps import Application
from tokencake.traces.dag_run import DagCall, DagRun, in_arrival_order, tools_s
from tokencake.traces.errors import TraceError


def names(calls: Iterable[DagCall]) -> list[str]:
    return [each.call.id.partition("/")[2] for each in calls]


@pytest.fixture
def diamond(tmp_path: Path) -> Application:
    """Two calls follow one, and one follows both; another stands beside them."""
    calls = [
        one_call(id="top"),
        one_call(id="left", after=["top"]),
        one_call(id="right", after=["top"]),
        one_call(id="bottom", after=["left", "right"]),
        one_call(id="beside"),
    ]
    return applications(tmp_path, one_app(*calls))[0]


def test_a_call_is_ready_when_the_last_one_that_it_waits_for_has_ended(diamond: Application) -> None:
    run = DagRun(diamond, 0)
    top, left, right, bottom, beside = run.calls
    assert names(run.first()) == ["top", "beside"]
    assert names(run.ended(top)) == ["left", "right"]
    assert names(run.ended(right)) == []
    assert names(run.ended(left)) == ["bottom"]
    assert names(run.ended(beside)) == []
    assert not run.over
    assert names(run.ended(bottom)) == []
    assert run.over


def test_calls_that_arrive_at_once_go_by_application_and_then_as_in_the_trace(diamond: Application) -> None:
    first, second = (DagRun(diamond, number).calls for number in range(2))
    assert sorted({*second, *first}, key=lambda each: each.order) == [*first, *second]


def test_an_application_without_calls_is_over_at_once() -> None:
    run = DagRun(Application("a", 0.0), 0)
    assert (run.first(), run.over) == ([], True)


@given(dags("a"), st.randoms(use_true_random=False))
def test_every_call_is_ready_once_and_after_all_that_it_waits_for(app: Application, random: Random) -> None:
    run = DagRun(app, 0)
    ready, ended = run.first(), list[str]()
    while ready:
        each = ready.pop(random.randrange(len(ready)))
        assert set(each.call.after) <= set(ended)
        ended.append(each.call.id)
        ready += run.ended(each)
    assert sorted(ended) == sorted(call.id for call in app.calls)
    assert run.over


def test_a_call_knows_whose_context_it_continues_and_how_much_later_prompts_continue_of_its_own(tmp_path: Path) -> None:
    calls = [
        one_call(id="first", output=10),
        one_call(id="less", extends="first", keep=3, after=["first"]),
        one_call(id="more", extends="first", keep=5, after=["less"]),
    ]
    run = DagRun(applications(tmp_path, one_app(*calls))[0], 0)
    first, less, more = run.calls
    assert (first.extends, less.extends, more.extends) == (None, first, first)
    assert [each.continued_tokens for each in run.calls] == [5, 0, 0]


def test_tools_run_side_by_side(tmp_path: Path) -> None:
    tools = [{"kind": "a", "duration_s": 1.0}, {"kind": "b", "duration_s": 3.0}]
    app = applications(tmp_path, one_app(one_call(tools=tools)))[0]
    assert tools_s(app.calls[0]) == 3.0


def test_applications_come_in_the_order_of_their_arrivals() -> None:
    apps = [Application("a", 1.0), Application("b", 1.0), Application("c", 0.5)]
    coming = in_arrival_order(apps)
    assert (next(coming).id, next(coming).id) == ("a", "b")
    with pytest.raises(TraceError, match="'c': arrival_s: expected no earlier than the one before it, got"):
        next(coming)


def test_nothing_arrives_before_the_start(diamond: Application) -> None:
    with pytest.raises(TraceError, match="got -1"):
        next(in_arrival_order([diamond._replace(arrival_s=-1.0)]))
