"""Mooncake's request traces: JSON with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`.

Format: https://github.com/kvcache-ai/Mooncake (FAST'25 traces). A hash id stands for a block of 512 tokens, the last
one of a prompt perhaps partly filled, and is the same in the whole trace for the same content. Others write the same
rows with blocks of another size, or with times since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from ..apps import Application
from ..errors import TraceError
from ..files.fields import MAX_NAME, WrongField
from ..generate.single_call import one_call_application
from .block_ids import MAX_ID, Blocks, covers, fitting_block_tokens
from .conversion import Conversion, FieldLists, answer_tokens, known_entries
from .foreign import Entry
from .recorded_times import RecordedTimes

BLOCK_TOKENS = 512
LOOKED_AT = 1_000  # rows, to find out how large blocks are that are not of that size
IDS_LOOKED_AT = 1_000_000
FIELDS = FieldLists(
    frozenset({"timestamp", "input_length", "output_length", "hash_ids"}), frozenset({"request_id", "model"})
)


def from_mooncake(entries: Iterable[Entry], conversion: Conversion) -> Iterator[Application]:
    """One application a request, at its time. Streams. Raises TraceError, naming line and field."""
    known = known_entries(entries, "mooncake", conversion, lambda entry: conversion.look_at(entry, FIELDS))
    block_tokens, known = _block_tokens(known, conversion)
    blocks = Blocks("/blocks", block_tokens)
    times = RecordedTimes(conversion.options.time_unit, documented="ms")
    before_s = 0.0
    for index, entry in enumerate(known):
        conversion.rows += 1
        arrival_s = times.seconds(entry, "timestamp", entry.values.get("timestamp"))
        if arrival_s < before_s:
            entry.refuse("timestamp", "a time that is not before the previous request's")
        before_s = arrival_s
        if output_tokens := answer_tokens(conversion, entry, "input_length", "output_length"):
            yield _application(entry, f"r{index}", arrival_s, blocks, output_tokens)
    if conversion.rows:
        conversion.assume(times.words())
        conversion.assume("each request is an application of its own: what follows what is not recorded")


def _application(entry: Entry, app: str, arrival_s: float, blocks: Blocks, output_tokens: int) -> Application:
    tokens = entry.whole("input_length", low=1)
    ids = entry.ids("hash_ids", MAX_ID)
    if not covers(ids, tokens, blocks.block_tokens):
        size = blocks.block_tokens
        entry.refuse("hash_ids", f"an id for each {size} of the {tokens} tokens (--block-tokens says another size)")
    try:
        segments = blocks.segments(ids, tokens, f"{app}/rest")
    except WrongField as wrong:
        raise TraceError(f"{entry.place(wrong.field)}: {wrong.reason}") from None
    return one_call_application(app, arrival_s, segments, output_tokens)


def _block_tokens(entries: Iterator[Entry], conversion: Conversion) -> tuple[int, Iterator[Entry]]:
    """How many tokens a block has, and the entries, of which some were looked at to find out."""
    if (asked := conversion.options.block_tokens) is not None:
        conversion.assume(f"blocks are {asked} tokens (as asked)")
        return asked, entries
    head = list(_looked_at(entries))
    lists = [listed for entry in head if (listed := _listed(entry))]
    if not lists or BLOCK_TOKENS in fitting_block_tokens(lists[:1]):
        conversion.assume(f"blocks are {BLOCK_TOKENS} tokens (as documented)")
        return BLOCK_TOKENS, chain(head, entries)
    sizes = fitting_block_tokens(lists)
    if len(sizes) != 1:
        fit = f"blocks of {', '.join(map(str, sizes))} tokens would fit" if sizes else "no power of two fits, either"
        entry = next(entry for entry in head if _listed(entry))
        expected = f"an id for each {BLOCK_TOKENS} of the {entry.values['input_length']} tokens"
        entry.refuse("hash_ids", f"{expected} ({fit}; --block-tokens says it)")
    rows = "row" if len(head) == 1 else f"{len(head):,} rows"
    conversion.assume(f"blocks are {sizes[0]} tokens (the only power of two that fits the first {rows})")
    return sizes[0], chain(head, entries)


def _looked_at(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The first rows: as far as one that has blocks of the documented size, or as many as it takes to tell another.

    They are held, so there are not many ids in them, and none has anything large that is no list of ids.
    """
    ids, others = 0, False
    for number, entry in enumerate(entries, 1):
        yield entry
        listed = _listed(entry)
        if not others and listed and BLOCK_TOKENS in fitting_block_tokens([listed]):
            return
        others = others or listed is not None
        ids += listed[0] if listed else 0
        if number == LOOKED_AT or ids > IDS_LOOKED_AT or not all(map(_small, entry.values.values())):
            return


def _small(value: object) -> bool:
    """Whether it is a number, short text, or a list of nothing but numbers."""
    if isinstance(value, list):
        return set(map(type, value)) <= {int}
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= MAX_NAME)


def _listed(entry: Entry) -> tuple[int, int] | None:
    """How many ids a prompt has, and how many tokens, if it has both."""
    ids, tokens = entry.values.get("hash_ids"), entry.values.get("input_length")
    return (len(ids), tokens) if isinstance(ids, list) and ids and type(tokens) is int and tokens > 0 else None
