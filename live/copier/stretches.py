"""Blocks that lie beside each other in memory: found in a copy, and brought about where places can be chosen.

A copy is pairs of a GPU block and a host slot. Where both go on one by one, the bytes of several blocks are one piece
on both sides, and one command to the hardware.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]


class Stretches(NamedTuple):
    """Pieces of a copy, as many as the arrays are long, by ascending GPU block. No two of them could be one."""

    blocks: Numbers  # the first of each
    slots: Numbers  # that of the first block
    counts: Numbers  # blocks


def stretches(blocks: Sequence[int], slots: Sequence[int]) -> Stretches:
    """The pieces in which these pairs are copied. Their order does not matter: no place is written twice."""
    unsorted = np.array(blocks, np.uint64)
    order = np.argsort(unsorted)
    firsts, seconds = unsorted[order], np.array(slots, np.uint64)[order]
    apart = (firsts[1:] != firsts[:-1] + 1) | (seconds[1:] != seconds[:-1] + 1)
    begins = np.concatenate(([0], np.flatnonzero(apart) + 1))[: len(firsts)]
    counts = np.diff(begins, append=len(firsts)).astype(np.uint64)
    return Stretches(firsts[begins], seconds[begins], counts)


def side_by_side(numbers: Sequence[int], places: Iterable[int]) -> list[int]:
    """A place for each of `numbers`, all of them different on both sides, so that the pairs are few stretches.

    Numbers that go up or down one by one get places that do so too, as far as there are such; stretches of numbers get
    theirs in the order in which they come, so that places tell the order of a context whatever the numbers are.
    """
    ascending = sorted(places)
    arranged: list[int] = []
    for first, end in _one_by_one(numbers):
        down = end - first > 1 and numbers[first] > numbers[first + 1]
        arranged += reversed(ascending[first:end]) if down else ascending[first:end]
    return arranged


def _one_by_one(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where the numbers go up, or down, by one: first index and end of each such stretch."""
    first = 0
    while first < len(numbers):
        end = first + 1
        if end < len(numbers) and abs(step := numbers[end] - numbers[first]) == 1:
            while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
                end += 1
        yield first, end
        first = end
