"""Lines that are read without a parser that explains: each means what that one says it means, or is left to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_files import dags, one_app, one_call
from trace_mutations import other_bytes, other_values

from tokencake.traces.apps import Application
from tokencake.traces.files.fields import WrongField
from tokencake.traces.files.strict_json import strict_json
from tokencake.traces.format.application_line import ApplicationLines
from tokencake.traces.format.parser import parse_application
from tokencake.traces.format.writer import application_json

EXAMPLES = Path(__file__).parents[3] / "examples"


def plain(data: bytes) -> Application | None:
    try:
        return parse_application(strict_json(data))
    except WrongField:
        return None


def line(*calls: object, **fields: object) -> bytes:
    return json.dumps(one_app(*calls, **fields)).encode() + b"\n"


@given(data=other_bytes() | other_values())
def test_what_is_read_is_what_the_parser_reads(data: bytes):
    reading = ApplicationLines()
    for one in data.splitlines(keepends=True):
        found = reading.well_formed(one)
        assert found is None or repr(found) == repr(plain(one))


@given(application=dags())
def test_what_is_written_is_well_formed(application: Application):
    data = json.dumps(application_json(application)).encode()
    colons = any(":" in tool.kind for call in application.calls for tool in call.tools)
    assert ApplicationLines().well_formed(data) in ([application, None] if colons else [application])


@pytest.mark.parametrize("name", ["code-writer", "deep-research"])
def test_every_line_of_the_examples_is(name: str):
    reading = ApplicationLines()
    lines = (EXAMPLES / f"{name}.jsonl").read_bytes().splitlines(keepends=True)[1:]
    assert all(repr(reading.well_formed(one)) == repr(plain(one)) for one in lines)


FIELDS = {
    "agent": "main",
    "type": "coder",
    "max_output": 7,
    "pause_s": 2,
    "tools": [{"kind": "web", "duration_s": 3, "declared_s": 5.5, "result": 9}, {"kind": "test", "duration_s": 0}],
    "hints": {"importance": 3, "join_group": None, "similarity": 0.5, "depth": 4, "reusable": True},
}


@pytest.mark.parametrize("left_out", [None, *FIELDS])
def test_every_field_may_be_there(left_out: str | None):
    later = {"id": "d", "after": ["c"], "extends": "c", "keep": 3, "prompt": [["c", 1, 2], ["/s", 4], ["task", 0]]}
    fields = {name: value for name, value in FIELDS.items() if name != left_out}
    data = line(one_call(**fields), {**later, "output": 2, **fields})
    assert plain(data) is not None
    assert repr(ApplicationLines().well_formed(data)) == repr(plain(data))


CALL = b'{"id":"c","prompt":[["%s",10]],"output":5%s}'
APP = b'{"id":"a0","arrival_s":0,"calls":[%s]}\n'


@pytest.mark.parametrize(
    ("source", "more"),
    [
        (b"task", b',"output":6'),
        (b":task", b',"output" :6'),  # as many colons behind quotation marks as there are different fields
        (b":task", b',"output"\t:6'),
        (b"task", b',"\\u006futput":6'),
        (b"task", b',"tools":[{"kind":"web","kind":"test","duration_s":1}]'),
        (b"task", b',"hints":{"depth":1,"depth":2}'),
    ],
)
def test_a_field_given_twice_is_left_to_the_parser(source: bytes, more: bytes):
    data = APP % (CALL % (source, more))
    assert plain(data) is None
    assert ApplicationLines().well_formed(data) is None


@pytest.mark.parametrize("source", [b"https://x/y", b"a: b", b":task"])
def test_colons_in_texts_do_no_harm(source: bytes):
    data = APP % (CALL % (source, b""))
    assert ApplicationLines().well_formed(data) in (plain(data), None)
    assert plain(data) is not None


def test_a_colon_in_a_name_leaves_a_line_well_formed():
    data = APP % (CALL % (b"https://x/y", b',"agent":"team:lead"'))
    assert ApplicationLines().well_formed(data) == plain(data) is not None


WRONG_LATER = [
    one_call(id="d", prompt=[["late", 4]]),  # which is a call's name: an answer that it does not wait for
    one_call(id="d", prompt=[["d", 4]]),
    one_call(id="d", after=["c", "c"]),
    one_call(id="d", after=["late"]),
    one_call(id="d", extends="c"),
    one_call(id="d", agent="c"),
    one_call(id="d", after=["c"], prompt=[["c", 3, 4]]),
    one_call(id="d", keep=1),
    one_call(id="d", max_output=None),
    one_call(id="d", hints=[]),
    one_call(id="d", tools=["web"]),
    one_call(id="d", prompt=[[["d"], 4]]),
]


@pytest.mark.parametrize("entry", WRONG_LATER, ids=str)
def test_what_is_wrong_is_left_to_the_parser(entry: object):
    data = line(one_call(), entry, one_call(id="late"))
    assert ApplicationLines().well_formed(data) is None


@given(data=st.data())
def test_texts_are_kept_once_and_not_for_ever(data: st.DataObject):
    reading = ApplicationLines()
    first, second = (reading.well_formed(line(one_call(type="coder"), id=app)) for app in ("a", "b"))
    assert first is not None
    assert second is not None
    assert first.calls[0].agent_type is second.calls[0].agent_type
