"""A wrong trace is refused with one line that names the file, the line, the field and what was expected."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from trace_files import HEADER, one_app, one_call, written

from tokencake.traces.errors import TraceError
from tokencake.traces.files import input_limits
from tokencake.traces.files.input_limits import LINE_BYTES
from tokencake.traces.format.reader import read_trace, trace_digest

WHOLE = "expected a whole number from 1 to 10000000, got"
TIME = "expected seconds, at least 0 and below 1e+09, got"


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as refused:
        list(read_trace(path))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path)).removeprefix(":").strip()


def two(**fields: object) -> tuple[object, object]:
    """A call `c`, and a call `d` that waits for it."""
    return one_call(), one_call(**{"id": "d", "after": ["c"], **fields})


TOOL = {"kind": "web", "duration_s": 1}
CALLS: list[tuple[tuple[object, ...], str]] = [
    ((one_call(output="x"),), f'calls[0].output: {WHOLE} "x"'),
    ((one_call(output=0),), f"calls[0].output: {WHOLE} 0"),
    ((one_call(output=True),), f"calls[0].output: {WHOLE} true"),
    ((one_call(output=3.0),), f"calls[0].output: {WHOLE} 3.0"),
    ((one_call(output=10_000_001),), f"calls[0].output: {WHOLE} 10000001"),
    ((one_call(output=None),), f"calls[0].output: {WHOLE} null"),
    ((one_call(output=[1]),), f"calls[0].output: {WHOLE} a list"),
    ((one_call(max_output=4),), "calls[0].max_output: expected a whole number from 5 to 2147483647, got 4"),
    ((one_call(pause_s=-1),), f"calls[0].pause_s: {TIME} -1"),
    ((one_call(pause_s=1e9),), f"calls[0].pause_s: {TIME} 1000000000.0"),
    ((one_call(pause_s=True),), f"calls[0].pause_s: {TIME} true"),
    ((one_call(tools={}),), "calls[0].tools: expected a list, got an object"),
    ((one_call(tools=[TOOL, 3]),), "calls[0].tools[1]: expected an object, got 3"),
    ((one_call(tools=[{"kind": "web"}]),), 'calls[0].tools[0]: the field "duration_s" is missing'),
    ((one_call(tools=[TOOL | {"declared_s": None}]),), f"calls[0].tools[0].declared_s: {TIME} null"),
    ((one_call(tools=[TOOL | {"result": -1}]),), "calls[0].tools[0].result: expected a whole number from 0"),
    ((one_call(tools=[TOOL | {"kind": ""}]),), "calls[0].tools[0].kind: expected 1 to 200 printable characters"),
    ((one_call(id="a/b"),), 'calls[0].id: expected 1 to 200 printable characters without "/", got "a/b"'),
    ((one_call(id="x\n"),), 'calls[0].id: expected 1 to 200 printable characters without "/", got "x\\n"'),
    ((one_call(id="\ud800"),), 'calls[0].id: expected 1 to 200 printable characters without "/", got "\\ud800"'),
    ((one_call(id="x" * 201),), 'calls[0].id: expected 1 to 200 printable characters without "/", got "xxx'),
    ((one_call(agent=""),), 'calls[0].agent: expected 1 to 200 printable characters without "/", got ""'),
    ((one_call(), one_call()), 'calls[1].id: expected another id than that of calls[0], got "c"'),
    ((one_call(outptu=3),), 'calls[0]: unknown field "outptu" (did you mean "output"?); known are after, agent,'),
    (({"id": "c"},), 'calls[0]: the field "output" is missing'),
    ((17,), "calls[0]: expected an object, got 17"),
    ((), "calls: expected 1 to 20000 calls, got 0"),
    ((one_call(prompt=[]),), "calls[0].prompt: expected 1 to 2147483647 tokens in all, got 0"),
    (({"id": "c", "output": 1},), "calls[0].prompt: expected 1 to 2147483647 tokens in all, got 0"),
    ((one_call(prompt=[["x", 2**31 - 1], ["x", 9]]),), "calls[0].prompt: expected 1 to 2147483647 tokens in all"),
    ((one_call(prompt=[["x"]]),), "calls[0].prompt[0]: expected [source, tokens] or [source, start, tokens], got"),
    ((one_call(prompt=[["x", 3], "y"]),), "calls[0].prompt[1]: expected [source, tokens] or [source, start, tokens]"),
    ((one_call(prompt=[["x", "3"]]),), 'calls[0].prompt[0][1]: expected a whole number from 0 to 2147483647, got "3"'),
    ((one_call(prompt=[["x", 9, -3]]),), "calls[0].prompt[0][2]: expected a whole number from 0 to 2147483638, got -3"),
    ((one_call(prompt=[[3, 3]]),), "calls[0].prompt[0][0]: expected 1 to 200 printable characters, got 3"),
    ((one_call(prompt=[["c", 3]]),), 'prompt[0][0]: expected the answer of a call that this one waits for, got "c"'),
    (two(after=[], prompt=[["c", 3]]), "calls[1].prompt[0][0]: expected the answer of a call that this one waits for"),
    (two(prompt=[["c", 6]]), 'calls[1].prompt[0]: expected at most the 5 tokens that "c" answers, got 6'),
    (two(prompt=[["c", 3, 3]]), 'calls[1].prompt[0]: expected at most the 5 tokens that "c" answers, got 6'),
    (two(extends="c", keep=16), "calls[1].keep: expected a whole number from 1 to 15, got 16"),
    (two(extends="c", keep=0), "calls[1].keep: expected a whole number from 1 to 15, got 0"),
    (two(keep=3), 'calls[1].keep: expected "extends" beside it'),
    (two(after=[], extends="c"), 'calls[1].extends: expected a call that this one waits for, got "c"'),
    (two(extends="d"), 'calls[1].extends: expected a call that this one waits for, got "d"'),
    (two(after=["e"]), 'calls[1].after[0]: expected a call of this application, got "e"'),
    (two(after=["c", "c"]), 'calls[1].after[1]: expected each call once, got "c" again'),
    (two(after="c"), 'calls[1].after: expected a list, got "c"'),
    ((one_call(after=["c"]),), 'calls: expected no cycle, but "c" waits for "c"'),
    (
        (one_call(after=["e"]), one_call(id="d", after=["c"]), one_call(id="e", after=["d"]), one_call(id="f")),
        'calls: expected no cycle, but "c" waits for "e" waits for "d" waits for "c"',
    ),
    (
        (one_call(agent="main"), one_call(id="d", agent="main")),
        'calls[1].after: expected to wait, directly or not, for "c", an earlier call of agent "main"',
    ),
    ((one_call(hints={"importanec": 3}),), 'calls[0].hints: unknown field "importanec" (did you mean "importance"?)'),
    ((one_call(hints={"similarity": 2}),), "calls[0].hints.similarity: expected a number from 0 to 1, got 2"),
    ((one_call(hints={"critical_path": 1}),), "calls[0].hints.critical_path: expected true or false, got 1"),
    ((one_call(hints={"importance": -1}),), "calls[0].hints.importance: expected a number, at least 0 and below 1e+09"),
    ((one_call(hints=[]),), "calls[0].hints: expected an object, got a list"),
]


@pytest.mark.parametrize(("entries", "message"), CALLS, ids=range(len(CALLS)))
def test_a_wrong_call_is_named(tmp_path: Path, entries: tuple[object, ...], message: str):
    found = refusal(written(tmp_path, one_app(*entries)))
    assert found.startswith("2: calls")
    assert message in found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[]", "2: expected an object, got a list"),
        (b'{"id": "a0"}', '2: the field "arrival_s" is missing'),
        (one_app(one_call(), id=3), '2: id: expected 1 to 200 printable characters without "/", got 3'),
        (one_app(one_call(), arrival_s="0"), f'2: arrival_s: {TIME} "0"'),
        (one_app(one_call(), calls="c"), '2: calls: expected a list, got "c"'),
        (one_app(one_call(), priority=1), '2: unknown field "priority"; known are arrival_s, calls, id'),
        (b'{"id": "a0", "arrival_s": NaN}', "2: expected JSON, which has no NaN"),
        (b'{"id": "a0", "arrival_s": -Infinity}', "2: expected JSON, which has no -Infinity"),
        (b'{"id": "a0", "arrival_s": 1e999, "calls": []}', f"2: arrival_s: {TIME} Infinity"),
        (b'{"id": "a0", "id": "a1"}', '2: expected each field once, got "id" twice'),
        (b'{"id": ' + b"9" * 5000 + b"}", "2: expected numbers of at most 4300 digits, got one of 5000 in column 8"),
        (
            b'{"id": "' + b"9" * 5000 + b'", "b": 1' + b"0" * 4300,
            "2: expected numbers of at most 4300 digits, got one of 4301 in",
        ),
        (b'{"id": 1' + b"0" * 9000 + b".5}", "2: the field"),
        (b"[" * 100_000, "2: expected at most a few levels of lists and objects"),
        (b'{"a":' * 100_000, "2: expected at most a few levels of lists and objects"),
        (b'{"id": "\xff"}', "2: expected text in UTF-8, got byte 0xff in column 9"),
        (b"\x00\x01\x02", "2: expected JSON: Expecting value in column 1"),
        (b'{"id" "a0"}', "2: expected JSON: Expecting ':' delimiter in column 7"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, message: str):
    assert refusal(written(tmp_path, line)).startswith(message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "1: expected JSON: Expecting value in column 1"),
        (b"PK\x03\x04\xf0", "1: expected text in UTF-8, got byte 0xf0 in column 5"),
        ([], '1: format: expected a header {"format": "tokencake.trace", …} in the first line, got a list'),
        (one_app(one_call()), '1: format: expected a header {"format": "tokencake.trace", …} in the first line'),
        (HEADER | {"version": 2}, "1: version: expected 1, the version that is known here, got 2"),
        (HEADER | {"version": "1"}, '1: version: expected a whole number from 1 to 1, got "1"'),
        ({"format": "tokencake.trace"}, '1: the field "version" is missing'),
        (HEADER | {"nmae": "x"}, '1: unknown field "nmae" (did you mean "name"?)'),
        (HEADER | {"applications": -1}, "1: applications: expected a whole number from 0 to 2147483647, got -1"),
        (
            HEADER | {"about": {"a": [1]}},
            "1: about: expected printable text, numbers, true, false or null, got a list at",
        ),
        (HEADER | {"about": {"a": "\ud800"}}, "1: about: expected printable text, numbers, true, false or null, got"),
        (
            b'{"format": "tokencake.trace", "version": 1, "about": {"a": 1e999}}',
            "1: about: expected a finite number at",
        ),
        (HEADER | {"about": 3}, "1: about: expected an object, got 3"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: Any, message: str):
    assert refusal(written(tmp_path, one_app(one_call()), header=header)).startswith(message)


def test_applications_come_in_order_of_arrival(tmp_path: Path):
    path = written(tmp_path, one_app(one_call(), arrival_s=12.5), one_app(one_call(), id="a1", arrival_s=3))
    assert refusal(path) == (
        "3: arrival_s: expected at least 12.5, since a trace is played as it is read and applications have to come in "
        "order of arrival, got 3.0"
    )


@pytest.mark.parametrize(
    ("ids", "again"),
    [
        (["a0", "a1", "a2", "a1"], "a1"),
        (["x", "x"], "x"),
        (["a7", "a6", "a6"], "a6"),
        (["a9", "a10", "a9"], "a9"),
        (["00", "01", "00"], "00"),
        (["a5", "a8", "a6", "a7", "a8"], "a8"),
    ],
)
def test_ids_are_unique_in_a_trace(tmp_path: Path, ids: list[str], again: str):
    path = written(tmp_path, *(one_app(one_call(), id=one) for one in ids))
    assert refusal(path) == f'{len(ids) + 1}: id: expected another id than that of an earlier line, got "{again}"'


def test_ids_that_look_alike_are_different(tmp_path: Path):
    ids = ["a", "a0", "a00", "a1", "a01", "a001", "a10", "a2", "0", "00", "1", "a3", "A3", "a³"]
    path = written(tmp_path, *(one_app(one_call(), id=one) for one in ids))
    assert [application.id for application in read_trace(path)] == ids


def test_a_missing_file_and_a_folder(tmp_path: Path):
    assert refusal(tmp_path / "none.jsonl") == "cannot be read: No such file or directory"
    assert refusal(tmp_path) == "cannot be read: Is a directory"
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        trace_digest(tmp_path / "none.jsonl")


def test_an_empty_file(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"")
    assert "expected a header" in refusal(path)


def test_a_file_that_was_cut_off(tmp_path: Path):
    path = written(tmp_path, one_app(one_call()))
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path).endswith("; the file seems to be cut off")


def test_a_gzip_file_that_was_cut_off_or_is_none(tmp_path: Path):
    path = written(tmp_path, *(one_app(one_call(), id=f"a{i}") for i in range(50)))
    whole = gzip.compress(path.read_bytes())
    for damaged in (whole[:-20], whole[:30] + b"\x55" * 20 + whole[50:], whole[:2] + b"xx"):
        path.write_bytes(damaged)
        assert refusal(path).startswith("expected a whole gzip file, got one that is cut off or damaged")


def test_a_line_without_end(tmp_path: Path):
    path = written(tmp_path, one_app(one_call()), b"x" * LINE_BYTES)
    assert refusal(path) == "3: expected a line of at most 16000000 bytes"


def test_an_application_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(input_limits, "CALLS", 2)
    path = written(tmp_path, one_app(one_call(), one_call(id="d"), one_call(id="e")))
    assert refusal(path) == "2: calls: expected 1 to 2 calls, got 3"


def test_a_line_of_empty_lists_is_refused_before_it_takes_memory(tmp_path: Path):
    path = written(tmp_path, b"[" + b"[]," * 2_000_000 + b"[]]")
    assert refusal(path) == "2: expected at most 2000000 lists and objects, got 2000002"


def test_calls_that_all_wait_for_all_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(input_limits, "EDGES", 5)
    calls = [one_call(id=f"c{at}", after=[f"c{before}" for before in range(at)]) for at in range(4)]
    assert refusal(written(tmp_path, one_app(*calls))) == (
        "2: calls: expected at most 5 entries of all `after` together, got 6"
    )


def test_a_prompt_of_crumbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(input_limits, "SEGMENTS", 2)
    path = written(tmp_path, one_app(one_call(prompt=[["a", 1], ["b", 1], ["c", 1]])))
    assert refusal(path) == "2: calls[0].prompt: expected at most 2 segments, got 3"


def test_a_long_cycle_is_told_in_one_short_line(tmp_path: Path):
    ring = [one_call(id=f"c{i}", after=[f"c{(i + 1) % 100}"]) for i in range(100)]
    message = refusal(written(tmp_path, one_app(*ring)))
    assert message.startswith('2: calls: expected no cycle, but "c0" waits for "c1"')
    assert message.endswith('waits for "c0"')
    assert len(message) < 200


def test_errors_name_the_place_in_the_file_also_if_calls_were_reordered(tmp_path: Path):
    path = written(tmp_path, one_app(one_call(id="d", after=["c"], extends="c", keep=99), one_call()))
    assert refusal(path).startswith("2: calls[0].keep: ")
