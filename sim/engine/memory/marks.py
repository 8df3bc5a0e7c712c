"""Blocks of nodes of the context tree that copies under way read or write."""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import Node, Span
from .context_tree import Path

Marks = dict[Node, list[Span]]


def mark(path: Path, first: int, end: int, marks: Marks) -> None:
    for piece in path:
        if piece.end_block > first and piece.first_block < end:
            marks.setdefault(piece.node, []).append((max(first, piece.first_block), min(end, piece.end_block)))


def unmark(path: Path, first: int, end: int, marks: Marks) -> None:
    for piece in path:
        if piece.end_block > first and piece.first_block < end:
            marked = marks[piece.node]
            marked.remove((max(first, piece.first_block), min(end, piece.end_block)))
            if not marked:
                del marks[piece.node]


def marked_until(path: Path, at: int, marks: Marks) -> int:
    """How far the blocks from `at` on are marked."""
    for piece in path:
        while piece.first_block <= at < piece.end_block:
            ends = [end for start, end in marks.get(piece.node, ()) if start <= at < end]
            if not ends:
                return at
            at = min(max(ends), piece.end_block)  # what else the node has there is another context's
    return at


def unmarked(spans: Sequence[Span], path: Path, marks: Marks) -> list[Span]:
    """What of these spans of a context no mark covers."""
    marked = sorted(
        (max(first, piece.first_block), min(end, piece.end_block))
        for piece in path
        for first, end in marks.get(piece.node, ())
        if first < piece.end_block and end > piece.first_block
    )
    if not marked:
        return list(spans)
    left: list[Span] = []
    for at, end in spans:
        for first, upto in marked:
            if first >= end:
                break
            if first > at:
                left.append((at, first))
            at = max(at, upto)
        if at < end:
            left.append((at, end))
    return left


def between(spans: Sequence[Span], first: int, end: int) -> list[Span]:
    """What these spans leave of the blocks `first` … `end − 1`."""
    left: list[Span] = []
    at = first
    for start, upto in spans:
        if start > at:
            left.append((at, start))
        at = upto
    if at < end:
        left.append((at, end))
    return left
