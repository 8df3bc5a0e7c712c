"""Prompts that are given as a list of block ids: equal ids stand for equal content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..apps import Segment
from ..arithmetic import div_ceil
from ..files.fields import MAX_TOKENS, WrongField

MAX_ID = 2**64 - 1
HASHES = 2_500_000  # different ids that are too large to be a place: as many are held, in some 300 MB
_SOURCE = 2**32  # more than a source has blocks, so that no run goes from one source into another


def covers(ids: Sequence[int], tokens: int, block_tokens: int) -> bool:
    """Whether so many ids fit a prompt of so many tokens: one for each full block, and perhaps one for the rest."""
    full = tokens // block_tokens
    return len(ids) in (full, div_ceil(tokens, block_tokens))


def common_blocks(left: Sequence[int], right: Sequence[int]) -> int:
    """The number of ids that both lists begin with."""
    same, end = 0, min(len(left), len(right))
    if left[:end] == right[:end]:
        return end
    while same + 1 < end:  # the first `same` ids are equal, the first `end` are not
        middle = (same + end) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            end = middle
    return same


def fitting_block_tokens(prompts: Iterable[tuple[int, int]]) -> list[int]:
    """The powers of two that can be the size of a block where prompts of (ids, tokens) list so many."""
    sizes = [2**exponent for exponent in range(17)]
    for ids, tokens in prompts:
        sizes = [size for size in sizes if ids in (tokens // size, div_ceil(tokens, size))]
    return sizes


class Blocks:
    """The content of blocks that are told apart by ids: equal ids, equal content.

    Block i is the tokens from i × `block_tokens` of `source`. Ids too large for that, hashes of 64 bits, are numbered
    densely as they come, in sources of their own, `SOURCE-hashes`. The numbers are held in memory; several sources may
    have them in common.
    """

    def __init__(self, source: str, block_tokens: int, numbers: dict[int, int] | None = None) -> None:
        self._source = source
        self.block_tokens = block_tokens
        self._blocks_a_source = MAX_TOKENS // block_tokens
        self._numbers = {} if numbers is None else numbers

    def segments(self, ids: Sequence[int], tokens: int, rest_source: str) -> tuple[Segment, ...]:
        """A prompt of `tokens` tokens whose blocks are `ids`, as runs: consecutive blocks are one segment.

        If the last block is partly filled and has an id, the segment ends within it; if it has none, what it holds is
        said to be in no other prompt: `rest_source`, from its first token. Raises WrongField for more hashes than are
        held.
        """
        assert covers(ids, tokens, self.block_tokens)
        segments = [self._segment(first, last) for first, last in _runs(self._places(ids))]
        missing = tokens - len(ids) * self.block_tokens
        if missing > 0:
            segments.append(Segment(rest_source, 0, missing))
        elif missing < 0:
            whole = segments[-1]
            segments[-1] = whole._replace(tokens=whole.tokens + missing)
        return tuple(segments)

    def _places(self, ids: Sequence[int]) -> Sequence[int]:
        """Which block of which source each is: number of the source × _SOURCE + number of the block."""
        if not ids or max(ids) < self._blocks_a_source:
            return ids
        return [one if one < self._blocks_a_source else self._hashed(one) for one in ids]

    def _hashed(self, one: int) -> int:
        number = self._numbers.setdefault(one, len(self._numbers))
        if number >= HASHES:
            raise WrongField("hash_ids", f"expected at most {HASHES:,} different ids above {self._blocks_a_source - 1}")
        source, block = divmod(number, self._blocks_a_source)
        return (1 + source) * _SOURCE + block

    def _segment(self, first: int, last: int) -> Segment:
        source, block = divmod(first, _SOURCE)
        name = self._source if not source else f"{self._source}-hashes" + (f"-{source}" if source > 1 else "")
        return Segment(name, block * self.block_tokens, (last - first + 1) * self.block_tokens)


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last id of each run of consecutive ids."""
    if not ids:
        return []
    starts = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1] + 1)]
    ends = [*(start - 1 for start in starts[1:]), len(ids) - 1]
    return [(ids[start], ids[end]) for start, end in zip(starts, ends, strict=True)]
