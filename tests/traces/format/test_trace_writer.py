"""What is written is what is read again, and nothing is ever half-written."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_files import dags, one_app, one_call, written

from tokencake.traces.apps import NO_HINTS, Application, Call, Prompt, Segment, Tool
from tokencake.traces.errors import TraceError
from tokencake.traces.format.derive import with_hints
from tokencake.traces.format.header import Header
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace

PLAN = Call(
    "a0/plan", "a0", "a0/main", "main", Prompt((Segment("/s", 0, 5),), tokens=5), 7, 7, tools=(Tool("web", 1.5),)
)
DONE = Call("a0/done", "a0", "a0/main", "coder", Prompt((), "a0/plan", 12, 12), 3, 4, after=("a0/plan",), pause_s=2.0)
APP = with_hints(Application("a0", 0.25, (PLAN, DONE)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_no_more_than_it_has_to(tmp_path: Path):
    assert write_trace(tmp_path / "t.jsonl", [APP]) == 1
    assert lines(tmp_path / "t.jsonl") == [
        {"format": "tokencake.trace", "version": 1, "applications": 1},
        {
            "id": "a0",
            "arrival_s": 0.25,
            "calls": [
                {
                    "id": "plan",
                    "agent": "main",
                    "prompt": [["/s", 5]],
                    "output": 7,
                    "tools": [{"kind": "web", "duration_s": 1.5}],
                },
                {
                    "id": "done",
                    "agent": "main",
                    "type": "coder",
                    "after": ["plan"],
                    "extends": "plan",
                    "output": 3,
                    "max_output": 4,
                    "pause_s": 2.0,
                },
            ],
        },
    ]


def test_hints_are_written_where_they_differ_from_what_the_dag_says(tmp_path: Path):
    app = with_hints(APP, {"a0/plan": {"importance": 4.0, "join_group": "all"}})
    write_trace(tmp_path / "t.jsonl", [app])
    plan, done = lines(tmp_path / "t.jsonl")[1]["calls"]
    assert plan["hints"] == {"importance": 4.0, "join_group": "all"}
    assert "hints" not in done
    assert list(read_trace(tmp_path / "t.jsonl")) == [app]


stated = st.builds(NO_HINTS._replace, critical_path=st.booleans(), depth=st.integers(0, 99), similarity=st.floats(0, 1))


@given(first=dags("a0", 0.0), second=dags("b-c", 3.5), hints=stated)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, first, second, hints):
    changed = second.calls[0]._replace(hints=hints._replace(importance=2.5, join_group="x"))
    trace = [first, second._replace(calls=(changed, *second.calls[1:]))]
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl.gz"
    header = Header("ünïcode", "here", 2, {"seed": 1, "rate": 0.5})
    write_trace(path, trace, header)
    assert list(read_trace(path)) == trace
    assert read_trace(path).header == header


def test_equal_traces_are_equal_files(tmp_path: Path):
    for name in ("one.jsonl.gz", "other.jsonl.gz", "plain.jsonl"):
        write_trace(tmp_path / name, [APP])
    one = (tmp_path / "one.jsonl.gz").read_bytes()
    assert one == (tmp_path / "other.jsonl.gz").read_bytes()
    assert one[4:8] == bytes(4)  # no time
    assert gzip.decompress(one) == (tmp_path / "plain.jsonl").read_bytes()


def test_a_trace_can_be_written_over_itself(tmp_path: Path):
    path = written(tmp_path, one_app(one_call()), one_app(one_call(), id="a1"))
    before = list(read_trace(path))
    write_trace(path, read_trace(path))
    assert list(read_trace(path)) == before


def broken() -> Iterator[Application]:
    yield APP
    raise TraceError("the source ended here")


def test_nothing_is_left_of_a_trace_that_could_not_be_written(tmp_path: Path):
    with pytest.raises(TraceError, match="the source ended here"):
        write_trace(tmp_path / "t.jsonl", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_stays_until_the_new_one_is_complete(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text("old")
    with pytest.raises(TraceError, match="the source ended here"):
        write_trace(path, broken())
    assert [path] == list(tmp_path.iterdir())
    assert path.read_text() == "old"


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "t.jsonl")
    write_trace(tmp_path / "link.jsonl", [APP])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert list(read_trace(tmp_path / "t.jsonl")) == [APP]


def test_a_place_where_nothing_can_be_written(tmp_path: Path):
    for path in (tmp_path / "none" / "t.jsonl", tmp_path, Path("/dev/null")):
        with pytest.raises(TraceError, match=f"{path}: cannot be written: "):
            write_trace(path, [APP])


def with_call(**changes: object) -> Application:
    return APP._replace(calls=(PLAN._replace(**changes), DONE))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("application", "message"),
    [
        (with_call(output_tokens=0), r"calls\[0\].output: expected a whole number from 1"),
        (with_call(pause_s=float("nan")), "expected values that JSON in UTF-8 can hold"),
        (with_call(tools=(Tool("web", -1.0),)), r"calls\[0\].tools\[0\].duration_s: expected seconds"),
        (with_call(agent="b0/main"), "b0/main: expected a name that starts with a0/"),
        (with_call(prompt=Prompt((Segment("/s", 0, 5),), tokens=6)), "the line means something else"),
        (with_call(prompt=Prompt((Segment("/s", 0, 5), Segment("/t", 0, 0)), tokens=5)), "the line means something"),
        (APP._replace(calls=(DONE, PLAN)), "a0/done: expected only calls that come before it in the application"),
        (APP._replace(calls=()), "calls: expected 1 to 20000 calls, got 0"),
        (APP._replace(id="\ud800"), "expected a name that starts with"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, application: Application, message: str):
    with pytest.raises(TraceError, match=message) as refused:
        write_trace(tmp_path / "t.jsonl", [application])
    assert str(refused.value).startswith(f"{tmp_path / 't.jsonl'}: application ")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_order_and_the_ids_of_applications_are_checked(tmp_path: Path):
    for later in (APP._replace(arrival_s=9.0), APP):
        with pytest.raises(TraceError, match=r"expected another id|expected at least"):
            write_trace(tmp_path / "t.jsonl", [APP._replace(arrival_s=9.0), later])


def test_the_header_is_checked(tmp_path: Path):
    with pytest.raises(TraceError, match=r"header\.applications: expected 1, got 2"):
        write_trace(tmp_path / "t.jsonl", iter([APP]), Header(applications=2))
    with pytest.raises(TraceError, match="header: name: expected 1 to 200 printable characters"):
        write_trace(tmp_path / "t.jsonl", [APP], Header(name=""))
    assert list(tmp_path.iterdir()) == []
