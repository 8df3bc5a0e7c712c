"""Mooncake's request traces: JSON lines with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`.

Format: https://github.com/kvcache-ai/Mooncake (FAST'25 traces). A hash id stands for a block of 512 tokens, the last
one of a prompt perhaps partly filled, and is the same in the whole file for the same content.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .apps import Application
from .block_ids import block_segments, covers
from .fields import MAX_TOKENS
from .foreign import Entry, read_json_lines
from .one_call import one_call_application

BLOCK_TOKENS = 512
MAX_ID = MAX_TOKENS // BLOCK_TOKENS - 1


def from_mooncake(path: Path) -> Iterator[Application]:
    """One application a request, at its time. Streams. Raises TraceError, naming line and field."""
    before_s = 0.0
    for index, entry in enumerate(read_json_lines(path)):
        arrival_s = entry.number("timestamp", high=1e12) / 1000.0
        if arrival_s < before_s:
            entry.refuse("timestamp", "a time that is not before the previous request's")
        before_s = arrival_s
        yield _application(entry, f"r{index}", arrival_s)


def _application(entry: Entry, app: str, arrival_s: float) -> Application:
    tokens = entry.whole("input_length", low=1)
    ids = entry.ids("hash_ids", MAX_ID)
    if not covers(ids, tokens, BLOCK_TOKENS):
        entry.refuse("hash_ids", f"an id for each {BLOCK_TOKENS} of the {tokens} tokens")
    segments = block_segments(ids, tokens, BLOCK_TOKENS, "/blocks", f"{app}/rest")
    return one_call_application(app, arrival_s, segments, entry.whole("output_length", low=1))
