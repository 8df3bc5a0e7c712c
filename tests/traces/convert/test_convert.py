"""Recorded chat requests become applications of one call; whatever a file holds, the outcome is a trace or one line."""

import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokens import assert_well_formed, common_prefix, prompt_of

from tokencake.traces.apps import Segment
from tokencake.traces.convert.block_ids import Blocks, common_blocks, covers
from tokencake.traces.convert.formats import FORMATS, convert
from tokencake.traces.errors import TraceError
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace

# blocks


@given(ids=st.lists(st.integers(0, 6), max_size=12), rest=st.integers(0, 9), listed=st.booleans())
def test_runs_of_blocks_say_the_same_as_blocks(ids: list[int], rest: int, listed: bool) -> None:
    """Blocks of 10 tokens, and a rest that has an id (the last one) or none."""
    full = len(ids) - 1 if listed and rest and ids else len(ids)
    tokens = full * 10 + rest
    assert covers(ids, tokens, 10)
    block_by_block = [("s", id * 10 + place) for id in ids[:full] for place in range(10)]
    last = [("s", ids[-1] * 10 + place) if full < len(ids) else ("rest", place) for place in range(rest)]
    segments = Blocks("s", 10).segments(ids, tokens, "rest")
    assert [(source, start + i) for source, start, n in segments for i in range(n)] == block_by_block + last
    assert all(segment.tokens > 0 for segment in segments)


def test_runs_are_as_long_as_possible() -> None:
    assert Blocks("s", 10).segments([4, 5, 6, 8, 9, 9], 60, "rest") == (
        Segment("s", 40, 30),
        Segment("s", 80, 20),
        Segment("s", 90, 10),
    )


@given(left=st.lists(st.integers(0, 2), max_size=6), right=st.lists(st.integers(0, 2), max_size=6))
def test_common_blocks_are_the_longest_common_prefix(left: list[int], right: list[int]) -> None:
    common = common_blocks(left, right)
    assert left[:common] == right[:common]
    assert left[common : common + 1] != right[common : common + 1] or common == len(left) == len(right)


# Mooncake


def mooncake_line(timestamp: float = 0, tokens: int = 700, output: int = 5, ids: object = (0, 1)) -> str:
    fields = {"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": ids}
    return json.dumps(fields) + "\n"


def test_a_mooncake_request_is_an_application_of_one_call(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(mooncake_line() + "\n" + mooncake_line(1_500, 1_100, 7, [0, 5, 6]), encoding="utf-8")
    first, second = convert(path, "mooncake")
    for application in (first, second):
        assert_well_formed(application)
    assert (first.id, first.arrival_s, second.id, second.arrival_s) == ("r0", 0.0, "r1", 1.5)
    assert first.calls[0].prompt.segments == (Segment("/blocks", 0, 700),)
    assert second.calls[0].prompt.segments == (Segment("/blocks", 0, 512), Segment("/blocks", 5 * 512, 1_100 - 512))
    assert second.calls[0].output_tokens == second.calls[0].max_output_tokens == 7
    assert common_prefix(prompt_of(first, "r0/call"), prompt_of(second, "r1/call")) == 512


# Azure


def test_an_azure_request_is_an_application_of_one_call(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\r\n"
    path.write_bytes(b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + rows.encode())
    first, second = convert(path, "azure")
    assert (first.arrival_s, second.arrival_s) == (0.0, 0.052)
    assert first.calls[0].prompt.segments == (Segment("r0/prompt", 0, 4808),)
    assert (second.calls[0].prompt_tokens, second.calls[0].output_tokens) == (3180, 8)


def test_requests_keep_their_times_unless_a_rate_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(mooncake_line(0) + mooncake_line(9_000) + mooncake_line(9_000), encoding="utf-8")
    assert [a.arrival_s for a in convert(path, "mooncake")] == [0, 9, 9]
    assert [a.arrival_s for a in convert(path, "mooncake", rate=4.0)] == [0, 0.25, 0.5]


def test_requests_are_read_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(mooncake_line() * 3 + "broken\n", encoding="utf-8")
    assert [a.id for a in islice(convert(path, "mooncake"), 3)] == ["r0", "r1", "r2"]


# bad input

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TIME = "2023-11-16 18:17:03.97"
BAD: list[tuple[str, str, str]] = [
    ("mooncake", "broken", ":1: expected JSON, but Expecting value"),
    ("mooncake", "[]", ": expected at least one request, got none"),
    ("mooncake", "[1]", ": [0]: expected an object, got 1"),
    ("mooncake", f"[{mooncake_line()} {mooncake_line()}]", ":2: expected a comma or the end of the list behind [0]"),
    ("mooncake", f"[{mooncake_line()}", ":2: expected a comma or the end of the list behind [0], got the end of the"),
    ("mooncake", f"[{mooncake_line()}] []", ":2: expected nothing behind the list"),
    (
        "mooncake",
        mooncake_line() + '{"timestamp": 1, "timestamp": 2}',
        ':2: expected JSON, but it holds the field "time',
    ),
    ("mooncake", mooncake_line() + mooncake_line(tokens=-1), ":2: input_length: expected a whole number from 1 to"),
    ("mooncake", mooncake_line(ids=[]), ":1: hash_ids: expected an id for each 512 of the 700 tokens (--block-"),
    ("mooncake", mooncake_line(ids=[0, 2**64]), ":1: hash_ids: expected whole numbers from 0 to 18446744073709551615"),
    ("mooncake", mooncake_line(ids=[0, -1]), ":1: hash_ids: expected whole numbers from 0 to 18446744073709551615"),
    ("mooncake", mooncake_line(5) + mooncake_line(4), ":2: timestamp: expected a time that is not before the previous"),
    ("mooncake", mooncake_line(float("inf")), ":1: expected JSON, but it holds Infinity, which is no number"),
    ("mooncake", '{"timestamp": 1e999}', ":1: timestamp: expected a time, a number of at least 0, got Infinity"),
    ("azure", "", ":1: expected the columns TIMESTAMP, ContextTokens, GeneratedTokens, found no TIMESTAMP, Context"),
    ("azure", "TIMESTAMP,ContextTokens\n", ":1: expected the columns TIMESTAMP, ContextTokens, GeneratedTokens, found"),
    ("azure", f"{HEADER}{TIME},x,1\n", ':2: ContextTokens: expected a whole number from 1 to 2147483647, got "x"'),
    (
        "azure",
        f"{HEADER}{TIME},5,0\n",
        ": expected at least one request, got only requests without an answer: 1 (first: ",
    ),
    ("azure", f"{HEADER}{TIME},5,-1\n", ':2: GeneratedTokens: expected a whole number from 1 to 2147483647, got "-1"'),
    ("azure", f"{HEADER}{TIME},5\n", ":2: expected 3 columns, got 2"),
    ("azure", f"{HEADER}{TIME},5,1,9\n", ":2: expected 3 columns, got 4"),
    ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens,TIMESTAMP\n", ":1: expected columns of different names"),
    ("azure", f"{HEADER}17,5,1\n", ":2: TIMESTAMP: expected a time since 1970, or --time-unit beside it, got 17"),
    ("azure", f"{HEADER}now,5,1\n", ':2: TIMESTAMP: expected a time such as 2023-11-16 18:17:03.9799600, got "now"'),
    ("azure", f"{HEADER}{TIME},5,1\n{TIME[:-3]},5,1\n", ":3: TIMESTAMP: expected a time that is not before the prev"),
    ("azure", f"{HEADER}{TIME},5,1\n{TIME}+00:00,5,1\n", ":3: TIMESTAMP: expected a time zone in all times or in none"),
    ("azure", f"{HEADER}{TIME},{'9' * 200_000},1\n", ":2: expected CSV, but field larger than field limit"),
]


@pytest.mark.parametrize(("source_format", "content", "message"), BAD, ids=range(len(BAD)))
def test_bad_requests_are_named_in_one_line(tmp_path: Path, source_format: str, content: str, message: str) -> None:
    path = tmp_path / "trace"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TraceError) as error:
        list(convert(path, source_format))
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source_format", FORMATS)
def test_a_missing_file_is_named(tmp_path: Path, source_format: str) -> None:
    with pytest.raises(TraceError, match="gone: cannot be read: No such file or directory"):
        list(convert(tmp_path / "gone", source_format))


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="format 'otel': expected one of agentic-coding, mooncake, azure"):
        convert(tmp_path, "otel")


GOOD = {
    "mooncake": mooncake_line() + mooncake_line(10),
    "azure": f"{HEADER}{TIME},5,1\n{TIME},6,2\n",
    "agentic-coding": json.dumps(
        {
            "id": "a",
            "block_size": 64,
            "hash_id_scope": "local",
            "requests": [
                {"type": "n", "t": 0, "in": 70, "out": 1, "hash_ids": [1], "stop": "", "api_time": 1.0, "model": "m"},
                {
                    "type": "subagent",
                    "t": 4,
                    "agent_id": "b",
                    "subagent_type": "c",
                    "duration_ms": 9,
                    "requests": [{"type": "s", "t": 0, "in": 64, "out": 1, "hash_ids": [2]}],
                },
                {"type": "n", "t": 5, "in": 129, "out": 1, "hash_ids": [1, 3], "input_types": ["tool_result"]},
            ],
        }
    ),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "trace"


def trace_or_one_line(path: Path, source_format: str) -> None:
    """The only two outcomes that there may be."""
    try:
        applications = list(convert(path, source_format))
    except TraceError as error:
        message = str(error)
    else:
        for application in applications:
            assert_well_formed(application)
        message = f"{path}: read"
    assert message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize("source_format", FORMATS)
@given(at=st.floats(0, 1), dropped=st.integers(0, 4), inserted=st.binary(max_size=4))
def test_a_damaged_file_is_read_or_refused(
    scratch: Path, source_format: str, at: float, dropped: int, inserted: bytes
) -> None:
    content = GOOD[source_format].encode()
    cut = round(at * len(content))
    scratch.write_bytes(content[:cut] + inserted + content[cut + dropped :])
    trace_or_one_line(scratch, source_format)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 500)
    | st.just(2**40)
    | st.floats()
    | st.sampled_from(["", "n", "subagent", "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["t", "type", "requests"]), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("source_format", ["agentic-coding", "mooncake"])
@given(data=st.data())
def test_a_value_of_any_kind_is_read_or_refused(scratch: Path, source_format: str, data: st.DataObject) -> None:
    lines = GOOD[source_format].splitlines()
    document = json.loads(lines[0])
    places = list(_places(document))
    replace = data.draw(st.sampled_from(places))
    replace(data.draw(json_values))
    scratch.write_text("\n".join([json.dumps(document), *lines[1:]]), encoding="utf-8")
    trace_or_one_line(scratch, source_format)


def _places(node: Any) -> list[Callable[[object], None]]:
    """For each value inside a JSON document, a function that puts another one there."""
    inside = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    here = [partial(node.__setitem__, key) for key, _ in inside]
    return [*here, *(place for _, child in inside for place in _places(child))]


# what converts can be written and read


@pytest.mark.parametrize("source_format", FORMATS)
def test_a_converted_trace_is_read_as_it_was_written(tmp_path: Path, source_format: str) -> None:
    path = tmp_path / "source"
    path.write_text(GOOD[source_format], encoding="utf-8")
    applications = list(convert(path, source_format))
    write_trace(tmp_path / "out.jsonl", applications)
    assert list(read_trace(tmp_path / "out.jsonl")) == applications
