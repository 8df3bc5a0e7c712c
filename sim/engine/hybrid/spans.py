"""Sets of blocks of one context as spans: disjoint, by position, none of them empty."""

from __future__ import annotations

from collections.abc import Sequence

from ..memory.blocks import Span
from ..memory.context_tree import Path
from ..memory.marks import Marks


def blocks_of(spans: Sequence[Span]) -> int:
    """How many blocks these are."""
    count = 0
    for first, end in spans:
        count += end - first
    return count


def intersection(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """What is in both."""
    found: list[Span] = []
    i = j = 0
    while i < len(some) and j < len(others):
        first = max(some[i][0], others[j][0])
        end = min(some[i][1], others[j][1])
        if first < end:
            found.append((first, end))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return found


def union(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """What is in one of them, or in both."""
    found: list[Span] = []
    for first, end in sorted([*some, *others]):
        if found and found[-1][1] >= first:
            start, upto = found.pop()
            first, end = start, max(upto, end)
        found.append((first, end))
    return found


def minus(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """What is in the first alone."""
    left: list[Span] = []
    for at, end in some:
        for first, upto in others:
            if first >= end:
                break
            if first > at:
                left.append((at, first))
            at = max(at, upto)
            if at >= end:
                break
        if at < end:
            left.append((at, end))
    return left


def up_to(spans: Sequence[Span], limit: int) -> list[Span]:
    """What these have of the first `limit` blocks."""
    return [(first, min(end, limit)) for first, end in spans if first < limit]


def clipped(spans: Sequence[Sequence[Span]], start: int) -> list[list[Span]]:
    """Of several sets, what lies at positions from `start` on."""
    return [[(max(first, start), end) for first, end in found if end > start] for found in spans]


def marked_spans(path: Path, limit: int, marks: Marks) -> list[Span]:
    """Which of the first `limit` blocks are marked."""
    if not marks:
        return []
    found = [
        (max(first, piece.first_block), min(end, piece.end_block, limit))
        for piece in path
        for first, end in marks.get(piece.node, ())
        if first < min(piece.end_block, limit) and end > piece.first_block
    ]
    return union(found, ())
