"""Blocks beside each other in memory: which pieces a copy is, and how places are chosen so that they are few."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.live.copier.stretches import side_by_side, stretches


def pieces(blocks: list[int], slots: list[int]) -> list[tuple[int, int, int]]:
    return [(int(block), int(slot), int(count)) for block, slot, count in zip(*stretches(blocks, slots), strict=True)]


def places(number: int, most: int = 40) -> st.SearchStrategy[list[int]]:
    """Distinct numbers, many of them beside each other."""
    return st.lists(st.integers(0, most), min_size=number, max_size=number, unique=True)


pairs = st.integers(0, 24).flatmap(lambda number: st.tuples(places(number), places(number)))


def test_blocks_that_go_on_on_both_sides_are_one_piece():
    assert pieces([7, 8, 9], [30, 31, 32]) == [(7, 30, 3)]
    assert pieces([9, 8, 7], [32, 31, 30]) == [(7, 30, 3)]  # the same pairs
    assert pieces([7, 8, 10], [30, 31, 32]) == [(7, 30, 2), (10, 32, 1)]
    assert pieces([7, 8, 9], [30, 31, 33]) == [(7, 30, 2), (9, 33, 1)]
    assert pieces([7, 8], [31, 30]) == [(7, 31, 1), (8, 30, 1)]
    assert pieces([], []) == []


@given(pairs)
def test_pieces_are_the_pairs_and_no_two_could_be_one(sides: tuple[list[int], list[int]]):
    blocks, slots = sides
    found = pieces(blocks, slots)
    copied = [(block + at, slot + at) for block, slot, count in found for at in range(count)]
    assert sorted(copied) == sorted(zip(blocks, slots, strict=True))
    ends = {(block + count, slot + count) for block, slot, count in found}
    assert ends.isdisjoint((block, slot) for block, slot, _ in found)


def test_places_follow_the_way_that_the_numbers_go():
    """vLLM hands out blocks upwards at first, and downwards those that a context gave back, its last one first."""
    assert side_by_side([5, 6, 7], [3, 2, 1]) == [1, 2, 3]
    assert side_by_side([7, 6, 5], [1, 2, 3]) == [3, 2, 1]
    assert side_by_side([5, 6, 90, 20, 19, 18, 17], [17, 16, 15, 14, 13, 12, 11]) == [11, 12, 13, 17, 16, 15, 14]


def test_scattered_numbers_leave_places_in_the_order_of_the_context():
    """They are single pieces anyway; what is copied back to blocks in a row is one."""
    arranged = side_by_side([50, 10, 30], [9, 8, 7])
    assert arranged == [7, 8, 9]
    assert pieces([100, 101, 102], arranged) == [(100, 7, 3)]


@given(pairs)
def test_every_place_is_given_once(sides: tuple[list[int], list[int]]):
    numbers, free = sides
    assert sorted(side_by_side(numbers, free)) == sorted(free)


@pytest.mark.parametrize("step", [1, -1])
@given(st.integers(1, 30), st.integers(0, 50))
def test_a_run_of_numbers_on_a_run_of_places_is_one_piece(step: int, count: int, first: int):
    numbers = list(range(100, 100 + count))[::step]
    assert len(pieces(numbers, side_by_side(numbers, range(first, first + count)))) == 1
