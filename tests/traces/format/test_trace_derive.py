"""What the shape of an application says about its calls."""

from pathlib import Path

import pytest
from hypothesis import given
from trace_files import calls, dags, one_call

from tokencake.traces.apps import Application, Call, Hints
from tokencake.traces.format.derive import derive_hints, with_hints


def hints(folder: Path, *entries: object) -> dict[str, Hints]:
    return {name: call.hints for name, call in calls(folder, *entries).items()}


def names(found: dict[str, Hints], field: str) -> set[str]:
    return {name for name, one in found.items() if getattr(one, field)}


def fork_and_join() -> list[object]:
    """plan -> (left1 -> left2 | right) -> join -> end"""
    return [
        one_call(id="plan"),
        one_call(id="left1", after=["plan"]),
        one_call(id="left2", after=["left1"]),
        one_call(id="right", after=["plan"]),
        one_call(id="join", after=["left2", "right"]),
        one_call(id="end", after=["join"]),
    ]


def test_depths_and_degrees(tmp_path: Path):
    found = hints(tmp_path, *fork_and_join())
    places = {n: (h.depth, h.remaining_depth, h.in_degree, h.out_degree) for n, h in found.items()}
    assert places == {
        "plan": (1, 5, 0, 2),
        "left1": (2, 4, 1, 1),
        "left2": (3, 3, 1, 1),
        "right": (2, 3, 1, 1),
        "join": (4, 2, 2, 1),
        "end": (5, 1, 1, 0),
    }
    assert {(h.max_depth, h.fanout_width) for h in found.values()} == {(5, 2)}
    assert names(found, "near_completion") == {"join", "end"}


def test_whole_branches_are_in_the_group_of_the_call_that_joins_them(tmp_path: Path):
    found = hints(tmp_path, *fork_and_join())
    assert {n: (h.join_group, h.similarity) for n, h in found.items() if h.join_group} == {
        "left1": ("join", 0.5),
        "left2": ("join", 0.5),
        "right": ("join", 0.5),
    }
    assert {h.similarity for h in found.values() if not h.join_group} == {1.0}


def test_a_call_that_several_join_belongs_to_the_widest_join(tmp_path: Path):
    entries = [one_call(id=n) for n in "abc"]
    found = hints(tmp_path, *entries, one_call(id="two", after=["a", "b"]), one_call(id="all", after=["a", "b", "c"]))
    assert [found[n].join_group for n in "abc"] == ["all"] * 3


def test_of_equally_wide_joins_the_first_one_counts(tmp_path: Path):
    entries = [one_call(id=n) for n in "abc"]
    found = hints(tmp_path, *entries, one_call(id="z", after=["a", "b"]), one_call(id="y", after=["b", "c"]))
    assert [found[n].join_group for n in "abc"] == ["z", "z", "y"]


def test_the_critical_path_goes_where_most_is_declared(tmp_path: Path):
    entries = fork_and_join()
    assert names(hints(tmp_path, *entries), "critical_path") == {"plan", "left1", "left2", "join", "end"}
    entries[3] = one_call(id="right", after=["plan"], max_output=500)  # 500 · 0.02 s = 10 s against 2 · 5 · 0.02 s
    assert names(hints(tmp_path, *entries), "critical_path") == {"plan", "right", "join", "end"}
    slow = [{"kind": "web", "duration_s": 0, "declared_s": 10.0}, {"kind": "web", "duration_s": 0}]
    entries[2] = one_call(id="left2", after=["left1"], tools=slow)  # side by side: 10 s, and 0.2 s for the answers
    assert names(hints(tmp_path, *entries), "critical_path") == {"plan", "left1", "left2", "join", "end"}


def test_of_equal_paths_the_first_is_critical(tmp_path: Path):
    found = hints(tmp_path, one_call(id="z"), one_call(id="a"), one_call(id="end", after=["a", "z"]))
    assert names(found, "critical_path") == {"z", "end"}


def test_a_context_is_reusable_if_it_is_extended_or_its_agent_goes_on(tmp_path: Path):
    found = hints(
        tmp_path,
        one_call(id="plan", agent="main"),
        one_call(id="fork", after=["plan"], extends="plan"),
        one_call(id="next", agent="main", after=["plan"]),
    )
    assert names(found, "reusable") == {"plan"}
    assert names(hints(tmp_path, one_call(id="x", agent="m"), one_call(id="y", agent="m", after=["x"])), "reusable")


def test_a_lone_call_is_its_own_critical_path(tmp_path: Path):
    assert hints(tmp_path, one_call())["c"] == Hints(critical_path=True, near_completion=True)


@given(application=dags())
def test_no_hint_depends_on_what_only_the_future_tells(application: Application):
    def other_future(call: Call) -> Call:
        tools = tuple(tool._replace(duration_s=tool.duration_s * 3 + 1, result_tokens=0) for tool in call.tools)
        return call._replace(tools=tools, output_tokens=1, pause_s=call.pause_s + 5)

    changed = [other_future(call) for call in application.calls]
    assert derive_hints(changed) == derive_hints(application.calls)


def test_the_stated_wins(tmp_path: Path):
    (call,) = calls(tmp_path, one_call()).values()
    application = Application("a0", 0.0, (call,))
    stated = with_hints(application, {"a0/c": {"importance": 7.0, "critical_path": False}}).calls[0].hints
    assert stated == Hints(importance=7.0, critical_path=False, near_completion=True)
    with pytest.raises(TypeError):
        with_hints(application, {"a0/c": {"urgency": 7.0}})
