"""Whatever is done to a trace file, it is read or refused with a TraceError, and nothing else happens."""

import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokencake.traces.errors import TraceError
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.inspect.inspection import inspect_trace

PAGE = Path(__file__).parents[3] / "docs" / "trace-format.md"
VALID = re.findall(r"^```jsonl\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0].encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_or_refused(folder: Path, data: bytes) -> None:
    path = folder / "t.jsonl"
    path.write_bytes(data)
    try:
        trace = read_trace(path)
        applications = list(trace)
    except TraceError as error:
        message = str(error)
        assert message.startswith(f"{path}:")
        assert message.isprintable()  # one line
        return
    assert inspect_trace(trace).errors == ()
    write_trace(folder / "again.jsonl", applications, trace.header)  # whatever can be read can be written
    assert list(read_trace(folder / "again.jsonl")) == applications


@given(data=st.binary(max_size=200))
@example(b"")
@example(b"\x1f\x8b")
@example(b"\xef\xbb\xbf" + VALID)
@example(VALID.decode().encode("utf-16"))
@example(VALID.replace(b"\n", b"\r\n"))
@example(gzip.compress(VALID)[:-9])
def test_any_bytes(folder: Path, data: bytes):
    read_or_refused(folder, data)


@given(data=st.data())
def test_bytes_deleted_replaced_and_inserted(folder: Path, data: st.DataObject):
    mutant = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutant)))
        end = data.draw(st.integers(start, min(len(mutant), start + 20)))
        mutant[start:end] = data.draw(st.binary(max_size=6) | st.sampled_from(TOKENS))
    read_or_refused(folder, bytes(mutant))


TOKENS = [
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b'"',
    b"\n",
    b"\\ud800",
    b"9" * 5000,
    b'"id":',
]

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["plan", "look", "edit", "main", "/system", "extends", "keep", 2**31 - 1, 1e9, 0, -0.0, 10**400])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
KEYS = st.sampled_from(["extends", "keep", "after", "agent", "tools", "hints", "prompt", "pause_s", "max_output", "x"])


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutate(data: st.DataObject, root: list[Any]) -> None:
    container, key = data.draw(st.sampled_from(places(root)))
    other, other_key = data.draw(st.sampled_from(places(root)))
    match data.draw(st.sampled_from(["replace", "delete", "copy", "insert"])):
        case "replace":
            container[key] = data.draw(VALUES)
        case "delete":
            del container[key]
        case "copy":
            container[key] = copy.deepcopy(other[other_key])
        case "insert" if isinstance(container, dict):
            container[data.draw(KEYS)] = data.draw(VALUES)
        case "insert":
            container.insert(key, copy.deepcopy(container[key]))


@given(data=st.data())
def test_values_replaced_deleted_and_copied(folder: Path, data: st.DataObject):
    lines = [json.loads(line) for line in VALID.splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        if places(lines):
            mutate(data, lines)
    read_or_refused(folder, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
