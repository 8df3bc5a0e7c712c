"""Whatever is done to a trace file, it is read or refused with a TraceError, and nothing else happens."""

import gzip
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trace_mutations import VALID, other_bytes, other_values

from tokencake.traces.errors import TraceError
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.inspect.inspection import inspect_trace


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


@given(data=other_bytes())
def test_bytes_deleted_replaced_and_inserted(folder: Path, data: bytes):
    read_or_refused(folder, data)


@given(data=other_values())
def test_values_replaced_deleted_and_copied(folder: Path, data: bytes):
    read_or_refused(folder, data)
