"""When a watch speaks: with made-up times and copies; what it says of a real engine is in tests/live."""

from __future__ import annotations

from types import SimpleNamespace

from tokencake.live.engine_options import LONGEST_COPY_S
from tokencake.live.stall import Watch


def engine(under_way: int = 0, ended: int = 0) -> SimpleNamespace:
    return SimpleNamespace(copies=SimpleNamespace(under_way=under_way, ended=ended))


def test_it_speaks_once_when_nothing_has_happened_for_so_long() -> None:
    watch = Watch(10.0)
    watch.happened(100.0)
    assert [watch.is_over(at_s, None) for at_s in (100.0, 109.9, 110.0, 111.0, 500.0)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    watch.happened(600.0)
    assert [watch.is_over(at_s, None) for at_s in (605.0, 610.0)] == [False, True]


def test_a_copy_that_ended_is_something_that_happened() -> None:
    watch = Watch(10.0)
    assert not watch.is_over(9.0, engine(ended=1))
    assert not watch.is_over(18.9, engine(ended=1))
    assert watch.is_over(19.0, engine(ended=1))


def test_a_copy_under_way_may_take_as_long_as_any_does() -> None:
    watch = Watch(10.0)
    assert not watch.is_over(LONGEST_COPY_S - 0.1, engine(under_way=1))
    assert watch.is_over(LONGEST_COPY_S, engine(under_way=1))
    patient = Watch(2 * LONGEST_COPY_S)
    assert not patient.is_over(LONGEST_COPY_S, engine(under_way=1))
