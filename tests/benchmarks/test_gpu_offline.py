"""The archive for a machine without a network: what is blanked in a library, and what is not."""

from __future__ import annotations

import struct

import pytest
from gpu.offline import ENTRY, HEADER, MAGIC, REQUIREMENTS, keep_only

CODE_90, CODE_80 = b"code for ninety!", b"for eighty"


def entry(sm: int, code: bytes, kind: int = 2) -> bytes:
    return ENTRY.pack(kind, 1, 64, len(code)) + bytes(28 - ENTRY.size) + struct.pack("<I", sm) + bytes(32) + code


def fat(*entries: bytes) -> bytes:
    return HEADER.pack(MAGIC, 1, HEADER.size, sum(map(len, entries))) + b"".join(entries)


def test_code_of_one_architecture_stays_and_nothing_moves() -> None:
    first = fat(entry(80, CODE_80), entry(90, CODE_90), entry(90, CODE_90, kind=1))
    second = fat(entry(100, CODE_80))
    library = bytearray(b"ELF, and so on" + first + b"between" + second + b"behind")
    expected = bytes(library).replace(CODE_80, bytes(len(CODE_80)))
    assert keep_only(90, library) == (2 * len(CODE_90), 2 * len(CODE_80))
    assert library == expected


def test_what_only_looks_like_code_is_left_alone() -> None:
    """The mark stands in the library for other reasons, too; an entry of an unknown kind ends what is understood."""
    odd = fat(entry(80, CODE_80, kind=7), entry(80, CODE_80))
    too_long = HEADER.pack(MAGIC, 1, HEADER.size, 1 << 40)
    other_version = HEADER.pack(MAGIC, 2, HEADER.size, 8) + CODE_80
    library = bytearray(MAGIC + b"...." + odd + too_long + other_version + fat(entry(90, CODE_90)) + MAGIC)
    before = bytes(library)
    assert keep_only(90, library) == (len(CODE_90), 0)
    assert library == before


def test_a_library_without_code_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="no code for sm_90"):
        keep_only(90, bytearray(fat(entry(80, CODE_80))))


def test_every_wheel_is_pinned() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert all(line.count("==") == 1 for line in lines)
    assert lines == sorted(set(lines))
