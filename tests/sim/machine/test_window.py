"""What a token attends to in windowed layers, against the same thing counted token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokencake.sim.machine.window import Window

windows = st.builds(Window, st.integers(1, 12), st.booleans())


def seen(window: Window, position: int) -> int:
    """What the token at a position attends to, itself included, counted."""
    first = position // window.tokens * window.tokens if window.chunked else max(0, position + 1 - window.tokens)
    return position + 1 - first


def test_a_window_of_four_and_chunks_of_four() -> None:
    assert [Window(4, chunked=False).seen(tokens) for tokens in range(7)] == [0, 1, 2, 3, 4, 4, 4]
    assert [Window(4, chunked=True).seen(tokens) for tokens in range(7)] == [0, 1, 2, 3, 0, 1, 2]


@given(windows, st.integers(0, 40), st.integers(0, 40))
def test_pairs_are_counted(window: Window, before: int, tokens: int) -> None:
    assert window.pairs(before, tokens) == sum(seen(window, position) for position in range(before, before + tokens))


@given(windows, st.integers(0, 40))
def test_until_a_turn_what_is_seen_grows_by_one(window: Window, before: int) -> None:
    turn = window.until_turn(before)
    for tokens in range(before, before + turn - 1):
        assert window.seen(tokens + 1) == window.seen(tokens) + 1
    stays = range(before + turn, before + turn + 3)
    assert turn or len({window.seen(tokens) for tokens in stays}) == 1


@given(windows, st.integers(0, 40), st.integers(1, 30))
def test_pairs_of_chunks_grow_evenly(window: Window, before: int, tokens: int) -> None:
    growth, chunks = window.growth(before, tokens)
    first = window.pairs(before, tokens)
    for chunk in range(chunks or 5):
        assert window.pairs(before + chunk * tokens, tokens) == first + chunk * growth
