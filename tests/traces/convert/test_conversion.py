"""Nothing that changes what a row means is left out, ignored or assumed in silence."""

import gzip
import json
import lzma
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokens import common_prefix, prompt_of

from tokencake.cli import cli
from tokencake.traces.apps import Segment
from tokencake.traces.convert.conversion import Conversion, ConversionOptions
from tokencake.traces.convert.fidelity import Fidelity, Served
from tokencake.traces.convert.formats import FORMATS, convert
from tokencake.traces.errors import TraceError
from tokencake.traces.files.source_file import forget
from tokencake.traces.format.reader import read_trace
from tokencake.traces.inspect.inspection import inspect_trace

Row = dict[str, Any]


def chat(timestamp: float = 0, tokens: int = 700, output: int | None = 5, ids: object = (0, 1), **more: object) -> Row:
    """A row of a Mooncake trace."""
    return {"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": ids, **more}


def ask(t: float, ids: list[int], **more: object) -> Row:
    """A request of a coding conversation, of full blocks, that takes 2 s."""
    return {"t": t, "type": "n", "in": 64 * len(ids), "out": 5, "hash_ids": ids, "api_time": 2.0, **more}


def talk(name: str, *requests: Row, **more: object) -> Row:
    return {"id": name, "block_size": 64, "hash_id_scope": "local", "requests": list(requests), **more}


def lines(*rows: Row) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(*rows: str, more: str = "") -> str:
    return "\n".join([f"TIMESTAMP,ContextTokens,GeneratedTokens{more}", *rows]) + "\n"


GOOD = {
    "mooncake": lines(chat(0), chat(1_000), chat(2_500, ids=[0, 7])),
    "azure": table("2023-11-16 18:17:03.5,5,1", "2023-11-16 18:17:04,6,2"),
    "agentic-coding": lines(talk("a", ask(0, [1]), ask(5, [1, 2])), talk("b", ask(0, [1]))),
}


class Converted:
    """What a conversion gave, and what it said."""

    def __init__(self, path: Path, source_format: str, content: str, **asked: Any) -> None:
        path.write_text(content, encoding="utf-8")
        self.conversion = Conversion(ConversionOptions(**asked))
        self.applications = list(convert(path, source_format, conversion=self.conversion))
        self.words = "\n".join(self.conversion.words())

    @property
    def arrivals_s(self) -> list[float]:
        return [application.arrival_s for application in self.applications]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


def refusal(path: Path, source_format: str, content: str, **asked: Any) -> str:
    with pytest.raises(TraceError) as error:
        Converted(path, source_format, content, **asked)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


# fields

NEIGHBOURS: list[tuple[str, str, str]] = [
    ("mooncake", lines(chat(), chat(session_id="s", delay=3)), ":2: delay: unknown field of mooncake"),
    ("mooncake", lines(chat(), chat(wait_for=["r0"])), ":2: wait_for: unknown field"),
    ("mooncake", lines(chat(tool_wait_ms=70)), ":1: tool_wait_ms: unknown field"),
    ("mooncake", lines(chat(branches=[])), ":1: branches: unknown field"),
    ("mooncake", lines(chat(prefix_reset=True)), ":1: prefix_reset: unknown field"),
    ("mooncake", lines(chat(61.1, chat_id=1, parent_chat_id=-1, type="text", turn=1)), ":1: chat_id: unknown"),
    ("azure", table("2023-11-16 18:17:03,5,1,7", more=",SessionId"), ":2: SessionId: unknown field of azure"),
    ("agentic-coding", lines(talk("a", ask(0, [1]), version=2)), ": version: unknown field of agentic-coding"),
    ("agentic-coding", lines(talk("a", ask(0, [1], parent=3))), ": requests[0].parent: unknown field"),
    (
        "agentic-coding",
        lines(talk("a", ask(0, [1]), {"type": "subagent", "requests": [ask(0, [1], wait_for=[])]})),
        ": requests[1].requests[0].wait_for: unknown field",
    ),
]


@pytest.mark.parametrize(("source_format", "content", "message"), NEIGHBOURS)
def test_a_neighbouring_dialect_is_refused_by_its_field(
    source: Path, source_format: str, content: str, message: str
) -> None:
    assert refusal(source, source_format, content).startswith(message)


def test_a_refusal_counts_the_rows_of_the_whole_file(source: Path) -> None:
    rows = [chat(), chat(delay=1), chat(delay=2, session_id="s"), chat(), chat(delay=3)]
    assert refusal(source, "mooncake", lines(*rows)) == (
        ":2: delay: unknown field of mooncake, which may change what a row means, in 3 rows;"
        " also session_id (1 row); --ignore-field NAME goes on without it"
    )


def test_a_field_that_is_not_known_is_named_before_what_is_wrong_behind_it(source: Path) -> None:
    assert refusal(source, "mooncake", lines(chat(delay=1)) + "broken").startswith(":1: delay: unknown field")


def test_a_field_that_says_nothing_is_no_field(source: Path) -> None:
    assert len(Converted(source, "mooncake", lines(chat(session_id=None))).applications) == 1


def test_a_field_with_a_strange_name_fits_into_a_line(source: Path) -> None:
    message = refusal(source, "mooncake", lines(chat(**{"a\nb\x1b[31m": 1})))
    assert message.startswith(r':1: "a\nb\u001b[31m": unknown field')


def test_an_ignored_field_is_said_to_be(source: Path) -> None:
    done = Converted(source, "mooncake", lines(chat(delay=1), chat()), ignored_fields={"delay", "dealy"})
    assert "ignored: the field delay in 1 row" in done.words
    assert "ignored: the field dealy, which no row has" in done.words


def test_a_harmless_field_may_be_ignored_by_name(source: Path) -> None:
    done = Converted(source, "mooncake", lines(chat(model="m")), ignored_fields={"model"})
    assert "ignored: the field model in 1 row" in done.words


@pytest.mark.parametrize(("source_format", "name"), [("mooncake", "hash_ids"), ("agentic-coding", "think_time")])
def test_a_field_that_says_what_a_row_means_cannot_be_ignored(source: Path, source_format: str, name: str) -> None:
    message = refusal(source, source_format, GOOD[source_format], ignored_fields={name})
    assert message.startswith(f"--ignore-field {name}: {source_format} has this field")


@given(data=st.data(), name=st.text(min_size=1, max_size=8), value=st.integers() | st.text() | st.booleans())
def test_any_other_field_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str, value: object
) -> None:
    """A conversation with every known kind of object, and one more field in one of them."""
    inside = [ask(0, [3])]
    child = {"t": 9, "type": "subagent", "agent_id": "x", "subagent_type": "y", "requests": inside}
    document = talk("a", ask(0, [1]), child, ask(12, [1, 2]))
    objects: list[Row] = [document, child, *document["requests"][::2], *inside]
    where = data.draw(st.sampled_from(objects))
    known = {field for lists in FORMATS["agentic-coding"].fields for field in lists.understood | lists.harmless}
    if name in known:
        return
    where[name] = value
    path = tmp_path_factory.getbasetemp() / "strange.json"
    assert "unknown field of agentic-coding" in refusal(path, "agentic-coding", json.dumps(document))


# block ids


def test_ids_of_one_conversation_are_its_own_and_global_ids_are_everybodys(source: Path, tmp_path: Path) -> None:
    """640 of 1,408 prompt tokens are the same in both conversations."""
    both = [[*range(10), own] for own in (100, 101)]
    for scope, across in (("local", 0.0), (None, 0.0), ("global", 640 / 1_408)):
        talks = [talk(f"c{own}", ask(0, ids), hash_id_scope=scope) for own, ids in enumerate(both)]
        source.write_text(lines(*talks), encoding="utf-8")
        run("trace", "convert", str(source), str(tmp_path / "out"), "--from", "agentic-coding")
        assert inspect_trace(read_trace(tmp_path / "out")).shared_across == pytest.approx(across)
    assert (
        "no hash_id_scope: taken for local"
        in Converted(source, "agentic-coding", lines(talks[0] | {"hash_id_scope": None})).words
    )


def test_global_ids_of_blocks_of_another_size_are_other_content(source: Path) -> None:
    talks = [talk("a", ask(0, [1]), hash_id_scope="global")]
    talks.append(talk("b", ask(0, [1]) | {"in": 32}, hash_id_scope="global", block_size=32))
    first, second = Converted(source, "agentic-coding", lines(*talks)).applications
    assert first.calls[0].prompt.segments[0].source != second.calls[0].prompt.segments[0].source


def test_a_scope_that_is_not_known_is_refused(source: Path) -> None:
    content = lines(talk("a", ask(0, [1]), hash_id_scope="shard"))
    assert refusal(source, "agentic-coding", content).startswith(': hash_id_scope: expected "local" or "global", got')


def test_hashes_are_numbered_as_they_come(source: Path) -> None:
    """Ids of 64 bits beside small ones: equal ones stay equal, consecutive new ones are one segment."""
    a, b, c, d = 2**64 - 1, 2**63, 2**40, 2**50
    rows = [chat(ids=[5, a, b, c], tokens=2_048), chat(ids=[5, a, b, d], tokens=2_048)]
    first, second = Converted(source, "mooncake", lines(*rows)).applications
    assert first.calls[0].prompt.segments == (Segment("/blocks", 5 * 512, 512), Segment("/blocks-hashes", 0, 3 * 512))
    assert common_prefix(prompt_of(first, "r0/call"), prompt_of(second, "r1/call")) == 3 * 512


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 4_194_302, 4_194_303, 2**40, 2**64 - 1]), min_size=1), min_size=2))
def test_equal_ids_are_equal_content_and_others_are_not(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "ids.jsonl"
    rows = [chat(ids=ids, tokens=512 * len(ids)) for ids in prompts]
    blocks: dict[tuple[str, int], int] = {}
    for application, ids in zip(Converted(path, "mooncake", lines(*rows)).applications, prompts, strict=True):
        content = [
            (source, start + 512 * block)
            for source, start, tokens in application.calls[0].prompt.segments
            for block in range(tokens // 512)
        ]
        assert [blocks.setdefault(place, one) for place, one in zip(content, ids, strict=True)] == ids
    assert len(set(blocks.values())) == len(blocks)


def test_blocks_of_another_size_are_found_out(source: Path) -> None:
    rows = [chat(ids=list(range(7)), tokens=100), chat(ids=[1, 2], tokens=32)]
    done = Converted(source, "mooncake", lines(*rows))
    assert "blocks are 16 tokens (the only power of two that fits the first 2 rows)" in done.words
    assert done.applications[0].calls[0].prompt.segments == (Segment("/blocks", 0, 100),)


def test_blocks_of_an_unclear_size_are_asked_for(source: Path) -> None:
    rows = lines(chat(ids=[0, 1, 2], tokens=1_200))
    assert refusal(source, "mooncake", lines(chat(ids=[0], tokens=1_200))).startswith(
        ":1: hash_ids: expected an id for each 512 of the 1200 tokens (blocks of 1024, 2048,"
    )
    assert refusal(source, "mooncake", lines(chat(ids=[0, 1, 2, 3, 4], tokens=48))).startswith(
        ":1: hash_ids: expected an id for each 512 of the 48 tokens (no power of two fits, either;"
    )
    assert "blocks are 500 tokens (as asked)" in Converted(source, "mooncake", rows, block_tokens=500).words
    assert "(--block-tokens says another size)" in refusal(
        source, "mooncake", lines(chat()) + rows.replace("1200", "9000")
    )


def test_the_size_of_blocks_is_asked_for_where_it_is_missing_and_only_there(source: Path) -> None:
    content = lines(talk("a", ask(0, [1]), block_size=None))
    assert refusal(source, "agentic-coding", content).startswith(": block_size: expected a whole number from 1")
    assert "blocks are 64 tokens (as asked)" in Converted(source, "agentic-coding", content, block_tokens=64).words
    stated = GOOD["agentic-coding"]
    assert refusal(source, "agentic-coding", stated, block_tokens=32).startswith(
        ": block_size: expected 32, which --bl"
    )
    assert refusal(source, "azure", GOOD["azure"], block_tokens=32) == "--block-tokens: azure has no blocks"


# times

EPOCH = 1_760_000_000


@pytest.mark.parametrize(("unit", "per_s"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)])
def test_times_since_1970_tell_their_unit_and_count_from_the_first(source: Path, unit: str, per_s: int) -> None:
    rows = [chat(at * per_s if per_s == 1 else round(at * per_s)) for at in (EPOCH, EPOCH + 0.5, EPOCH + 3)]
    done = Converted(source, "mooncake", lines(*rows))
    assert done.arrivals_s == [0, 0.5, 3]
    assert f"times are {unit} since 1970 (by their size), and count from the first, 2025-10-09 08:53:20" in done.words


def test_other_times_are_as_documented_or_as_asked(source: Path) -> None:
    rows = lines(chat(1_000), chat(2_500))
    plain = Converted(source, "mooncake", rows)
    assert plain.arrivals_s == [1, 2.5]
    assert "times are ms (as documented), and count from where the recording's 0 is" in plain.words
    asked = Converted(source, "mooncake", rows, time_unit="s")
    assert asked.arrivals_s == [1_000, 2_500]
    assert "times are s (as asked)" in asked.words
    fractions = Converted(source, "mooncake", lines(chat(0.5), chat(1.25)))
    assert "if they are seconds, say --time-unit s" in fractions.words


def test_a_unit_that_cannot_be_is_refused(source: Path) -> None:
    message = refusal(source, "mooncake", lines(chat(EPOCH * 1_000)), time_unit="s")
    assert message.startswith(":1: timestamp: expected a time in s, before the year 2103, got 1760000000000")


def test_a_table_may_have_numbers_for_times(source: Path) -> None:
    done = Converted(source, "azure", table(f"{EPOCH}000,5,1", f"{EPOCH}250,5,1"))
    assert done.arrivals_s == [0, 0.25]
    assert Converted(source, "azure", table("1.5,5,1", "2.5,5,1"), time_unit="s").arrivals_s == [1.5, 2.5]
    mixed = table(f"{EPOCH},5,1", "2025-10-09 08:53:21,5,1")
    assert refusal(source, "azure", mixed).startswith(":3: TIMESTAMP: expected a number, as --time-unit or the rows")
    assert refusal(source, "azure", GOOD["azure"], time_unit="s").startswith(":2: TIMESTAMP: expected a number, as")


def test_a_conversations_times_may_be_since_1970_or_in_another_unit(source: Path) -> None:
    seconds = [ask(EPOCH, [1]), ask(EPOCH + 5.5, [1, 2])]
    child = {
        "t": EPOCH + 5,
        "type": "subagent",
        "agent_id": "x",
        "subagent_type": "y",
        "requests": [ask(EPOCH + 3, [3])],
    }
    for requests, unit in (
        (seconds, None),
        ([ask(0, [1]), ask(5_500, [1, 2])], "ms"),
        ([seconds[0], child, seconds[1]], None),
    ):
        if unit:
            requests = [one | {"api_time": 2_000} for one in requests]
        done = Converted(source, "agentic-coding", lines(talk("a", *requests)), time_unit=unit)
        assert done.conversion.fidelity.worst is not None
        assert done.conversion.fidelity.worst.recorded_s == done.conversion.fidelity.worst.played_s == 7.5


def test_an_end_that_only_the_next_pause_tells(source: Path) -> None:
    """The first request began at 0 and took what lies before the 3 s that passed until the second, at 10."""
    first, second = ask(0, [1], api_time=None), ask(10, [1, 2], think_time=3.0)
    done = Converted(source, "agentic-coding", lines(talk("a", first, second)))
    assert done.applications[0].calls[1].pause_s == 3.0
    assert done.conversion.fidelity.endless == 0


def test_a_pause_that_began_long_before_is_not_the_answers_end(source: Path) -> None:
    """`think_time` may count from an answer before the last one; then nothing tells when the last one ended."""
    requests = [ask(0, [1]), ask(5, [1, 2], api_time=None), ask(10, [1, 2, 3], think_time=8.0)]
    done = Converted(source, "agentic-coding", lines(talk("a", *requests)))
    assert done.applications[0].calls[2].pause_s == 5.0
    assert "no recorded end: 1 request, whose time is part of the wait behind them" in done.words


# rows without an answer


@pytest.mark.parametrize("none", [0, None])
def test_a_request_without_an_answer_is_left_out_or_kept_or_refused(source: Path, none: int | None) -> None:
    content = lines(chat(0), chat(1_000, output=none), chat(2_000))
    skipped = Converted(source, "mooncake", content)
    assert [application.id for application in skipped.applications] == ["r0", "r2"]
    assert f"left out: requests without an answer: 1 (first: {source}:2)" in skipped.words
    kept = Converted(source, "mooncake", content, bad_rows="keep")
    assert [application.calls[0].output_tokens for application in kept.applications] == [5, 1, 5]
    assert "kept, with one token of answer where none is recorded: requests without an answer: 1" in kept.words
    assert not kept.conversion.left_out
    assert refusal(source, "mooncake", content, bad_rows="fail").startswith(":2: output_length: expected at least one")


def test_an_empty_cell_is_no_answer(source: Path) -> None:
    done = Converted(source, "azure", table("2023-11-16 18:17:03,5,", "2023-11-16 18:17:04,6,2"))
    assert done.arrivals_s == [1], "the recording begins with the row that is left out"


def test_a_request_without_a_prompt_has_nothing_to_keep(source: Path) -> None:
    content = lines(chat(tokens=0, ids=[]), chat())
    done = Converted(source, "mooncake", content, bad_rows="keep")
    assert len(done.applications) == 1
    assert f"left out: requests without a prompt: 1 (first: {source}:1)" in done.words


@pytest.mark.parametrize("failure", [{"out": 0, "stop": "error"}, {"out": 7, "stop": "cancelled"}, {"out": 0}])
def test_what_stood_around_a_failed_request_stays_as_it_was(source: Path, failure: Row) -> None:
    """It ran from 5 to 7 s; the next one, at 9 s, waits for the one before, and goes on with its context."""
    requests = [ask(0, [1]), ask(5, [1, 2], **failure), ask(9, [1, 2, 3, 4])]
    content = lines(talk("a", *requests), talk("empty"))
    done = Converted(source, "agentic-coding", content)
    first, last = done.applications[0].calls
    assert (last.after, last.pause_s, last.prompt.extends, last.prompt.keep_tokens) == ((first.id,), 7.0, first.id, 64)
    assert last.prompt_tokens == 4 * 64
    assert sum(found.rows for found in done.conversion.left_out.values()) == 2
    assert f"left out: conversations without requests: 1 (first: {source}:2)" in done.words
    kept = Converted(source, "agentic-coding", content, bad_rows="keep").applications[0].calls
    assert [(call.output_tokens, call.pause_s) for call in kept] == [(5, 0), (failure["out"] or 1, 3), (5, 2)]


def test_a_sub_agent_without_requests_is_said_to_be_left_out(source: Path) -> None:
    child = {"t": 5, "type": "subagent", "agent_id": "x", "subagent_type": "y", "duration_ms": 3_000, "requests": []}
    done = Converted(source, "agentic-coding", lines(talk("a", ask(0, [1]), child, ask(6, [1, 2]))))
    assert f"left out: sub-agents without requests: 1 (first: {source}: requests[1])" in done.words


def test_nothing_but_bad_rows_is_refused(source: Path) -> None:
    assert refusal(source, "mooncake", lines(chat(output=0))).startswith(
        ": expected at least one request, got only requ"
    )


@given(outputs=st.lists(st.integers(0, 2), min_size=1, max_size=8), bad_rows=st.sampled_from(["skip", "keep"]))
def test_every_row_is_in_the_trace_or_counted(
    tmp_path_factory: pytest.TempPathFactory, outputs: list[int], bad_rows: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.json"
    requests = [ask(4 * at, list(range(at + 1)), out=out) for at, out in enumerate([1, *outputs])]
    done = Converted(path, "agentic-coding", lines(talk("a", *requests)), bad_rows=bad_rows)
    calls = len(done.applications[0].calls)
    assert calls + sum(found.rows for found in done.conversion.left_out.values()) == len(requests)
    assert done.conversion.rows == len(requests)


# wrappings


def wrapped(text: str, json_rows: bool) -> Iterator[tuple[str, bytes]]:
    """The same rows in every way in which they come."""
    plain = text.encode()
    yield "", plain
    yield ".gz", gzip.compress(plain)
    yield ".xz", lzma.compress(plain)
    yield ".zst", zstandard.compress(plain)
    yield "", b"\xef\xbb\xbf" + plain
    yield "", plain.replace(b"\n", b"\r\n")
    if json_rows:
        rows = [json.loads(line) for line in text.splitlines()]
        yield "", json.dumps(rows).encode()
        yield "", json.dumps(rows, indent=1).encode()
        yield "", "\n\n".join(json.dumps(row, indent=2) for row in rows).encode()
        yield ".gz", gzip.compress(json.dumps(rows).encode())


@pytest.mark.parametrize("source_format", FORMATS)
def test_wrapping_changes_nothing(tmp_path: Path, source_format: str) -> None:
    expected = None
    for number, (suffix, content) in enumerate(wrapped(GOOD[source_format], source_format != "azure")):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        found = list(convert(path, source_format))
        expected = expected or found
        assert found == expected


@pytest.mark.parametrize("source_format", FORMATS)
def test_a_pipe_and_standard_input_are_read(tmp_path: Path, source_format: str) -> None:
    expected = list(convert(written(tmp_path / "plain", GOOD[source_format]), source_format))
    out = str(tmp_path / "out.jsonl")
    run("trace", "convert", "-", out, "--from", source_format, given=gzip.compress(GOOD[source_format].encode()))
    assert list(read_trace(out)) == expected
    reading, writing = os.pipe()
    os.write(writing, GOOD[source_format].encode())
    os.close(writing)
    assert list(convert(f"/dev/fd/{reading}", source_format)) == expected
    os.close(reading)


def test_a_folder_is_read_by_name_whatever_its_files_are_wrapped_in(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    written(folder / "c.json", json.dumps(talk("c", ask(0, [1]))))
    written(folder / "a.jsonl", lines(talk("a1", ask(0, [1])), talk("a2", ask(0, [1]))))
    (folder / "b.json.gz").write_bytes(gzip.compress(json.dumps([talk("b", ask(0, [1]))]).encode()))
    written(folder / "README.md", "# words")
    conversion = Conversion()
    found = list(convert(folder, "agentic-coding", conversion=conversion))
    assert [application.id for application in found] == ["a1", "a2", "b", "c"]
    assert "not read: 1 other names in the folder (first: README.md)" in conversion.words()


def test_a_long_list_is_read_in_pieces(tmp_path: Path) -> None:
    """3 MB of rows, and rows of which each is longer than what is read at once."""
    rows = [chat(at, tokens=512 * 50, ids=list(range(at, at + 50))) for at in range(8_000)]
    path = written(tmp_path / "long.json", json.dumps(rows))
    assert sum(1 for _ in convert(path, "mooncake")) == 8_000
    wide = [talk(str(at), ask(0, list(range(80_000)))) for at in range(3)]
    for text in (json.dumps(wide), lines(*wide)):
        assert sum(1 for _ in convert(written(path, text), "agentic-coding")) == 3


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "large.json", "[" + json.dumps(talk("a")) + ", {" + " " * 49_000_000)
    with pytest.raises(TraceError, match=r"\[1\]: expected at most 48000000 characters"):
        list(convert(path, "agentic-coding"))
    path = written(tmp_path / "parts.json", '{"id": [' + "[]," * 510_000)
    with pytest.raises(TraceError, match="expected at most 500000 lists and objects"):
        list(convert(path, "agentic-coding"))
    path = written(tmp_path / "entries.json", '{"id": [' + "1," * 5_100_000)
    with pytest.raises(TraceError, match="expected at most 5000000 entries"):
        list(convert(path, "agentic-coding"))
    path = written(tmp_path / "blank.json", " " * 10_300_000)
    with pytest.raises(TraceError, match="expected at most 10000000 blanks"):
        list(convert(path, "agentic-coding"))


def test_a_value_may_be_almost_as_large_as_is_allowed(tmp_path: Path) -> None:
    """40 MB of hashes, and more behind them."""
    wide = talk("a", ask(0, list(range(2**63, 2**63 + 1_900_000))))
    path = written(tmp_path / "wide.jsonl", lines(wide, talk("b", ask(0, [1]))) + " " * 9_000_000)
    assert [application.id for application in convert(path, "agentic-coding")] == ["a", "b"]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# when sub-agents ran


def in_between(sub_agent: Row) -> list[Row]:
    """A sub-agent from 2.5 to 12.5 s beside its parent, whose next requests begin at 8 s and at 14 s."""
    fields = {"type": "subagent", "agent_id": "x", "subagent_type": "y", "status": "completed"}
    return [ask(0, [1]), fields | sub_agent, ask(8, [1, 2]), ask(14, [1, 2, 3])]


def test_a_sub_agents_time_is_its_end_or_its_start(source: Path) -> None:
    """The same session as the two kinds of recordings have it."""
    inside = [ask(0, [7]), ask(6, [7, 8])]
    ended = {"t": 12.5, "duration_ms": 10_000, "requests": inside}
    began = {"t": 2.5, "duration_ms": 10_000, "requests": [one | {"t": one["t"] + 2.5} for one in inside]}
    as_ended = Converted(source, "agentic-coding", lines(talk("a", *in_between(ended))))
    as_began = Converted(source, "agentic-coding", lines(talk("a", *in_between(began))))
    assert as_ended.applications == as_began.applications
    assert "t of sub-agents is when they ended, and their requests count from their start" in as_ended.words
    assert "t of sub-agents is when they began, where their requests or status say so" in as_began.words
    calls = {call.id: call for call in as_ended.applications[0].calls}
    assert calls["a/main_2"].after == ("a/main_1",)
    assert calls["a/main_3"].after == ("a/main_2", "a/x_2")


def test_a_sub_agent_that_nobody_waited_for_begins_where_it_was_launched(source: Path) -> None:
    launched = {"t": 2.5, "status": "async_launched", "requests": [ask(0, [7]), ask(6, [7, 8], api_time=20)]}
    done = Converted(source, "agentic-coding", lines(talk("a", *in_between(launched))))
    calls = {call.id: call for call in done.applications[0].calls}
    assert (calls["a/x_1"].after, calls["a/x_1"].pause_s) == (("a/main_1",), 0.5)
    assert calls["a/main_3"].after == ("a/main_2",)


@pytest.mark.parametrize("since_1970", [0, EPOCH])
def test_a_start_in_whole_seconds_may_lie_behind_its_requests(source: Path, since_1970: int) -> None:
    """The sub-agent begins at 2.5 s, its first request, in whole seconds, at 2 s."""
    began = {"t": since_1970 + 2.5, "duration_ms": 10_000, "requests": [ask(since_1970 + 2, [7])]}
    requests = [one | {"t": since_1970 + one["t"]} if one["type"] == "n" else one for one in in_between(began)]
    done = Converted(source, "agentic-coding", lines(talk("a", *requests)))
    calls = {call.id: call for call in done.applications[0].calls}
    assert calls["a/x_1"].after == ("a/main_1",)
    assert calls["a/x_1"].pause_s == 0
    assert calls["a/main_3"].after == ("a/main_2", "a/x_1")


# how true it is


def test_what_a_conversion_keeps_is_said(source: Path) -> None:
    requests = [ask(0, [1]), ask(5, [1, 2], api_time=10), ask(6, [1, 3], api_time=10), ask(20, [1, 4])]
    done = Converted(source, "agentic-coding", lines(talk("a", *requests)))
    assert "4 requests, 2 beside another of the same session: 0 put in sequence, 0 waits added" in done.words
    assert "within 1 % or 2 s of the recorded one in 1 of 1 session" in done.words


def test_rounding_is_said_to_be(source: Path) -> None:
    requests = [ask(0, [1], api_time=8.25), ask(8, [1, 2])]
    words = Converted(source, "agentic-coding", lines(talk("a", *requests))).words
    assert "1 put in sequence (of at most 0.25 s of overlap), 1 wait added (of at most 0.25 s)" in words


def test_a_session_that_is_off_is_named(source: Path) -> None:
    """The recording has the second request from 5 to 15 s; the application lets it wait until 20 s."""
    (application,) = Converted(source, "agentic-coding", lines(talk("a", ask(0, [1]), ask(5, [1, 2])))).applications
    first, second = (call.id for call in application.calls)
    fidelity = Fidelity()
    fidelity.add(application, {first: Served(0, 17, 17), second: Served(5, 15, 10)})
    assert fidelity.sessions_off == 1
    (words,) = fidelity.words()[1:]
    assert words.endswith(
        "in 0 of 1 session; furthest off: a, 30.00 s for 17.00 s,"
        " because requests in it wait for others that the recording says ended later"
    )
    assert (fidelity.put_in_sequence, fidelity.sequence_s, fidelity.waiting, fidelity.waiting_s) == (1, 12, 1, 15)


# the command


def run(*arguments: str, given: bytes | None = None, code: int = 0) -> str:
    result = CliRunner().invoke(cli, arguments, input=given, standalone_mode=False)
    forget()
    assert result.exception is None, result.output
    assert (result.return_value or 0) == code
    return result.stderr


def test_strict_is_3_where_something_was_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", lines(chat(), chat(output=0)))
    command = ["trace", "convert", str(path), str(tmp_path / "out.jsonl"), "--from", "mooncake"]
    assert "left out: requests without an answer: 1" in run(*command)
    run(*command, "--strict", code=3)
    assert len(list(read_trace(tmp_path / "out.jsonl"))) == 1, "the trace is there all the same"
    run(*command, "--strict", "--bad-rows", "keep")
    run("trace", "convert", str(written(path, GOOD["mooncake"])), *command[3:], "--strict")


def test_options_stand_in_the_header(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", lines(chat(delay=1, ids=[0], tokens=700)))
    out = tmp_path / "out.jsonl"
    options = ["--ignore-field", "delay", "--time-unit", "s", "--block-tokens", "1000", "--bad-rows", "keep"]
    run("trace", "convert", str(path), str(out), "--from", "mooncake", *options)
    about = read_trace(out).header.about
    assert {
        "block_tokens": 1000,
        "time_unit": "s",
        "ignored_fields": "delay",
        "bad_rows": "keep",
    }.items() <= about.items()


DOCS = Path(__file__).parents[3] / "docs" / "traces-from-elsewhere.md"


@pytest.mark.parametrize("source_format", FORMATS)
def test_the_lists_of_fields_are_documented(source_format: str) -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{source_format}`")]
    documented = [tuple(frozenset(re.findall("`([^`]+)`", cell)) for cell in line.split("|")[2:4]) for line in rows]
    for lists in FORMATS[source_format].fields:
        assert (lists.understood, lists.harmless) in documented
