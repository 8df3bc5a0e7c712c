"""Whatever a file is wrapped in, a reader gets the same bytes; and what can be read only once can be read again."""

import bz2
import gzip
import hashlib
import io
import lzma
import multiprocessing
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from another_process import length_of
from hypothesis import given
from hypothesis import strategies as st

from tokencake.traces.errors import MachineError, TraceError
from tokencake.traces.files import source_file
from tokencake.traces.files.input_limits import BLANK_BYTES
from tokencake.traces.files.source_file import (
    BYTE_ORDER_MARK,
    at_hand,
    digest,
    forget,
    handed_over,
    lines,
    opened,
    whole,
)

TEXT = b"".join(b'{"line": %d}\n' % number for number in range(5000))
SKIPPED = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # a frame of zstandard that says nothing


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip in members": lambda data: gzip.compress(data[:77]) + gzip.compress(data[77:]),
    "gzip, padded": lambda data: gzip.compress(data) + bytes(512),
    "xz": lzma.compress,
    "xz in streams": lambda data: lzma.compress(data[:77]) + bytes(4) + lzma.compress(data[77:]),
    "zstandard": zstd,
    "zstandard in frames": lambda data: SKIPPED + zstd(data[:77]) + SKIPPED + zstd(data[77:]),
    "zstandard, length unknown": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}
each_wrapping = pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    forget()


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[bytes], Path]:
    """A named pipe that somebody writes some bytes into, once."""

    def made(data: bytes) -> Path:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        threading.Thread(target=path.write_bytes, args=(data,), daemon=True).start()
        return path

    return made


@each_wrapping
@pytest.mark.parametrize("mark", [b"", BYTE_ORDER_MARK], ids=["", "marked"])
def test_every_wrapping_holds_the_same(tmp_path: Path, wrap: Callable[[bytes], bytes], mark: bytes):
    path = tmp_path / "no-ending-says-it"
    path.write_bytes(wrap(mark + TEXT))
    assert whole(path, len(TEXT)) == TEXT
    assert [line for _, line in lines(path, longest_bytes=100)] == TEXT.splitlines(keepends=True)
    with opened(path) as content:
        assert content.read(10) + content.read() == TEXT


@each_wrapping
def test_of_an_empty_file_there_is_nothing(tmp_path: Path, wrap: Callable[[bytes], bytes]):
    path = tmp_path / "empty"
    path.write_bytes(wrap(b""))
    assert whole(path, 10) == b""
    assert list(lines(path, longest_bytes=10)) == []


@pytest.mark.parametrize("wrap", [gzip.compress, lzma.compress, zstd], ids=["gzip", "xz", "zstandard"])
def test_what_is_cut_off_or_damaged_is_one_line(tmp_path: Path, wrap: Callable[[bytes], bytes]):
    path = tmp_path / "cut"
    data = wrap(os.urandom(40) + TEXT[:100])
    for length in range(7, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(TraceError, match=r"cut: expected a whole (gzip|xz|zstandard) file, got one that is cut"):
            whole(path, 1000)
    path.write_bytes(data + b"more")
    with pytest.raises(TraceError, match="damaged"):
        whole(path, 1000)


@given(st.sampled_from([gzip.compress, lzma.compress, zstd]), st.data())
def test_no_damage_is_anything_but_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, wrap: Callable[[bytes], bytes], data: st.DataObject
):
    path = tmp_path_factory.mktemp("f") / "damaged"
    content = bytearray(wrap(TEXT[:300]))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(TraceError):
        whole(path, 10**6)


def test_an_error_is_of_the_kind_that_is_asked_for(tmp_path: Path):
    with pytest.raises(MachineError, match="gone: cannot be read: No such file or directory"):
        whole(tmp_path / "gone", 10, MachineError)
    with pytest.raises(MachineError, match="cannot be read: Is a directory"):
        digest(tmp_path, MachineError)
    with pytest.raises(TraceError, match="cannot be read: embedded null byte"):
        whole("a\0b", 10)


def test_other_compressions_are_not_guessed(tmp_path: Path):
    path = tmp_path / "a.bz2"
    path.write_bytes(bz2.compress(TEXT))
    assert whole(path, 10**6) == path.read_bytes()


# -- what is too much


def compressed_zeros(wrap: str) -> bytes:
    """A gigabyte of nothing, in some kilobytes."""
    piece = bytes(10**7)
    if wrap == "gzip":
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
            for _ in range(100):
                file.write(piece)
        return packed.getvalue()
    if wrap == "xz":
        return lzma.compress(piece, preset=0) * 100
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(piece) for _ in range(100)) + compressor.flush()


@pytest.mark.parametrize("wrap", ["gzip", "xz", "zstandard"])
def test_what_swells_costs_no_more_memory_than_a_line_may_have(tmp_path: Path, wrap: str):
    path = tmp_path / "bomb"
    path.write_bytes(compressed_zeros(wrap))
    assert path.stat().st_size < 5_000_000
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match=r"bomb:1: expected a line of at most 1000000 bytes"):
            next(lines(path, longest_bytes=1_000_000))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_what_wants_gigabytes_to_be_unpacked_is_refused(tmp_path: Path):
    path = tmp_path / "wide"
    wide = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    path.write_bytes(compressor.compress(b"a") + compressor.flush())
    with pytest.raises(TraceError, match="expected a whole zstandard file"):
        whole(path, 10)


def test_blank_lines_without_end_are_refused(tmp_path: Path):
    path = tmp_path / "blank"
    path.write_bytes(zstd((b"{}\n" + b" " * 999_999 + b"\n") * (BLANK_BYTES // 10**6)))
    assert sum(1 for _ in lines(path)) == 2 * BLANK_BYTES // 10**6
    path.write_bytes(zstd(b"\n" * 10**8))
    with pytest.raises(TraceError, match=r"blank:10000001: expected at most 10000000 bytes of blank lines"):
        list(lines(path))


def test_a_whole_file_is_bounded(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert whole(path, 5) == b"12345"
    with pytest.raises(TraceError, match="f: expected at most 4 bytes"):
        whole(path, 4)


# -- digests


def test_a_digest_is_that_of_the_file(tmp_path: Path):
    path = tmp_path / "f"
    for data in (b"", TEXT, BYTE_ORDER_MARK + TEXT, b"\r", b"a\rb\r", gzip.compress(b"\r\n" * 1000), zstd(b"\r\n")):
        path.write_bytes(data)
        assert digest(path) == hashlib.sha256(data).hexdigest()


def test_line_ends_of_a_checkout_make_no_other_digest(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(TEXT.replace(b"\n", b"\r\n"))
    assert digest(path) == hashlib.sha256(TEXT).hexdigest()


@given(st.integers(source_file.DIGEST_BYTES - 3, source_file.DIGEST_BYTES + 3), st.binary(max_size=4))
def test_nor_where_one_lies_across_two_pieces(tmp_path_factory: pytest.TempPathFactory, before: int, more: bytes):
    path = tmp_path_factory.mktemp("f") / "f"
    path.write_bytes(b"a" * before + b"\r\n\r" + more)
    assert digest(path) == hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


# -- what can be read only once


@each_wrapping
def test_a_pipe_can_be_read_again_and_again(pipe: Callable[[bytes], Path], wrap: Callable[[bytes], bytes]):
    data = wrap(TEXT)
    path = pipe(data)
    one, other = lines(path, longest_bytes=100), lines(path, longest_bytes=100)
    assert next(one) == next(other) == (1, b'{"line": 0}\n')  # side by side, with most of it still to come
    assert sum(1 for _ in one) == sum(1 for _ in other) == 4999
    assert digest(path) == hashlib.sha256(data).hexdigest()
    assert whole(path, len(TEXT)) == TEXT


def test_messages_have_the_name_that_was_given(pipe: Callable[[bytes], Path]):
    path = pipe(b"a" * 20)
    with pytest.raises(TraceError, match=rf"^{path}:1: expected a line of at most 10 bytes$"):
        list(lines(path, longest_bytes=10))


def test_another_process_reads_what_came_through_a_pipe(pipe: Callable[[bytes], Path]):
    path = pipe(TEXT)
    next(lines(path, longest_bytes=100))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(length_of, (str(path), handed_over())).get(timeout=60) == len(TEXT)


def test_what_is_kept_of_a_pipe_is_private_and_does_not_stay(pipe: Callable[[bytes], Path]):
    kept = at_hand(pipe(TEXT))
    assert kept.read_bytes() == TEXT
    assert kept.stat().st_mode & 0o777 == 0o600
    forget()
    assert not kept.exists()


def test_a_file_is_at_hand_where_it_lies(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(TEXT)
    assert at_hand(path) == path
    assert handed_over() == {}


def test_an_endless_device_costs_a_line(tmp_path: Path):
    with pytest.raises(TraceError, match=r"/dev/zero:1: expected a line of at most 1000 bytes"):
        list(lines("/dev/zero", longest_bytes=1000))
