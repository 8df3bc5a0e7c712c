"""Events files: what is written is read back, and whatever else lies in a file is refused in one line."""

import json
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake.traces.apps import Hints
from tokencake.traces.errors import TraceError
from tokencake.traces.events import (
    AppStarted,
    CallAdmitted,
    CallArrived,
    Fact,
    FirstToken,
    Planned,
    Polled,
    Request,
    RunStarted,
    ToolHint,
    UploadTaken,
)
from tokencake.traces.format.events_file import EventsWriter, Record, decode, encode, read_events

REQUEST = Request(
    id="a/x",
    app="a",
    agent="a/main",
    agent_type="coder",
    prompt_tokens=100,
    max_output_tokens=50,
    tools=(ToolHint("test", 1.5), ToolHint("web ü", None)),
    hints=Hints(importance=2.5, critical_path=True, join_group="j"),
)
STORY: list[Record] = [
    RunStarted(0.0, 16, 100, 50, 1000),
    AppStarted(0.1, "a"),
    CallArrived(0.1, REQUEST),
    Planned(0.1, {"admit": ["a/x"], "pin": {"a/main": 4.5}, "offload": [["a/main", 3, True]]}),
    CallAdmitted(0.2, "a/x", 16, 0, 0),
    FirstToken(1 / 3, "a/x"),
    UploadTaken(2.0, "a/main", 3, 0.0, 0.25),
]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with EventsWriter(tmp_path / "run.jsonl") as writer:
        for record in STORY:
            writer.add(record)
    assert list(read_events(tmp_path / "run.jsonl")) == STORY
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_a_file_from_before_a_field_is_read_with_its_default() -> None:
    line = b'{"fact":"Polled","at_s":1.0,"step":2,"free_blocks":3,"growth_blocks":4,"host_free_blocks":5}\n'
    assert decode(line, "f:1") == Polled(1.0, 2, 3, 4, 5, max_running=1024)


def test_a_line_is_one_object_with_the_kind_first() -> None:
    assert encode(FirstToken(1.25, "a/x")) == '{"fact":"FirstToken","at_s":1.25,"call":"a/x"}'


def test_an_interrupted_run_leaves_whole_lines_under_another_name(tmp_path: Path) -> None:
    def interrupted() -> None:
        with EventsWriter(tmp_path / "run.jsonl") as writer:
            writer.add(STORY[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl.partial"]
    assert list(read_events(tmp_path / "run.jsonl.partial")) == STORY[:1]


def test_a_run_that_failed_leaves_nothing(tmp_path: Path) -> None:
    def failed() -> None:
        with EventsWriter(tmp_path / "run.jsonl") as writer:
            writer.add(STORY[0])
            raise TraceError("t.jsonl:7: wrong")

    with pytest.raises(TraceError, match=r"t\.jsonl:7: wrong"):
        failed()
    assert list(tmp_path.iterdir()) == []


def test_an_events_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    writer = EventsWriter(tmp_path / "nowhere" / "run.jsonl")
    with pytest.raises(TraceError, match=r"nowhere/run\.jsonl: cannot be written: no such file or directory"):
        writer.__enter__()


def test_a_number_that_json_lacks_is_refused(tmp_path: Path) -> None:
    with EventsWriter(tmp_path / "run.jsonl") as writer, pytest.raises(TraceError, match="not finite"):
        writer.add(Planned(0.0, {"pin": {"a/main": float("inf")}}))


STRATEGIES: dict[object, st.SearchStrategy[object]] = {
    str: st.text(max_size=12),
    bool: st.booleans(),
    int: st.integers(0, 2**62),
    float: st.floats(0, 1e9),
}


def records(kind: type) -> st.SearchStrategy[Any]:
    """Any that an engine could report: counts are not negative, times are finite."""
    return st.builds(kind, **{name: strategy(hint) for name, hint in get_type_hints(kind).items()})


def strategy(hint: object) -> st.SearchStrategy[object]:
    if hint in STRATEGIES:
        return STRATEGIES[hint]
    if hint == tuple[ToolHint, ...]:
        return st.lists(records(ToolHint), max_size=3).map(tuple)
    if isinstance(hint, UnionType):
        return st.none() | strategy(get_args(hint)[0])
    assert isinstance(hint, type)
    return records(hint)


@pytest.mark.parametrize("kind", get_args(Fact))
@given(st.data())
@settings(max_examples=20)
def test_any_fact_is_read_back(kind: type, data: st.DataObject) -> None:
    fact = data.draw(records(kind))
    assert decode(encode(fact).encode() + b"\n", "f:1") == fact


GOOD = encode(STORY[2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "f:3: the line is cut off"),
        ("\n", "f:3: expected JSON: Expecting value"),
        ("[]\n", "f:3: expected an object, got a list"),
        ('{"at_s": 1}\n', "f:3: fact: expected one of RunStarted, AppStarted"),
        ('{"fact": "Lost", "at_s": 1}\n', 'f:3: fact: expected one of .* got "Lost"'),
        ('{"fact": "FirstToken", "at_s": NaN, "call": "a/x"}\n', "f:3: expected JSON, which has no NaN"),
        ('{"fact": "FirstToken", "at_s": 1e999, "call": "a/x"}\n', "f:3: FirstToken.at_s: expected a finite number"),
        ('{"fact": "FirstToken", "at_s": true, "call": "a/x"}\n', "f:3: FirstToken.at_s: expected a finite number"),
        (
            '{"fact": "FirstToken", "at_s": 1, "call": 3}\n',
            "f:3: FirstToken.call: expected text of at most 10000",
        ),
        ('{"fact": "FirstToken", "at_s": 1}\n', 'f:3: FirstToken: the field "call" is missing'),
        ('{"fact": "FirstToken", "at_s": 1, "call": "a", "b": 1}\n', 'f:3: FirstToken: unknown field "b"'),
        (GOOD.replace('"prompt_tokens":100', '"prompt_tokens":-1') + "\n", "request.prompt_tokens: expected a whole"),
        (GOOD.replace('"depth":1', '"depth":1.5', 1) + "\n", r"CallArrived\.request\.hints\.depth: expected a whole"),
        (GOOD.replace('"declared_s":1.5', '"declared_s":"soon"') + "\n", r"tools\[0\]\.declared_s: expected a finite"),
        ("[" * 100_000 + "\n", "f:3: expected at most a few levels of lists and objects"),
        ('{"fact": "Planned", "at_s": 1, "plan": []}\n', r"f:3: Planned\.plan: expected an object, got a list"),
    ],
)
def test_a_wrong_line_is_told_in_one(line: str, message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        decode(line.encode(), "f:3")
    assert "\n" not in str(caught.value)


def test_binary_and_absent_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff\xfe\n")
    with pytest.raises(TraceError, match="b:1: expected text in UTF-8"):
        list(read_events(tmp_path / "b"))
    with pytest.raises(TraceError, match="absent: cannot be read: No such file"):
        list(read_events(tmp_path / "absent"))


@given(st.binary(max_size=80) | st.binary(max_size=8).map(lambda junk: GOOD.encode()[:40] + junk + GOOD.encode()[40:]))
def test_no_line_makes_anything_but_a_record_or_a_trace_error(line: bytes) -> None:
    try:
        record = decode(line + b"\n", "f:1")
    except TraceError:
        return
    assert json.loads(encode(record))["fact"] == type(record).__name__
