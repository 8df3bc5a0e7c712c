"""What a trace file means."""

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from trace_files import HEADER, applications, calls, one_app, one_call, written

from tokencake.traces.apps import Prompt, Segment, Tool
from tokencake.traces.format.reader import read_trace, trace_digest


def test_names_become_unique_in_the_trace_and_shared_sources_stay(tmp_path: Path):
    call = calls(tmp_path, one_call(prompt=[["/system", 7], ["task", 2, 3]]))["c"]
    assert (call.id, call.app, call.agent, call.agent_type) == ("a0/c", "a0", "a0/c", "c")
    assert call.prompt == Prompt((Segment("/system", 0, 7), Segment("a0/task", 2, 3)), tokens=10)


def test_a_type_is_the_agents_name_unless_stated(tmp_path: Path):
    found = calls(tmp_path, one_call(agent="main"), one_call(id="d", type="coder"))
    assert (found["c"].agent, found["c"].agent_type) == ("a0/main", "main")
    assert (found["d"].agent, found["d"].agent_type) == ("a0/d", "coder")


def test_a_prompt_goes_on_with_the_whole_context_of_the_call_it_extends(tmp_path: Path):
    found = calls(tmp_path, one_call(), one_call(id="d", after=["c"], extends="c", prompt=[["more", 4]]))
    assert found["d"].prompt == Prompt((Segment("a0/more", 0, 4),), "a0/c", keep_tokens=10 + 5, tokens=19)


def test_a_prompt_can_keep_less_of_a_context_and_add_nothing(tmp_path: Path):
    found = calls(tmp_path, one_call(), {"id": "d", "after": ["c"], "extends": "c", "keep": 3, "output": 1})
    assert found["d"].prompt == Prompt((), "a0/c", keep_tokens=3, tokens=3)


def test_an_answer_can_be_cited_by_a_call_that_waits_for_it_indirectly(tmp_path: Path):
    middle = one_call(id="d", after=["c"])
    found = calls(tmp_path, one_call(), middle, one_call(id="e", after=["d"], prompt=[["c", 1, 4]]))
    assert found["e"].prompt.segments == (Segment("a0/c", 1, 4),)


def test_empty_segments_mean_nothing(tmp_path: Path):
    found = calls(tmp_path, one_call(prompt=[["none", 0], ["task", 4], ["c", 0]][:2]))
    assert found["c"].prompt == Prompt((Segment("a0/task", 0, 4),), tokens=4)


def test_tools_pauses_and_budgets(tmp_path: Path):
    tools = [{"kind": "web", "duration_s": 3, "declared_s": 5.5, "result": 9}, {"kind": "test", "duration_s": 0}]
    call = calls(tmp_path, one_call(max_output=8, pause_s=2.5, tools=tools))["c"]
    assert (call.output_tokens, call.max_output_tokens, call.pause_s) == (5, 8, 2.5)
    assert call.tools == (Tool("web", 3.0, 5.5, 9), Tool("test", 0.0, None, 0))


def test_stated_hints_win_over_derived_ones(tmp_path: Path):
    hints = calls(tmp_path, one_call(hints={"importance": 3, "join_group": "review", "depth": 2}))["c"].hints
    assert (hints.importance, hints.join_group, hints.depth) == (3.0, "review", 2)
    assert (hints.critical_path, hints.max_depth) == (True, 1)  # derived


def test_calls_are_brought_into_an_order_in_which_each_follows_what_it_waits_for(tmp_path: Path):
    entries = (one_call(id="last", after=["b", "a"]), one_call(id="b", after=["a"]), one_call(id="x"), one_call(id="a"))
    assert list(calls(tmp_path, *entries)) == ["x", "a", "b", "last"]


def test_an_order_that_can_be_played_is_kept(tmp_path: Path):
    assert list(calls(tmp_path, one_call(id="z"), one_call(id="a"), one_call(id="m", after=["z"]))) == ["z", "a", "m"]


def test_a_trace_can_be_read_again_and_in_parallel(tmp_path: Path):
    trace = read_trace(written(tmp_path, one_app(one_call()), one_app(one_call(), id="a1")))
    pairs = [(one.id, other.id) for one, other in zip(trace, trace, strict=True)]
    assert pairs == [("a0", "a0"), ("a1", "a1")]


def test_blank_lines_and_a_missing_last_newline_do_no_harm(tmp_path: Path):
    path = written(tmp_path, one_app(one_call()), b"  ", one_app(one_call(), id="a1"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [application.id for application in read_trace(path)] == ["a0", "a1"]


def test_the_header_tells_about_the_trace(tmp_path: Path):
    said = {"name": "n", "source": "s", "applications": 1, "about": {"seed": 0, "even": True}}
    header = read_trace(written(tmp_path, one_app(one_call()), header=HEADER | said)).header
    assert (header.name, header.source, header.applications, header.about) == ("n", "s", 1, {"seed": 0, "even": True})


def test_gzip_is_known_by_its_content(tmp_path: Path):
    path = written(tmp_path, one_app(one_call()))
    plain = list(read_trace(path))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_trace(path)) == plain


def test_the_digest_is_that_of_the_file(tmp_path: Path):
    path = written(tmp_path, one_app(one_call()))
    assert trace_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("stem", ["a", "a0", "2024-"])
def test_memory_does_not_grow_with_a_trace(tmp_path: Path, stem: str):
    path = tmp_path / "t.jsonl"
    with path.open("w") as file:
        file.write(json.dumps(HEADER) + "\n")
        file.writelines(json.dumps(one_app(one_call(), id=f"{stem}{i}", arrival_s=i)) + "\n" for i in range(4000))
    tracemalloc.start()
    try:
        stream = iter(read_trace(path))
        for _ in range(1000):
            next(stream)
        early, _ = tracemalloc.get_traced_memory()
        for _ in stream:
            pass
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late - early < 20_000  # 3,000 ids alone would take 200,000 bytes


def test_an_application_of_many_calls_is_read_in_reasonable_memory(tmp_path: Path):
    chain = [one_call(id=f"c{i}", agent="main", after=[f"c{i - 1}"] if i else []) for i in range(3000)]
    (application,) = applications(tmp_path, one_app(*chain))
    assert application.calls[-1].hints.depth == 3000
