"""Prompts that are given as a list of block ids: equal ids stand for equal content."""

from __future__ import annotations

from collections.abc import Sequence

from .apps import Segment


def covers(ids: Sequence[int], tokens: int, block_tokens: int) -> bool:
    """Whether so many ids fit a prompt of so many tokens: one for each full block, and perhaps one for the rest."""
    full = tokens // block_tokens
    return len(ids) in (full, -(-tokens // block_tokens))


def common_blocks(left: Sequence[int], right: Sequence[int]) -> int:
    """The number of ids that both lists begin with."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(index for index in range(shorter) if left[index] != right[index])


def block_segments(
    ids: Sequence[int], tokens: int, block_tokens: int, source: str, rest_source: str
) -> tuple[Segment, ...]:
    """A prompt of `tokens` tokens whose blocks are `ids`, as runs: block i is the source's tokens from i·block_tokens.

    Consecutive ids become one segment. If the last block is partly filled and has an id, the segment ends within it;
    if it has none, what it holds is said to be in no other prompt: `rest_source`, from its first token.
    """
    assert covers(ids, tokens, block_tokens)
    segments = [
        Segment(source, first * block_tokens, (last - first + 1) * block_tokens) for first, last in _id_runs(ids)
    ]
    missing = tokens - len(ids) * block_tokens
    if missing > 0:
        segments.append(Segment(rest_source, 0, missing))
    elif missing < 0:
        whole = segments[-1]
        segments[-1] = whole._replace(tokens=whole.tokens + missing)
    return tuple(segments)


def _id_runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last id of each run of consecutive ids."""
    if not ids:
        return []
    starts = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1] + 1)]
    ends = [*(start - 1 for start in starts[1:]), len(ids) - 1]
    return [(ids[start], ids[end]) for start, end in zip(starts, ends, strict=True)]
